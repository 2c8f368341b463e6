"""How good is what the search finds? Races on tables of trials that were run, so that a race takes milliseconds.

    python benchmarks/replay.py --tables DIR [--seeds 20] [--searches ...] [--baseline own|best|near]
        [--noise 2.5] [--json OUT]

A table holds the score of a task over batch size, learning rate, seed and share of the schedule
(`autobatch.simulated.replay.ReplayRunner` says how it is read). On it runs the search itself, nothing of which is
copied here, on a clock that the table moves: range test, baseline, warm starts, rungs, confirmation on fresh seeds, all
charged. Beside it run searches as people write them with Optuna alone: full-length trials over the same batch sizes and
rates, the best one observed is the answer.

Regret is the best mean score in the table less the mean score of what was chosen, as the table knows it from all of its
seeds; the search never sees that. "recovered" is the share of the gap from the baseline to the best that was closed,
which compares tables of any unit; "bias" is what was reported less what is true; "worse" the share of races whose
choice is truly worse than the baseline by more than a standard error of the table. `--baseline best` puts the baseline
into the table's best cell, `--baseline near` into the cell closest to one standard deviation of a seed below it: there
is then nothing to win, and the question is what is lost. `--noise 2.5` makes what a seed changes 2.5 times as large for
the search, and leaves the truth as it is: for tasks whose settings differ less than their seeds do. The same figures
come out everywhere, but for the last one: milliseconds of this machine for each decision.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from autobatch._version import __version__
from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.searching.budget.ledger import REPORT_MOST_S, REPORT_SHARE, Ledger
from autobatch.searching.schedulers.table import SEARCHES as OURS
from autobatch.searching.search import SearchResult, SearchSettings, search
from autobatch.searching.space import closest
from autobatch.simulated.replay import ReplayRunner

BUDGETS = (8, 16, 32)
SWEEP_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One search on one table, and what its answer is worth. Scores are oriented so that higher is better.

    Attributes:
        equivalents: the budget, in full trials.
        truth, best, baseline: mean scores of what was chosen, of the best there is, of the baseline.
        reported: what the search says that its choice scores; None where it says nothing.
        stderr: standard error of a mean score in the table, pooled over its cells.
        trials: configurations tried.
        decision_s: seconds for each of them, training left out.
    """

    search: str
    table: str
    seed: int
    equivalents: int
    truth: float
    best: float
    baseline: float
    reported: float | None
    stderr: float
    trials: int
    decision_s: float

    @property
    def regret(self) -> float:
        """Best less chosen."""
        return self.best - self.truth

    @property
    def recovered(self) -> float:
        """Share of the way from the baseline to the best; where the baseline is the best, 1 if what was chosen is as
        good and 0 if it is worse.
        """
        gap = self.best - self.baseline
        return (self.truth - self.baseline) / gap if gap > 0 else float(self.truth >= self.baseline)

    @property
    def is_worse(self) -> bool:
        """Whether the choice is truly worse than the baseline, beyond what the table can tell."""
        return self.truth < self.baseline - self.stderr


def ends(table: dict[str, Any]) -> dict[tuple[int, float], list[float]]:
    """The scores at the end of the schedule, higher is better, for each (batch size, rate) that never diverged."""
    sign = 1 if table["direction"] == "maximize" else -1
    return {
        (batch, lr): [sign * seed[-1] for seed in cell]
        for batch, row in zip(table["batch_sizes"], table["score"], strict=True)
        for lr, cell in zip(table["lrs"], row, strict=True)
        if all(seed[-1] is not None for seed in cell)
    }


def seed_sd(table: dict[str, Any]) -> float:
    """Standard deviation of a full-length score between seeds, pooled over the better half of the cells."""
    cells = sorted(ends(table).values(), key=fmean, reverse=True)
    return math.sqrt(fmean(stdev(cell) ** 2 for cell in cells[: math.ceil(len(cells) / 2)]))


