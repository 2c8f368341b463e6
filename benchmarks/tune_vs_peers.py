"""Does `tune` find better settings than others do in the same time? Real runs of real tasks on this machine.

    pip install -r benchmarks/peers.txt
    python benchmarks/tune_vs_peers.py [TASK.py ...] [--budget 60s] [--repeats 5] [--fresh 3] [--json OUT]

Each method gets the budget in wall time, start-up included for `autobatch tune`, which is a process of its own, and not
for the others, which run in this one and use a profile that they are not charged for:

- the baseline of the task file, which costs nothing;
- `autobatch tune` with each of its searches;
- Optuna's TPE over the same space with full-length trials, and with the baseline first and successive halving;
- Lightning's `scale_batch_size` and then `lr_find`, at their defaults;
- Schedule-Free AdamW and Prodigy at their defaults, in place of the task's optimizer, at the baseline's batch size.

All train for T, a twentieth of the budget, by the step times of one profile. Each answer is then trained by one neutral
trainer under fresh seeds, the same for all, for T and for 4 T; the figures are means of those scores over repeats, with
the standard error over repeats (over seeds where there is but one). This process keeps what it frees, as the workers of
`tune` do, so that nobody's steps are slower for the heap's sake. A method that is not installed is left out and told.

`--json` holds each run as soon as it is over. Given a file that is there, what is in it is not run again: so a long
comparison may be made in pieces, and two tasks at once, each with a file of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import optuna
import torch
from provenance import about
from tune_peers import EQUIVALENTS, FRESH_SEED, LONGER, METHODS, Field, enter, missing, step_times

from autobatch.devices.environment import keep_freed_memory
from autobatch.files import write_whole
from autobatch.units import parse_duration

TASKS = sorted((Path(__file__).parent / "tasks").glob("[!_]*.py"))


def run(field: Field, method: str, repeat: int, fresh: int) -> dict[str, Any]:
    """One method's answer, and what the neutral trainer makes of it, as plain JSON values."""
    begun = time.perf_counter()
    answer = METHODS[method][0](field, repeat)
    seconds = time.perf_counter() - begun
    seeds = [FRESH_SEED + 100 * repeat + index for index in range(fresh)]
    return {
        "method": method,
        "repeat": repeat,
        "seconds": seconds,
        "trials": answer.trials,
        "batch_size": answer.config.plan.effective_batch_size,
        "lr": answer.config.lr,
        "why": list(answer.why),
        "at_T": [field.train(answer, seed, field.horizon_s) for seed in seeds],
        "at_4T": [field.train(answer, seed, LONGER * field.horizon_s) for seed in seeds],
    }


def summary(found: list[list[float]]) -> tuple[float, float]:
    """Mean over repeats of the mean over seeds, and its standard error; a diverged training makes it not a number."""
    means = [fmean(scores) for scores in found]
    spread = means if len(means) > 1 else found[0]
    return fmean(means), stdev(spread) / math.sqrt(len(spread)) if len(spread) > 1 else math.nan


def print_table(name: str, direction: str, runs: list[dict[str, Any]]) -> None:
    """A line for each method; a star marks the best, and what is within its own standard error of it."""
    sign = 1 if direction == "maximize" else -1
    print(f"\n{name} ({'higher' if sign > 0 else 'lower'} is better)")
    print(
        f"{'method':22} {'at T':>10} {'+-':>8} {'at 4 T':>10} {'+-':>8} {'runs':>5} {'trials':>7} {'s':>6}  last answer"
    )
    by_method = {method: of for method in METHODS if (of := [run for run in runs if run["method"] == method])}
    figures = {
        method: [summary([run[at] for run in of]) for at in ("at_T", "at_4T")] for method, of in by_method.items()
    }
    bests = [
        max((f[at][0] * sign for f in figures.values() if math.isfinite(f[at][0])), default=math.nan) for at in (0, 1)
    ]
    for method, of in by_method.items():
        cells = []
        for (mean, stderr), best in zip(figures[method], bests, strict=True):
            near = sign * mean >= best - (stderr if math.isfinite(stderr) else 0)
            cells.append(f"{mean:>9.4f}{'*' if near else ' '} {stderr:>8.4f}")
        trials, seconds = fmean(run["trials"] for run in of), fmean(run["seconds"] for run in of)
        last = of[-1]
        print(
            f"{method:22} {cells[0]} {cells[1]} {len(of):>5} {trials:>7.0f} {seconds:>6.1f}  "
            f"batch {last['batch_size']}, lr {last['lr']:.3g}",
            flush=True,
        )


def main() -> None:
    """Run what the command line asks for and the file does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path, nargs="*", default=TASKS)
    parser.add_argument("--budget", type=parse_duration, default=60.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fresh", type=int, default=3, help="seeds that judge an answer")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")  # the peers' own
    methods = [method for method in asked.methods if missing(method) is None]
    for method in asked.methods:
        if method not in methods:
            print(f"{method} is left out: {missing(method)} is not installed", file=sys.stderr)
    terms = {"budget_s": asked.budget, "horizon_s": asked.budget / EQUIVALENTS, "fresh_seeds": asked.fresh}
    tasks: dict[str, dict[str, Any]] = {}
    if asked.json and asked.json.exists():
        held = json.loads(asked.json.read_text(encoding="utf-8"))
        if differ := [term for term, value in terms.items() if held[term] != value]:
            parser.error(f"{asked.json} was made with another {differ[0]}: {held[differ[0]]}; give another file")
        tasks = held["tasks"]

    def keep() -> None:
        if asked.json:
            packages = ("optuna", *(needs for method in methods if (needs := METHODS[method][1])))
            found = about(*packages) | terms | {"tasks": tasks}
            write_whole(asked.json, json.dumps(found, indent=1) + "\n")  # a diverged training's score is not finite

    for path in asked.tasks:
        if path.stem not in tasks:
            tasks[path.stem] = {
                "step_s": {str(size): seconds for size, seconds in step_times(path).items()},
                "runs": [],
            }
        kept = tasks[path.stem]
        field = enter(path, asked.budget, {int(size): seconds for size, seconds in kept["step_s"].items()})
        kept["direction"] = field.task.direction
        for repeat in range(asked.repeats):
            for method in methods:
                if not any((one["method"], one["repeat"]) == (method, repeat) for one in kept["runs"]):
                    kept["runs"].append(run(field, method, repeat, asked.fresh))
                    keep()
                    print(
                        f"{path.stem}: {method}, repeat {repeat}: {kept['runs'][-1]['at_T']}",
                        file=sys.stderr,
                        flush=True,
                    )
        print_table(path.stem, field.task.direction, kept["runs"])


if __name__ == "__main__":
    main()
