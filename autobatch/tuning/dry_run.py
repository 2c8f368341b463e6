"""`tune --dry-run`: what would run and how long each stage gets, from the numbers that the run itself uses.

The task is opened and checked as in a run. One probe of the baseline and one evaluation are timed; nothing is searched
and nothing is written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.codec import config_to_json, device_to_json
from ..core.facts import DeviceInfo, TaskFacts
from ..core.progress import Stage
from ..core.runner import Runner
from ..core.words import outcome_text
from ..engines.pool import Pool
from ..errors import BudgetTooShort
from ..measuring.throughput import assumed_curve
from ..searching.budget.costs import horizon_s, ladder_for
from ..searching.budget.ledger import Ledger, report_reserve_s
from ..searching.reserve import FEW_EQUIVALENTS
from ..searching.trials import SearchSettings, optimizer_step_s
from .shares import memory_s, profile_s, sweep_s
from .stages import FEWEST_SWEEP_STEPS, MOST_SWEEP_STEPS, useful_ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """What a stage does, and the seconds that it gets; `is_most` where it may take less, which the race then has."""

    stage: str
    seconds: float
    is_most: bool
    does: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a run would do.

    Attributes:
        facts, device: of the task, as in the run.
        budget_s, train_time_s: what was given.
        workers: trials at the same time.
        search, seed, max_trials: settings of the race.
        stages: in their order; their seconds add up to the budget.
        step_s: seconds of an optimizer step of the baseline; None where it did not run, or tells no speed.
        eval_s: seconds of an evaluation; None where the validation data has no length.
        horizon_s: T; None where it cannot be told yet.
        full_trials: how many trainings of T there is time for.
        fresh_seeds: how many of them are kept for these.
        notes: what is not known, and why.
    """

    facts: TaskFacts
    device: DeviceInfo
    budget_s: float
    train_time_s: float | None
    workers: int
    search: str
    seed: int
    max_trials: int | None
    stages: tuple[StageTime, ...]
    step_s: float | None
    eval_s: float | None
    horizon_s: float | None
    full_trials: float | None
    fresh_seeds: int | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        known = ("budget_s", "train_time_s", "workers", "search", "seed", "max_trials", "step_s", "eval_s")
        return {
            "kind": "dry run",
            "task": self.facts.name,
            "device": device_to_json(self.device),
            "baseline": config_to_json(self.facts.baseline),
            **{name: getattr(self, name) for name in (*known, "horizon_s", "full_trials", "fresh_seeds")},
            "stages": [asdict(stage) for stage in self.stages],
            "notes": list(self.notes),
            "warnings": [*self.facts.warnings, *self.facts.assumptions],
        }


