"""How far does one coordinator reach? The product's own race with 1 to 256 simulated workers on a virtual clock.

    python benchmarks/scale.py [--workers 1 4 16 64 256] [--searches auto tpe] [--seeds 3] [--json OUT]

Training is a formula and takes no time here, so what the clock of this machine measures is the coordinator alone: what
to train next, and the record of it, every line of the journal synchronised to the disk. Two questions, a table each:

**The same time.** As much clock as 16 full trials of one worker, whatever their number. "decisions/s" is how many rungs
the coordinator sets off in a second of its own time, "the last" how long the last tenth of the decisions took each;
"idle" the share of the workers' time in which they had nothing to train. Neither counts the time that a worker waits
for a decision: "keeps up with" is the number of workers that would be kept busy by so many decisions a second, if a
rung took a minute.

**The same work.** As many full trials as 64 in all, shared out: what is lost by deciding before others have come in.
Regret is in points of the formula's score (the best is 95), the mean over the seeds, each with an optimum of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from provenance import about

from autobatch.core.plan import Config, Plan
from autobatch.measuring.profiling import profile
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.search import Event, SearchSettings, StudyRecord, horizon_s, search
from autobatch.simulated.sim import Landscape, SimRunner, draw

sys.path.append(str(Path(__file__).parents[1]))  # where the tests' helpers are, if it is run from elsewhere
from tests.helpers.sim_crew import SimCrew

CLOCK_TRIALS, WORK_TRIALS = 16, 64
TRIAL_S = 60.0  # of a full one, on the virtual clock
RUNG_S = 60.0  # of the rungs that "keeps up with" supposes


@dataclass(slots=True, kw_only=True)
class Race:
    """One race, and what it cost its coordinator."""

    workers: int
    search: str
    seed: int
    trials: int
    segments: int
    regret: float
    idle: float
    coordinator_s: float
    last_s: float
    record_s: float
    journal_bytes: int


def race(workers: int, search_name: str, seed: int, clock_s: float, folder: Path) -> Race:
    """A race of so many workers in `clock_s` virtual seconds."""
    rng = draw("scale", seed)
    landscape = Landscape(best_batch=2 ** rng.randint(6, 10), best_lr=10 ** rng.uniform(-3.5, -1.5))
    runner = SimRunner(landscape=landscape)
    runner.known = replace(runner.known, baseline=Config(plan=Plan(batch_size=32), lr=1e-3))
    curve: ThroughputCurve = profile(runner, Plan(batch_size=1), max_batch=1024, budget_s=1.0)
    ledger = Ledger(clock_s, runner.clock)
    crew = SimCrew(runner, runner.clock, workers)
    told: list[float] = []

    def watch(event: Event) -> None:
        if event.kind == "segment started":
            told.append(time.perf_counter())

    # Counted apart, as disks differ: what the record takes of the coordinator's time.
    record = StudyRecord(folder / f"{search_name}-{workers}-{seed}.journal", "scale", "maximize")
    recording_s = 0.0
    save = record.save

    def timed_save(*args: Any) -> None:
        nonlocal recording_s
        began = time.perf_counter()
        save(*args)
        recording_s += time.perf_counter() - began

    record.save = timed_save  # type: ignore[method-assign, assignment]
    began, began_s = time.perf_counter(), runner.clock()
    result = search(
        runner,
        ledger,
        curve,
        max_batch=1024,
        horizon_s=min(TRIAL_S, horizon_s(clock_s, TRIAL_S, eval_s=runner.eval_s, baseline_step_s=0.003)),
        eval_s=runner.eval_s,
        eval_batch_size=256,
        settings=SearchSettings(seed=seed, sampler=search_name),
        record=record,
        on_event=watch,
        crew=crew,
    )
    took_s = time.perf_counter() - began
    tail = told[-max(2, len(told) // 10) :]
    chosen = result.chosen
    quiet = replace(landscape, noise=0.0)
    score = quiet(chosen, 1.0, 0)
    return Race(
        workers=workers,
        search=search_name,
        seed=seed,
        trials=len(result.trials),
        segments=len(runner.segments),
        regret=100 * (landscape.best_score - (score or 0.0)),
        idle=1 - crew.busy_s / (workers * (runner.clock() - began_s)),
        coordinator_s=took_s,
        last_s=(tail[-1] - tail[0]) / (len(tail) - 1),
        record_s=recording_s,
        journal_bytes=(folder / f"{search_name}-{workers}-{seed}.journal").stat().st_size,
    )


def summary(races: list[Race]) -> str:
    """One line of a table."""
    first = races[0]

    def mean(name: str) -> float:
        return fmean(getattr(one, name) for one in races)

    error = stdev(one.regret for one in races) / len(races) ** 0.5 if len(races) > 1 else math.nan
    per_s = mean("rungs") / mean("coordinator_s")
    return (
        f"{first.search:12} {first.workers:>7} {mean('trials'):>7.0f} {mean('segments'):>7.0f} {per_s:>11.1f} "
        f"{1000 * mean('last_s'):>9.1f} {mean('record_s') / mean('coordinator_s'):>7.0%} {per_s * RUNG_S:>10.0f} "
        f"{mean('idle'):>6.1%} {mean('regret'):>7.3f} ± {error:.3f} {mean('journal_bytes') / 2**20:>8.1f}"
    )


HEAD = (
    f"{'search':12} {'workers':>7} {'trials':>7} {'segments':>7} {'decisions/s':>11} {'last (ms)':>9} {'record':>7} "
    f"{'keeps up':>10} {'idle':>6} {'regret':>15} {'MiB':>8}"
)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description="one coordinator, many simulated workers")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64, 256])
    parser.add_argument("--searches", nargs="*", default=["auto", "tpe"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for question, clock in (
            ("the same time", lambda workers: CLOCK_TRIALS * TRIAL_S),
            ("the same work", lambda workers: WORK_TRIALS * TRIAL_S / workers),
        ):
            print(f"{question}\n{HEAD}")
            for search_name in options.searches:
                for workers in options.workers:
                    # Less than four trials one after the other is no race: the baseline and the fresh seeds are two.
                    if clock(workers) < 4 * TRIAL_S:
                        continue
                    folder = Path(name) / question.replace(" ", "-")
                    races = [race(workers, search_name, seed, clock(workers), folder) for seed in range(options.seeds)]
                    print(summary(races), flush=True)
                    found.setdefault(question, []).extend(
                        {name: getattr(one, name) for name in Race.__slots__} for one in races
                    )
    if options.json is not None:
        options.json.write_text(json.dumps(about("optuna", "numpy") | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