def with_baseline(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The table with its baseline in the best cell ("best"), or in one a seed's deviation below it ("near").

    Best is what races are judged by (`ReplayRunner.truths`), so that beside the best there is nothing to win.
    """
    if where == "own":
        return table
    sign = 1 if table["direction"] == "maximize" else -1
    means = {cell: sign * truth for cell, truth in ReplayRunner(table=table).truths().items()}
    aim = max(means.values()) - (seed_sd(table) if where == "near" else 0.0)
    batch, lr = min(means, key=lambda cell: abs(means[cell] - aim))
    return table | {"baseline": {"batch_size": batch, "lr": lr}}


def with_noise(table: dict[str, Any], factor: float) -> dict[str, Any]:
    """The table with each score that trials see `factor` times as far from the mean of its cell at its rung.

    The truth stays where it is: it is the mean, or of seeds that no trial sees. Only a cell that diverged under some
    seed is judged by the worst score there is, which goes down.
    """
    if factor == 1:
        return table
    runner = ReplayRunner(table=table)

    def louder(cell: list[list[float | None]]) -> list[list[float | None]]:
        shown = runner.shown(cell)
        means = [mean_of([score for score in scores if score is not None]) for scores in zip(*shown, strict=True)]
        return [
            [
                score if score is None else mean + factor * (score - mean)
                for score, mean in zip(seed, means, strict=True)
            ]
            for seed in shown
        ] + cell[len(shown) :]

    return table | {"score": [[louder(cell) for cell in row] for row in table["score"]]}


def curve_of(batch_sizes: Sequence[int], step_time_s: Sequence[float]) -> ThroughputCurve:
    """The throughput profile that these step times are."""
    times = zip(batch_sizes, step_time_s, strict=True)
    return ThroughputCurve(
        measurements=tuple(Measurement(plan=Plan(batch_size=b), outcome="ok", step_s=(s, s, s)) for b, s in times)
    )


def searched(table: dict[str, Any], equivalents: int, settings: SearchSettings) -> SearchResult:
    """The product's search on a table, everything charged but for the largest batch and the profile."""
    runner = ReplayRunner(table=table)
    seconds = equivalents * table["full_trial_s"]
    ledger = Ledger(min(seconds / (1 - REPORT_SHARE), seconds + REPORT_MOST_S) * (1 + 1e-6), runner.clock)
    curve = curve_of(table["batch_sizes"], table["step_time_s"])
    with ledger.charge("range test"):
        sweep = find_lr_curve(runner, Plan(batch_size=curve.knee_batch_size), steps=SWEEP_STEPS, seed=settings.seed)
    return search(
        runner,
        ledger,
        curve,
        max_batch=table["batch_sizes"][-1],
        horizon_s=table["full_trial_s"],
        eval_s=0.0,
        eval_batch_size=1,
        lr_hint=sweep.suggestion,
        lr_diverged=sweep.diverged_at,
        settings=settings,
    )


def ours(
    table: dict[str, Any], seed: int, equivalents: int, lrs: tuple[float, ...], sampler: str
) -> tuple[Config, float | None, int]:
    """The product's search: the choice, its reported score, and how many configurations were tried."""
    result = searched(table, equivalents, SearchSettings(seed=seed, sampler=sampler, lrs=lrs))
    return result.chosen, result.score.mean if result.score else None, len(result.trials)


def stock(
    table: dict[str, Any], seed: int, equivalents: int, lrs: tuple[float, ...], make: Callable[[int], BaseSampler]
) -> tuple[Config, float | None, int]:
    """Optuna as it comes: a full-length trial for each configuration, the best one observed is the answer."""
    runner = ReplayRunner(table=table)
    low, high = (int(math.log2(table["batch_sizes"][end])) for end in (0, -1))
    study = optuna.create_study(direction=table["direction"], sampler=make(seed))
    configs = []
    for number in range(equivalents):
        trial = study.ask()
        batch, lr = (
            2 ** trial.suggest_int("log2_batch", low, high),
            trial.suggest_float("lr", *lr_range(table), log=True),
        )
        config = Config(plan=Plan(batch_size=batch), lr=closest(lrs, lr) if lrs else lr)
        score = runner.score(config, 1.0, seed * 10_007 + number)
        study.tell(trial, runner.worst() if score is None else score)  # what is told NaN is hidden from samplers
        configs.append(config)
    return configs[study.best_trial.number], study.best_value, equivalents


def lr_range(table: dict[str, Any]) -> tuple[float, float]:
    """The lowest and highest learning rate tabulated."""
    return table["lrs"][0], table["lrs"][-1]


def lr_grid(table: dict[str, Any], parts: int) -> tuple[float, ...]:
    """The tabulated learning rates with each interval between two of them cut into `parts`; none for no grid."""
    lrs = table["lrs"]
    between = [low * (high / low) ** (part / parts) for low, high in pairwise(lrs) for part in range(parts)]
    return (*between, lrs[-1]) if parts else ()


SEARCHES: dict[str, Callable[[dict[str, Any], int, int, tuple[float, ...]], tuple[Config, float | None, int]]] = {
    **{name: partial(ours, sampler=name) for name in OURS},
    "optuna TPE": partial(stock, make=lambda seed: TPESampler(seed=seed)),
    "optuna random": partial(stock, make=lambda seed: RandomSampler(seed=seed)),
    "optuna GP": partial(stock, make=lambda seed: GPSampler(seed=seed)),
}


def run_race(
    name: str, path: Path, where: str, seed: int, equivalents: int, parts: int = 0, noise: float = 1.0
) -> Race:
    """One race, judged by the table's truth; see `lr_grid` for `parts`, `with_noise` for `noise`."""
    runner = ReplayRunner.load(path)
    stderr = seed_sd(runner.table) / math.sqrt(
        runner.table.get("truth_seeds") or max(map(len, ends(runner.table).values()))
    )
    runner.table = table = with_baseline(with_noise(runner.table, noise), where)
    sign = 1 if table["direction"] == "maximize" else -1
    started = time.perf_counter()
    chosen, reported, trials = SEARCHES[name](table, seed, equivalents, lr_grid(table, parts))
    baseline = table["baseline"]
    return Race(
        search=name,
        table=path.stem,
        seed=seed,
        equivalents=equivalents,
        truth=sign * runner.truth(chosen),
        best=sign * runner.best(),
        baseline=sign * runner.truth(Config(plan=Plan(batch_size=baseline["batch_size"]), lr=baseline["lr"])),
        reported=None if reported is None else sign * reported,
        stderr=stderr,
        trials=trials,
        decision_s=(time.perf_counter() - started) / trials,
    )


def run_quietly(race: tuple[str, Path, str, int, int, int, float]) -> Race:
    """`run_race` in a worker process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return run_race(*race)


def mean_of(values: Sequence[float]) -> float:
    """Their mean; not a number where there are none."""
    return fmean(values) if values else math.nan


def summary(races: Sequence[Race]) -> dict[str, float]:
    """The figures of a row: in units of the score, but for shares and milliseconds."""
    regrets = [race.regret for race in races]
    tables = sorted({race.table for race in races})
    # Races on one table share its cells: what differs from task to task is what a mean over tasks is uncertain by.
    by_table = [fmean(race.regret for race in races if race.table == table) for table in tables]
    return {
        "regret": fmean(regrets),
        "regret_se_of_seeds": stdev(regrets) / math.sqrt(len(regrets)) if len(regrets) > 1 else math.nan,
        "regret_se_of_tables": stdev(by_table) / math.sqrt(len(by_table)) if len(by_table) > 1 else math.nan,
        "regret_p90": quantiles(regrets, n=10, method="inclusive")[-1] if len(regrets) > 1 else regrets[0],
        "recovered": fmean(race.recovered for race in races),
        "bias": mean_of([race.reported - race.truth for race in races if race.reported is not None]),
        "worse": fmean(race.is_worse for race in races),
        "trials": fmean(race.trials for race in races),
        "decision_ms": 1000 * fmean(race.decision_s for race in races),
    }


def print_table(races: Sequence[Race], budgets: Sequence[int]) -> None:
    """A row for each search and budget; regret and bias in hundredths of the score's unit (points of accuracy)."""
    head = ("regret", "+-", "p90", "recovered", "bias", "worse", "ms")
    print(
        f"{'search':14} {'trials':>6}",
        *(f"{word:>{width}}" for word, width in zip(head, (7, 5, 6, 9, 6, 6, 6), strict=True)),
    )
    for name in dict.fromkeys(race.search for race in races):
        for budget in budgets:
            row = summary([race for race in races if (race.search, race.equivalents) == (name, budget)])
            print(
                f"{name:14} {budget:6} {100 * row['regret']:7.3f} {100 * row['regret_se_of_seeds']:5.3f} "
                f"{100 * row['regret_p90']:6.2f} {row['recovered']:9.1%} {100 * row['bias']:6.2f} {row['worse']:6.1%} "
                f"{row['decision_ms']:6.1f}"
            )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="JSON files, or folders of them")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="in full trials")
    parser.add_argument(
        "--searches", nargs="+", choices=list(SEARCHES), default=["auto", "freeze-thaw", "tpe", "optuna TPE"]
    )
    parser.add_argument("--baseline", choices=["own", "best", "near"], default="own")
    parser.add_argument(
        "--lr-parts",
        type=int,
        default=0,
        metavar="N",
        help="parts that each interval between two tabulated rates is cut into; 0: any rate",
    )
    parser.add_argument("--noise", type=float, default=1.0, metavar="FACTOR", help="times what a seed changes")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--by-table", action="store_true", help="each table's figures too")
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()

    paths = [file for path in asked.tables for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    work = [
        (name, path, asked.baseline, seed, budget, asked.lr_parts, asked.noise)
        for name in asked.searches
        for path in paths
        for seed in range(asked.seeds)
        for budget in asked.budgets
    ]
    with get_context("spawn").Pool(asked.jobs) as pool:
        races = pool.map(run_quietly, work, chunksize=4)
    for path in paths if asked.by_table else []:
        print(path.stem)
        print_table([race for race in races if race.table == path.stem], asked.budgets)
    if asked.by_table:
        print("all tables")
    print_table(races, asked.budgets)
    if asked.json:
        said = {
            "command": " ".join(sys.argv),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"autobatch": __version__, "optuna": optuna.__version__, "python": platform.python_version()},
            "tables": [path.stem for path in paths],
            "baseline": asked.baseline,
            "lr_parts": asked.lr_parts,
            "noise": asked.noise,
            "rows": [
                {
                    "search": name,
                    "equivalents": budget,
                    **summary([r for r in races if (r.search, r.equivalents) == (name, budget)]),
                }
                for name in asked.searches
                for budget in asked.budgets
            ],
            "races": [asdict(race) for race in races],
        }
        asked.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
