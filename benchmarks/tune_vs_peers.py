"""Does `tune` find better settings than others do in the same time? Real runs of real tasks on this machine.

    pip install -r benchmarks/peers.txt
    python benchmarks/tune_vs_peers.py [TASK.py ...] [--budget 60s] [--repeats 5] [--fresh 3] [--json OUT]
    python benchmarks/tune_vs_peers.py --summary A.json B.json

Each method gets the budget in wall time, start-up included for `autobatch tune`, which is a process of its own, and not
for the others, which run in this one and use a profile that they are not charged for:

- the baseline of the task file, which costs nothing;
- `autobatch tune` with each of its searches;
- Optuna's TPE over the space that `tune` would search, its range test charged: with full-length trials, and with the
  warm starts of `tune` and successive halving;
- Lightning's `scale_batch_size` and then `lr_find`, at their defaults;
- Schedule-Free AdamW and Prodigy at their defaults, in place of the task's optimizer, at the baseline's batch size.

All train for T, a twentieth of the budget, by the step times of one profile, with `--threads` threads. Each answer is
then trained by one neutral trainer under fresh seeds, the same for all, for T and for 4 T; the figures are means of
those scores over repeats, with the standard error over repeats (over seeds where there is but one). This process keeps
what it frees, as the workers of `tune` do, so that nobody's steps are slower for the heap's sake. A method that is not
installed is left out and told. One that raises, or whose answer cannot be trained, has ended with the baseline, which
is what its user would go on with: the message stands in its row, the traceback on stderr.

At the end, for T and for 4 T: whether `tune` is the best of all, itself aside, or within its own standard error of the
best on every task, and strictly the best on more than half of them, which is the goal.

`--json` holds each run as soon as it is over. Given a file that is there, what is in it is not run again: so a long
comparison may be made in pieces. Two may run at once, each on a core of its own and with a file of its own; `--summary`
prints what several files hold together. Pieces of one task should be apart by their repeats (`--first-repeat`): each
file has its own profile, by which all methods of its repeats are trained.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import optuna
import torch
from provenance import about
from tune_peers import EQUIVALENTS, FRESH_SEED, LONGER, METHODS, Answer, Field, enter, missing, step_times

from autobatch.core.files import write_json
from autobatch.core.units import parse_duration
from autobatch.devices.environment import keep_freed_memory

TASKS = sorted((Path(__file__).parent / "tasks").glob("[!_]*.py"))
SCHEMA = 2  # of the JSON file; the first had no number
TERMS = ("budget_s", "horizon_s", "fresh_seeds", "threads")  # what runs must share to be compared
HORIZONS = {"at_T": 1, "at_4T": LONGER}  # times T that an answer is trained for
OURS = tuple(method for method in METHODS if method.startswith("autobatch"))

Run = dict[str, Any]  # one method's answer in one repeat, as plain JSON values


def use_threads(threads: int) -> None:
    """Have every training take `threads` threads: those of this process, and those of the workers of `tune`.

    Workers are started with what `default_threads` reads from the environment.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def run(field: Field, method: str, repeat: int, fresh: int) -> Run:
    """One method's answer, and what the neutral trainer makes of it; the baseline's where the method failed.

    Raises:
        Exception: whatever the training of the baseline raises, which is no method's failure.
    """
    seeds = [FRESH_SEED + 100 * repeat + index for index in range(fresh)]
    seconds: float | None = None
    error: str | None = None
    begun = time.perf_counter()
    try:
        answer = METHODS[method][0](field, repeat)
        seconds = time.perf_counter() - begun
        if not math.isfinite(answer.config.lr):
            raise ValueError(f"a rate of {answer.config.lr} is no answer")
        scores = judged(field, answer, seeds)
    except Exception as raised:
        if method == "baseline":
            raise
        traceback.print_exc()  # it may be a fault of this comparison
        error = f"{type(raised).__name__}: {raised}"
    if seconds is None:
        seconds = time.perf_counter() - begun
    if error is not None:
        answer = METHODS["baseline"][0](field, repeat)
        scores = judged(field, answer, seeds)
    return {
        "method": method,
        "repeat": repeat,
        "error": error,
        "seconds": seconds,
        "trials": answer.trials,
        "batch_size": answer.config.plan.effective_batch_size,
        "lr": answer.config.lr,
        "why": list(answer.why),
        **scores,
    }


