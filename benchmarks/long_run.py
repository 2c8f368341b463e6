"""What is a forecast beyond T worth? Searches at T on tables, and what the same settings do after a longer training.

    python benchmarks/long_run.py --tables DIR [DIR ...] [--long DIR] [--seeds 8] [--searches auto] [--json OUT]
    python benchmarks/long_run.py --tasks TASK.py [TASK.py ...] [--budget 60s] [--fresh 3] [--json OUT]

With `--tasks` it is all real: `autobatch tune` with a training time of 4 T, and then the recommendation, the same with
the learning rate that is suggested for 4 T, and the baseline, each trained for 4 T under fresh seeds.

On tables there are two ways to have a later truth. Each is searched at a quarter of its schedule, and the truth is
read off its end: that is a longer training where the rate is constant, and where it decays it is not, since the search
then saw only what comes before the decay. With `--long` a table that another of the same name in that folder continues,
made by `build_table.py` with a longer `--train-time`, is searched as it is, and the truth is read off the longer one,
whose schedule is as long as its training.

For each group of such cases: the share of later leads within the interval, which should hold 90 %; the chance that was
given to the choice of being ahead, and how often it was; the same for the best learning rate at the batch size of the
choice, how far the suggestion and the unchanged rate are from it (in factors: mean of the logarithm's size, e to that),
and what either loses against it, as a share of the way from the baseline to the best. The rank column is the share of
pairs in the same order at T/2 and at T, beside that at T and later.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import optuna
from replay import mean_of, searched

from autobatch.core.plan import Config, Plan
from autobatch.core.units import parse_duration
from autobatch.searching.search import Ladder, SearchResult, SearchSettings
from autobatch.searching.verdict.long_run import look_ahead
from autobatch.simulated.replay import ReplayRunner

CUT = 1 / 4  # the share of a table's schedule that stands for T
EQUIVALENTS = 16
# Tables whose tasks train at one rate to the end; all others let it decay to nearly nothing.
CONSTANT = ("digits-adamw-constant", "digits-sgd-constant", "tabular")
WARM_UP = 0.05  # of the schedule, in tables that say "cosine" and not where the rate peaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """A forecast of a lead and what came; in units of the score, positive where the choice is better."""

    against: str
    at_T: float
    expected: float
    low: float
    high: float
    ahead: float
    truth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One search and what the longer training made of it.

    Attributes:
        group: which kind of truth.
        doublings: how much longer it was.
        leads: over the baseline and over the runner-up.
        chosen_lr, lr, low, high, slope, measured, stderr: the rate at T, and what was suggested.
        best_lr: of the batch size of the choice, later.
        loss_unchanged, loss_suggested: against the best rate at that batch size, as shares of the way from the
            baseline to the best.
        kept, kept_later: shares of pairs in the same order at T/2 and T, and at T and later; None without a pair.
    """

    table: str
    group: str
    seed: int
    doublings: float
    leads: tuple[Lead, ...]
    chosen_lr: float
    lr: float
    low: float
    high: float
    slope: float
    measured: float | None
    stderr: float | None
    best_lr: float
    loss_unchanged: float
    loss_suggested: float
    kept: float | None
    kept_later: float | None


def cut(table: dict[str, Any], share: float) -> dict[str, Any]:
    """The table of trials that end after `share` of the schedule."""
    kept = [index for index, rung in enumerate(table["rungs"]) if rung <= share]
    peak = table.get("peak_lr_fraction", WARM_UP if table.get("scheduler") == "cosine" else 0.0)
    return table | {
        "full_trial_s": table["full_trial_s"] * share,
        "rungs": [table["rungs"][index] / share for index in kept],
        "peak_lr_fraction": min(1.0, peak / share),
        "score": [[[[seed[i] for i in kept] for seed in cell] for cell in row] for row in table["score"]],
    }


def ladder_of(table: dict[str, Any]) -> Ladder:
    """T/8, T/2 and T; T/4 for the first where the table holds none so early."""
    first = 1 / 8 if table["rungs"][0] <= 1 / 8 else 1 / 4
    return Ladder(shares=(first, 1 / 2, 1.0))


def best_lr(runner: ReplayRunner, batch: int) -> float:
    """The best rate at a batch size: the top of the parabola through the best tabulated one and its neighbours."""
    table = runner.table
    sign = 1 if table["direction"] == "maximize" else -1
    lrs = table["lrs"]
    truths = [sign * runner.truth(Config(plan=Plan(batch_size=batch), lr=lr)) for lr in lrs]
    top = max(range(len(lrs)), key=truths.__getitem__)
    if not 0 < top < len(lrs) - 1:
        return float(lrs[top])
    left, middle, right = truths[top - 1 : top + 2]
    bend = left - 2 * middle + right
    return float(lrs[top] * (lrs[top + 1] / lrs[top]) ** (0.5 * (left - right) / bend if bend < 0 else 0.0))


