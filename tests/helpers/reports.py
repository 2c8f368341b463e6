"""Reports to draw and to store, their evidence made by the stages themselves on a simulated device."""

from __future__ import annotations

import dataclasses
from typing import Any

from autobatch.core.facts import DeviceInfo
from autobatch.core.json_reader import Json
from autobatch.core.plan import Config, Plan
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.measuring.memory import find_max_batch_size
from autobatch.measuring.profiling import profile
from autobatch.reports.report import Report
from autobatch.searching.budget.costs import horizon_s
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.search import SearchSettings, search
from autobatch.searching.trials import Trial
from autobatch.searching.verdict.confirmation import ScoreSummary
from autobatch.searching.verdict.long_run import Forecast, LongRun, LrTrend, Stability
from autobatch.simulated.sim import SimRunner, VirtualClock

YOURS = Config(plan=Plan(batch_size=32), lr=1e-3)
CHOSEN = Config(plan=Plan(batch_size=128, accumulation_steps=2), lr=0.00345)


LONG_RUN = LongRun(
    horizon_s=3.5,
    train_time_s=14.0,
    confidence=0.9,
    stability=(Stability(early=0.5, late=1.0, trials=4, pairs=6, kept=5 / 6),),
    forecasts=(
        Forecast(
            against="baseline", batch_size=32, lr=1e-3, lead=0.02, expected=0.01, low=0.004, high=0.03, ahead=0.99
        ),
    ),
    lr=LrTrend(
        lr=0.0025,
        low=0.0012,
        high=0.005,
        slope=-0.16,
        measured=-0.2,
        stderr=0.1,
        rungs=((0.125, 0.006), (0.5, 0.005), (1.0, 0.0035)),
    ),
).to_json()


def trial(number: int, config: Config, role: Any, scores: tuple[float, ...], **changes: Any) -> Trial:
    """A trial with a score at each of the first rungs; complete with three."""
    steps = (100, 400, 800)
    made = Trial(
        number=number,
        config=config,
        seed=number,
        total_steps=800,
        role=role,
        origin="a test",
        state="complete" if len(scores) == 3 else "paused",
        scores=tuple(zip(steps, scores, strict=False)),
    )
    return dataclasses.replace(made, **changes)


def example(**changes: Any) -> Report:
    """A run in which 128 x 2 beat the user's own 32."""
    runner = SimRunner()
    plan = Plan(batch_size=1)
    largest = find_max_batch_size(runner, plan, ceiling=512, ceiling_is="dataset")
    curve = profile(runner, plan, max_batch=int(largest), budget_s=5.0, include=[32])
    sweep = find_lr_curve(runner, Plan(batch_size=64))
    clock = VirtualClock()
    ledger = Ledger(60.0, clock)
    for kind, seconds in {"memory": 2.5, "training": 40.0, "evaluation": 0.1}.items():
        with ledger.charge(kind):
            clock.advance(seconds)
    trials = [
        trial(0, YOURS, "baseline", (0.91, 0.94, 0.951)),
        trial(1, CHOSEN, "search", (0.92, 0.95, 0.975)),
        *(trial(2 + i, Config(plan=Plan(batch_size=64), lr=0.01 + i / 100), "search", (0.9,)) for i in range(9)),
        trial(11, Config(plan=Plan(batch_size=512), lr=3.0), "search", (), state="failed", outcome="diverged"),
        *(trial(12 + i, CHOSEN, "confirmation", (0.92, 0.95, 0.97 + i / 500)) for i in range(3)),
    ]
    values: dict[str, Any] = {
        "task": "digits",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "autobatch tune digits.py --budget 60s",
        "version": "0.1.0",
        "device": DeviceInfo(name="a formula", kind="cpu", memory_bytes=2**31, threads=2, torch="2.13.0"),
        "direction": "maximize",
        "budget_s": 60.0,
        "horizon_s": 3.5,
        "train_time_s": None,
        "config": CHOSEN,
        "chose_baseline": False,
        "probability": 0.998,
        "is_proven": True,
        "baseline_plan": YOURS,
        "baseline_is_users": True,
        "score": ScoreSummary(mean=0.97183, stderr=0.0021, scores=(0.97, 0.972, 0.974)),
        "baseline": ScoreSummary(mean=0.9512, stderr=0.0036, scores=(0.9512,)),
        "test_score": None,
        "test_baseline": None,
        "max_batch": largest.to_json(),
        "throughput": curve.to_json(),
        "learning_rate": sweep.to_json(),
        "trials": tuple(trial.to_json() for trial in trials),
        "ledger": ledger.to_json(),
        "why": ("11 trials of up to 3.50 s of training each", "on fresh seeds batch 256 beat the baseline"),
    }
    return Report(**values | changes)


def horizon_of(report: Report) -> float:
    """T of a report that compared something."""
    assert report.horizon_s is not None
    return report.horizon_s


def throughput_of(report: Report) -> Json:
    """The profile of a report that has one."""
    assert report.throughput is not None
    return report.throughput


def raced(budget_s: float = 60.0, **changes: Any) -> Report:
    """A run whose race, too, was run on a simulated device: tens of trials, at every rung."""
    runner = SimRunner()
    baseline = runner.known.baseline
    ledger = Ledger(budget_s, runner.clock)
    largest = find_max_batch_size(runner, Plan(batch_size=1), ceiling=512, ceiling_is="dataset")
    with ledger.charge("profile"):
        curve = profile(runner, Plan(batch_size=1), max_batch=int(largest), budget_s=3.0, include=[32])
    step_s = curve.step_s(baseline.plan.batch_size)
    horizon = horizon_s(ledger.available_s, None, eval_s=runner.eval_s, baseline_step_s=step_s)
    result = search(
        runner,
        ledger,
        curve,
        max_batch=int(largest),
        horizon_s=horizon,
        eval_s=runner.eval_s,
        eval_batch_size=64,
        lr_hint=1e-3,
        settings=SearchSettings(sampler="freeze-thaw"),
    )
    found: dict[str, Any] = {
        "horizon_s": horizon,
        "config": result.chosen,
        "chose_baseline": result.chose_baseline,
        "probability": result.probability,
        "is_proven": result.is_proven,
        "baseline_plan": baseline,
        "score": result.score,
        "baseline": result.baseline,
        "throughput": curve.to_json(),
        "trials": tuple(trial.to_json() for trial in result.trials),
        "ledger": ledger.to_json(),
        "why": result.why,
        "seed": 0,
    }
    return example(**found | changes)