def judged(field: Field, answer: Answer, seeds: Sequence[int]) -> dict[str, list[float | None]]:
    """The scores of an answer for T and for 4 T under each seed; None where a training diverged."""
    found: dict[str, list[float | None]] = {}
    for at, times in HORIZONS.items():
        scores = [field.train(answer, seed, times * field.horizon_s) for seed in seeds]
        found[at] = [score if math.isfinite(score) else None for score in scores]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What a method comes to on a task.

    Attributes:
        mean: over repeats of the mean over seeds; not a number where a training diverged.
        stderr: of the mean, over repeats, or over seeds where there is one repeat; not a number where there is one of
            both, or no mean.
    """

    mean: float
    stderr: float

    @classmethod
    def of(cls, runs: Sequence[Run], at: str) -> Figure:
        """Of one method's runs on one task."""
        found = [[math.nan if score is None else score for score in run[at]] for run in runs]
        means = [fmean(scores) for scores in found]
        spread = means if len(means) > 1 else found[0]
        known = len(spread) > 1 and all(map(math.isfinite, spread))
        return cls(mean=fmean(means), stderr=stdev(spread) / math.sqrt(len(spread)) if known else math.nan)

    def is_near(self, best: float, sign: int) -> bool:
        """Whether it is the best or within its own standard error of it; `sign` is -1 where lower is better."""
        return sign * self.mean >= sign * best - (self.stderr if math.isfinite(self.stderr) else 0.0)


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method that has some, in the order of `METHODS`, by repeat."""
    ordered = sorted(runs, key=lambda run: int(run["repeat"]))
    return {method: of for method in METHODS if (of := [run for run in ordered if run["method"] == method])}


def sign_of(task: dict[str, Any]) -> int:
    """By which a score is multiplied so that higher is better."""
    return 1 if task["direction"] == "maximize" else -1


def best_of(figures: Iterable[Figure], sign: int) -> float:
    """The best mean; infinitely bad where every method diverged."""
    return sign * max((sign * figure.mean for figure in figures if math.isfinite(figure.mean)), default=-math.inf)


def print_table(name: str, task: dict[str, Any]) -> None:
    """A line for each method; a star marks the best, and what is within its own standard error of it."""
    sign = sign_of(task)
    methods = by_method(task["runs"])
    figures = {at: {method: Figure.of(of, at) for method, of in methods.items()} for at in HORIZONS}
    bests = {at: best_of(figures[at].values(), sign) for at in HORIZONS}
    print(f"\n{name} ({'higher' if sign > 0 else 'lower'} is better)")
    print(
        f"{'method':26} {'at T':>10} {'+-':>8} {f'at {LONGER} T':>10} {'+-':>8} {'runs':>5} {'failed':>6} "
        f"{'trials':>7} {'s':>6}  last answer"
    )
    for method, of in methods.items():
        cells = []
        for at, best in bests.items():
            figure = figures[at][method]
            cells.append(f"{figure.mean:>9.4f}{'*' if figure.is_near(best, sign) else ' '} {figure.stderr:>8.4f}")
        trials, seconds = fmean(run["trials"] for run in of), fmean(run["seconds"] for run in of)
        failed = sum(run["error"] is not None for run in of)
        print(
            f"{method:26} {' '.join(cells)} {len(of):>5} {failed:>6} {trials:>7.0f} {seconds:>6.1f}  "
            f"batch {of[-1]['batch_size']}, lr {of[-1]['lr']:.3g}"
        )
    for method, of in methods.items():
        for run in of:
            if run["error"] is not None:
                print(f"  {method}, repeat {run['repeat']}, failed and ended with the baseline: {run['error']}")
    if len({tuple(run["repeat"] for run in of) for of in methods.values()}) > 1:
        print("  not all methods have the same repeats: their means are not over the same seeds")


def verdict(tasks: dict[str, dict[str, Any]], method: str, at: str) -> str:
    """Whether one of ours reaches the goal at one horizon, in a line.

    The best is that of the others: our two searches are no rivals. Tasks that it, or none of them, was run on are out.
    """
    near: list[str] = []
    strictly: list[str] = []
    judged_on: list[str] = []
    for name, task in tasks.items():
        sign = sign_of(task)
        figures = {of: Figure.of(runs, at) for of, runs in by_method(task["runs"]).items()}
        others = [figure for of, figure in figures.items() if of not in OURS]
        if method not in figures or not others:
            continue
        judged_on.append(name)
        best = best_of(others, sign)
        if figures[method].is_near(best, sign):
            near.append(name)
        if sign * figures[method].mean > sign * best:
            strictly.append(name)
    missed = ", ".join(name for name in judged_on if name not in near)
    reached = not missed and 2 * len(strictly) > len(judged_on)
    return (
        f"{method}, {at.replace('_', ' ')}: best or within one standard error of best on {len(near)} of "
        f"{len(judged_on)} tasks (missed on {missed or 'none'}), strictly best on {len(strictly)} "
        f"({', '.join(strictly) or 'none'}): the goal is {'reached' if reached else 'missed'}"
    )


def print_summary(held: dict[str, Any], notes: Sequence[str] = ()) -> None:
    """The table of each task, and the lines about the goal."""
    tasks = {name: task for name, task in held["tasks"].items() if task["runs"]}
    print(
        f"budget {held['budget_s']:g} s, T = {held['horizon_s']:g} s, {held['fresh_seeds']} fresh seeds a repeat, "
        f"{held['threads']} threads in every training"
    )
    for note in notes:
        print(note)
    for name, task in tasks.items():
        print_table(name, task)
    print()
    for method in OURS:
        if any(run["method"] == method for task in tasks.values() for run in task["runs"]):
            for at in HORIZONS:
                print(verdict(tasks, method, at))
    sys.stdout.flush()


def read(path: Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        ValueError: it cannot be read, is no JSON, or is not of this schema.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(held, dict) or "tasks" not in held:
        raise ValueError(f"{path} was not written by this comparison")
    if (found := held.get("schema", 1)) != SCHEMA:
        raise ValueError(f"{path} is of schema {found}, and this reads {SCHEMA}: run it anew, into another file")
    return held


def joined(paths: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """What several files hold together, and in a sentence each how they differ.

    Raises:
        ValueError: one cannot be read, was made on other terms, or holds a run that one before it has.
    """
    whole = read(paths[0])
    notes: list[str] = []
    tasks = whole["tasks"]
    for path in paths[1:]:
        piece = read(path)
        for term in TERMS:
            if piece[term] != whole[term]:
                raise ValueError(f"{path} was made with {term} {piece[term]}, {paths[0]} with {whole[term]}")
        notes += [
            f"{path} was made with other {what} than {paths[0]}: {piece[what]}, not {whole[what]}"
            for what in ("machine", "versions")
            if piece[what] != whole[what]
        ]
        for name, task in piece["tasks"].items():
            if name not in tasks:
                tasks[name] = task
                continue
            runs = tasks[name]["runs"]
            known = {(run["method"], run["repeat"]) for run in runs}
            for run in task["runs"]:
                if (run["method"], run["repeat"]) in known:
                    raise ValueError(f"{path} holds {name}, {run['method']}, repeat {run['repeat']} once more")
            tasks[name]["runs"] = [*runs, *task["runs"]]
            shares = [seconds / tasks[name]["step_s"][size] for size, seconds in task["step_s"].items()]
            notes.append(f"{path} has its own profile of {name}: its steps take {fmean(shares):.2f} times as long")
    return whole, notes


def compare(asked: argparse.Namespace, held: dict[str, Any], methods: Sequence[str]) -> None:
    """Run what is asked for and not held, and keep each run as soon as it is over."""
    packages = ("optuna", *(needs for method in methods if (needs := METHODS[method][1])))
    tasks = held["tasks"]
    for path in asked.tasks:
        if path.stem not in tasks:
            step_s = {str(size): seconds for size, seconds in step_times(path).items()}
            tasks[path.stem] = {"step_s": step_s, "runs": []}
        kept = tasks[path.stem]
        field = enter(path, asked.budget, {int(size): seconds for size, seconds in kept["step_s"].items()})
        kept["direction"] = field.task.direction
        for repeat in range(asked.first_repeat, asked.first_repeat + asked.repeats):
            for method in methods:
                if any((one["method"], one["repeat"]) == (method, repeat) for one in kept["runs"]):
                    continue
                found = run(field, method, repeat, asked.fresh)
                kept["runs"].append(found)
                if asked.json:
                    write_json(asked.json, about(*packages) | held)
                failed = "" if found["error"] is None else f", of the baseline: {found['error']}"
                print(f"{path.stem}: {method}, repeat {repeat}: {found['at_T']}{failed}", file=sys.stderr, flush=True)


def main() -> None:
    """Run what the command line asks for and the file does not hold, or only print what files hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path, nargs="*", default=TASKS)
    parser.add_argument("--budget", type=parse_duration, default=60.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-repeat", type=int, default=0, help="number of the first repeat, which is its seed")
    parser.add_argument("--fresh", type=int, default=3, help="seeds that judge an answer")
    parser.add_argument("--threads", type=int, default=1, help="of every training, whatever the environment says")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="FILE", help="run nothing: print what these hold")
    asked = parser.parse_args()
    terms = dict(zip(TERMS, (asked.budget, asked.budget / EQUIVALENTS, asked.fresh, asked.threads), strict=True))
    held: dict[str, Any] = {"schema": SCHEMA} | terms | {"tasks": {}}
    try:
        if asked.summary:
            print_summary(*joined(asked.summary))
            return
        if asked.json and asked.json.exists():
            before = read(asked.json)
            for term, value in terms.items():
                if before[term] != value:
                    was = before[term]
                    raise ValueError(f"{asked.json} was made with {term} {was}, not {value}: give another file")
            held["tasks"] = before["tasks"]
    except ValueError as error:
        parser.error(str(error))
    use_threads(asked.threads)
    keep_freed_memory()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")  # the peers' own
    methods = [method for method in asked.methods if missing(method) is None]
    for method in asked.methods:
        if method not in methods:
            print(f"{method} is left out: {missing(method)} is not installed", file=sys.stderr)
    compare(asked, held, methods)
    print_summary(held)


if __name__ == "__main__":
    main()