def study(work: tuple[str, str, dict[str, Any], dict[str, Any], float, int, str]) -> Case:
    """One search at T on the first table, judged by the second."""
    name, group, table, later, doublings, seed, sampler = work
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    ladder = ladder_of(table)
    result = searched(table, EQUIVALENTS, SearchSettings(seed=seed, sampler=sampler, ladder=ladder))
    better = result.history.oriented
    found = look_ahead(result, result.horizon_s * 2.0**doublings)
    runner = ReplayRunner(table=later)
    truth = {trial.config: better(runner.truth(trial.config)) for trial in result.trials}
    batch = result.chosen.plan.effective_batch_size

    def at(lr: float) -> float:
        return better(runner.truth(Config(plan=Plan(batch_size=batch), lr=lr)))

    leads = []
    for forecast in found.forecasts:
        other = next(
            config
            for config in truth
            if config.lr == forecast.lr and config.plan.effective_batch_size == forecast.batch_size
        )
        leads.append(
            Lead(
                against=forecast.against,
                at_T=forecast.lead,
                expected=forecast.expected,
                low=forecast.low,
                high=forecast.high,
                ahead=forecast.ahead,
                truth=truth[result.chosen] - truth[other],
            )
        )
    best = best_lr(runner, batch)
    baseline = next(trial.config for trial in result.trials if trial.role == "baseline")
    gap = better(runner.best()) - truth[baseline]
    top = max(at(lr) for lr in (*later["lrs"], best))
    kept = [pair.kept for pair in found.stability if (pair.early, pair.late) == (1 / 2, 1.0)]
    return Case(
        table=name,
        group=group,
        seed=seed,
        doublings=doublings,
        leads=tuple(leads),
        chosen_lr=result.chosen.lr,
        lr=found.lr.lr,
        low=found.lr.low,
        high=found.lr.high,
        slope=found.lr.slope,
        measured=found.lr.measured,
        stderr=found.lr.stderr,
        best_lr=best,
        loss_unchanged=(top - at(result.chosen.lr)) / gap,
        loss_suggested=(top - at(found.lr.lr)) / gap,
        kept=kept[0] if kept else None,
        kept_later=kept_later(result, truth),
    )


def kept_later(result: SearchResult, truth: dict[Config, float]) -> float | None:
    """The share of pairs of full-length trials whose order at T is that of the truth later."""
    full = [t for t in result.trials if t.role != "confirmation" and t.final_score is not None]
    signs = [
        result.history.oriented(one.scores[-1][1] - other.scores[-1][1]) * (truth[one.config] - truth[other.config])
        for one, other in combinations(full, 2)
    ]
    return fmean(1.0 if sign > 0 else 0.5 if sign == 0 else 0.0 for sign in signs) if signs else None


def summary(cases: Sequence[Case]) -> dict[str, Any]:
    """The figures of a group."""
    row: dict[str, Any] = {"cases": len(cases)}
    for against in ("baseline", "runner-up"):
        leads = [lead for case in cases for lead in case.leads if lead.against == against]
        row[against] = {
            "leads": len(leads),
            "held": mean_of([float(lead.low <= lead.truth <= lead.high) for lead in leads]),
            "said_ahead": mean_of([lead.ahead for lead in leads]),
            "was_ahead": mean_of([float(lead.truth > 0) + 0.5 * float(lead.truth == 0) for lead in leads]),
            "error": median([abs(lead.expected - lead.truth) for lead in leads]) if leads else math.nan,
            "error_unchanged": median([abs(lead.at_T - lead.truth) for lead in leads]) if leads else math.nan,
        }
    row["lr"] = {
        "held": mean_of([float(case.low <= case.best_lr <= case.high) for case in cases]),
        "off": math.exp(mean_of([abs(math.log(case.lr / case.best_lr)) for case in cases])),
        "off_unchanged": math.exp(mean_of([abs(math.log(case.chosen_lr / case.best_lr)) for case in cases])),
        "shift": mean_of([math.log(case.best_lr / case.chosen_lr) / case.doublings for case in cases]),
        "slope": mean_of([case.slope for case in cases]),
        "loss": mean_of([case.loss_suggested for case in cases]),
        "loss_unchanged": mean_of([case.loss_unchanged for case in cases]),
    }
    row["kept"] = mean_of([case.kept for case in cases if case.kept is not None])
    row["kept_later"] = mean_of([case.kept_later for case in cases if case.kept_later is not None])
    return row


def print_row(name: str, row: dict[str, Any]) -> None:
    """A line of the table."""
    cells = [f"{name:34} {row['cases']:5}"]
    for against in ("baseline", "runner-up"):
        lead = row[against]
        cells.append(f"{lead['held']:5.0%} {lead['said_ahead']:5.0%} {lead['was_ahead']:5.0%}")
        cells.append(f"{100 * lead['error']:7.2f} {100 * lead['error_unchanged']:7.2f}")
    lr = row["lr"]
    cells.append(
        f"{lr['held']:5.0%} {lr['off']:5.2f} {lr['off_unchanged']:5.2f} {lr['shift']:+6.2f} {lr['slope']:+6.2f}"
    )
    cells.append(f"{lr['loss']:6.1%} {lr['loss_unchanged']:6.1%}  {row['kept']:5.0%} {row['kept_later']:5.0%}")
    print("  ".join(cells))