def dry_run_of(
    runner: Runner, ledger: Ledger, *, train_time_s: float | None, search: str, seed: int, max_trials: int | None
) -> DryRun:
    """What `tune` would do with a task that was just opened.

    Args:
        runner: the workers, as the run would open them.
        ledger: of the budget, with what opening took charged to it.
        train_time_s, search, seed, max_trials: as in `api.tune`.
    """
    with ledger.charge("start-up"):
        facts, device = runner.facts(), runner.device()
    opened_s, left_s = ledger.elapsed_s, ledger.available_s
    workers = runner.size if isinstance(runner, Pool) else 1
    memory = memory_s(left_s)
    profile = 0.0 if "profile" in facts.without else profile_s(left_s - memory)
    sweep = 0.0 if "range test" in facts.without else sweep_s(left_s - memory - profile)
    race_s = left_s - memory - profile - sweep
    notes: list[str] = []
    step_s, eval_s = _step_s(runner, facts, notes), _eval_s(runner, facts, notes)
    if facts.own_length_s is not None:
        train_time_s = min(facts.own_length_s, facts.own_length_s if train_time_s is None else train_time_s)
    ladder = ladder_for(
        race_s, train_time_s, eval_s=eval_s or 0.0, rung_s=facts.rung_s, resumes=facts.resumes, at_once=workers
    )
    horizon = full_trials = seeds = None
    if step_s is not None:
        try:
            horizon = horizon_s(
                race_s,
                train_time_s,
                eval_s=eval_s or 0.0,
                baseline_step_s=step_s,
                least_s=facts.least_s,
                rung_s=facts.rung_s,
                rungs=len(ladder.shares),
                repeats=ladder.repeats(resumes=facts.resumes),
                spent_s=opened_s,
                at_once=workers,
            )
        except BudgetTooShort as short:
            notes.append(f"nothing would be compared, only measured: {short}")
    if horizon is not None:
        settings = SearchSettings()
        ladder = ladder.beyond(facts.peak_lr_fraction)
        trial_s = ladder.repeats(resumes=facts.resumes) * horizon + len(ladder.shares) * (eval_s or 0.0)
        full_trials = workers * race_s / trial_s
        seeds = 1 if workers == 1 and full_trials < FEW_EQUIVALENTS else settings.confirmations
    ceiling = useful_ceiling(facts)
    does: dict[Stage, str] = {
        "profile": "time batch sizes up to that one",
        "range test": f"{FEWEST_SWEEP_STEPS} to {MOST_SWEEP_STEPS} steps at the knee, or none",
    }
    does |= {stage: f"nothing: {why}" for stage, why in facts.without.items()}
    stages = (
        StageTime(stage="start-up", seconds=opened_s, is_most=False, does="open and check the task, as just now"),
        StageTime(
            stage="memory",
            seconds=memory,
            is_most=True,
            does=f"look for the largest micro-batch, up to {ceiling.size:,}",
        ),
        StageTime(stage="profile", seconds=profile, is_most=True, does=does["profile"]),
        StageTime(
            stage="range test",
            seconds=sweep,
            is_most=True,
            does=does["range test"],
        ),
        StageTime(stage="race", seconds=race_s, is_most=False, does="train trials, and what was best on fresh seeds"),
        StageTime(
            stage="report", seconds=report_reserve_s(ledger.budget_s), is_most=True, does="write and draw the answer"
        ),
    )
    return DryRun(
        facts=facts,
        device=device,
        budget_s=ledger.budget_s,
        train_time_s=train_time_s,
        workers=workers,
        search=search,
        seed=seed,
        max_trials=max_trials,
        stages=stages,
        step_s=None if "profile" in facts.without else step_s,  # a unit to count in, and no time
        eval_s=eval_s,
        horizon_s=horizon,
        full_trials=full_trials,
        fresh_seeds=seeds,
        notes=tuple(notes),
    )


def _step_s(runner: Runner, facts: TaskFacts, notes: list[str]) -> float | None:
    """Seconds of an optimizer step of the baseline; None where it does not run, which is noted."""
    own = facts.baseline.plan
    if (why := facts.without.get("profile")) is not None:  # as the run counts where no speed is known
        return optimizer_step_s(own, assumed_curve(own, why))
    probe = runner.probe(replace(facts.smallest_plan, batch_size=own.batch_size))
    if probe.outcome != "ok" or not probe.step_s:
        notes.append(
            f"A batch of {own.batch_size} did not run ({outcome_text(probe.outcome)}), so T is not known yet: the run "
            "splits it into micro-batches that fit."
        )
        return None
    return probe.step_s[-1] * own.accumulation_steps


def _eval_s(runner: Runner, facts: TaskFacts, notes: list[str]) -> float | None:
    """Seconds of an evaluation; None where the validation data has no length and may not end, which is noted."""
    if facts.val_size is None and facts.typed is None:
        notes.append("The validation data has no length, so an evaluation was not timed: the run does that.")
        return None
    batch = facts.baseline.plan.batch_size
    return runner.time_evaluation(batch if facts.val_size is None else min(batch, facts.val_size))