def print_table(cases: Sequence[Case]) -> None:
    """A line for each table, and for each group."""
    print(
        f"{'':34} {'cases':>5}  {'lead over the baseline':^31}  {'over the runner-up':^31}  "
        f"{'best learning rate':^34}  {'loses':^13}  {'rank kept':^11}"
    )
    lead = f"{'held':>5} {'said':>5} {'was':>5}  {'error':>7} {'as at T':>7}"
    print(
        f"{'':40}  {lead}  {lead}  {'held':>5} {'off':>5} {'as at T':>7} {'shift':>4} {'slope':>6}  "
        f"{'':>6} {'as at T':>6}  {'to T':>5} {'later':>5}"
    )
    for group in dict.fromkeys(case.group for case in cases):
        inside = [case for case in cases if case.group == group]
        for table in dict.fromkeys(case.table for case in inside):
            print_row(f"  {table}", summary([case for case in inside if case.table == table]))
        print_row(group, summary(inside))


def really(path: Path, budget_s: float, fresh: int) -> dict[str, Any]:
    """`tune` on a task at T, and what it said of 4 T beside what 4 T of training came to."""
    from tune_peers import EQUIVALENTS as TRIALS  # here: it brings torch, which no table needs
    from tune_peers import FRESH_SEED, LONGER, Answer, enter, step_times

    import autobatch

    field = enter(path, budget_s, step_times(path))
    with tempfile.TemporaryDirectory() as folder:
        report = autobatch.tune(
            path, budget=budget_s, train_time=LONGER * budget_s / TRIALS, run_dir=Path(folder) / "run"
        )
    found = report.long_run
    assert found is not None
    suggested = Config(plan=report.config.plan, lr=found["lr"]["lr"])
    seeds = [FRESH_SEED + index for index in range(fresh)]

    def trained(config: Config) -> list[float]:
        answer = Answer(task=field.task, config=config)
        return [field.train(answer, seed, report.train_time_s or math.nan) for seed in seeds]

    scores = {
        "chosen": trained(report.config),
        "suggested": trained(suggested),
        "baseline": trained(report.baseline_plan),
    }
    row = {
        "task": path.stem,
        "horizon_s": report.horizon_s,
        "train_time_s": report.train_time_s,
        "chose_baseline": report.chose_baseline,
        "batch_size": report.config.plan.effective_batch_size,
        "lr": report.config.lr,
        "long_run": found,
        "scores": scores,
    }
    print(f"{path.stem}: T = {report.horizon_s:.2f} s, then {report.train_time_s:.2f} s, {report.direction}")
    for name, found_scores in scores.items():
        lr = {"chosen": report.config.lr, "suggested": suggested.lr, "baseline": report.baseline_plan.lr}[name]
        spread = stdev(found_scores) / math.sqrt(fresh) if fresh > 1 else math.nan
        print(f"  {name:10} lr {lr:<10.4g} {fmean(found_scores):.4f} +- {spread:.4f}")
    for one in found["forecasts"]:
        print(
            f"  lead over the {one['against']} (lr {one['lr']:.4g}): {one['lead']:.4f} at T, expected "
            f"{one['expected']:.4f}, {one['low']:.4f} to {one['high']:.4f}, ahead with {one['ahead']:.0%}"
        )
    print(f"  rate: {found['lr']}", flush=True)
    return row


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, nargs="+", default=[], help="JSON files, or folders of them")
    parser.add_argument("--tasks", type=Path, nargs="+", default=[], help="task files, trained for real")
    parser.add_argument("--budget", type=parse_duration, default=60.0, help="of each task's search")
    parser.add_argument("--fresh", type=int, default=3, help="seeds that judge an answer of a task")
    parser.add_argument("--long", type=Path, help="folder of the tables that continue some of them")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--searches", nargs="+", default=["auto"])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()

    real = [really(path, asked.budget, asked.fresh) for path in asked.tasks]
    paths = [file for path in asked.tables for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    work = []
    for path in paths:
        table = ReplayRunner.load(path).table
        kind = "constant rate, cut" if path.stem in CONSTANT else "decaying rate, cut"
        cases = [(kind, cut(table, CUT), table, math.log2(1 / CUT))]
        if asked.long and (asked.long / path.name).exists():
            later = ReplayRunner.load(asked.long / path.name).table
            cases.append(
                ("trained for longer", cut(table, 1.0), later, math.log2(later["full_trial_s"] / table["full_trial_s"]))
            )
        work += [
            (path.stem, *case, seed, search)
            for case in cases
            for search in asked.searches
            for seed in range(asked.seeds)
        ]
    with get_context("spawn").Pool(asked.jobs) as pool:
        cases_found = sorted(pool.map(study, work, chunksize=2), key=lambda case: case.group)
    if cases_found:
        print_table(cases_found)
    if asked.json:
        said = {
            "command": " ".join(sys.argv),
            "date": datetime.now(UTC).date().isoformat(),
            "tasks": real,
            "groups": {
                group: summary([case for case in cases_found if case.group == group])
                for group in dict.fromkeys(case.group for case in cases_found)
            },
            "cases": [asdict(case) for case in cases_found],
        }
        asked.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
