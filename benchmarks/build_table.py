"""A table of trials for `replay.py`: scores of a task over batch size, learning rate, seed and share of the schedule.

    python benchmarks/build_table.py TASK.py --json OUT [--train-time 1s] [--stacked] [--step-ms 0.7 0.004]

Every cell is trained `--seeds` times through the whole schedule, whose steps follow from the step time of its batch
size, so that all trials cost the same training time. The cells of the better quarter, by the mean of those seeds that
did not diverge, are then trained `--more-seeds` times more, and `replay.py` shows the last `--truth-seeds` of each to
no search: what a choice is worth is their mean. A trial whose loss is no longer finite is null from there on. Rates go
four decades around the range test's suggestion and the baseline's rate.

Step times are measured, or given as BASE + PER_SAMPLE x batch size milliseconds: a table can so be made on a slow or a
busy machine as if on another. With `--stacked` the rates and seeds of a batch size are trained at once (`stacked.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from replay import curve_of
from stacked import EVAL_BATCH, Scores, train_stacked

from autobatch.core.plan import Config, Plan
from autobatch.core.segment import TrainSegment
from autobatch.core.units import parse_duration
from autobatch.devices import open_device
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.searching.space import scale
from autobatch.searching.trials import Ladder, total_steps
from autobatch.tasks.task import load_task
from autobatch.worker.torch_runner import TorchRunner

RUNGS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
BETTER = 1 / 4
TIMING_S, ROUNDS = 0.6, 5  # of each batch size


def train_one_by_one(
    runner: TorchRunner, plan: Plan, lrs: Sequence[float], seeds: Sequence[int], rungs: Sequence[int]
) -> list[list[Scores]]:
    """The scores [rate][seed][rung] of a row, each trial by itself, as the search trains them."""
    return [[_curve(runner, Config(plan=plan, lr=lr), seed, rungs) for seed in seeds] for lr in lrs]


def _curve(runner: TorchRunner, config: Config, seed: int, rungs: Sequence[int]) -> Scores:
    scores: Scores = []
    for done, until in pairwise((0, *rungs)):
        rung = TrainSegment(
            trial=0,
            config=config,
            seed=seed,
            start_step=done,
            until_step=until,
            total_steps=rungs[-1],
            eval_batch_size=EVAL_BATCH,
        )
        scores.append(runner.advance(rung).score)
        if scores[-1] is None:
            break
    runner.forget(0)
    return [*scores, *([None] * (len(rungs) - len(scores)))]


def timed(runner: TorchRunner, sizes: Sequence[int]) -> ThroughputCurve:
    """The step times of the batch sizes, as measured."""
    rounds = [[runner.time(Plan(batch_size=size), budget_s=TIMING_S) for size in sizes] for _ in range(ROUNDS)]
    # Whoever else uses the machine only ever adds to a time, so the least of the medians is the step's own.
    fastest = [min(of_size, key=lambda one: one.median_step_s or math.inf) for of_size in zip(*rounds, strict=True)]
    return ThroughputCurve(measurements=tuple(fastest))


def mean_at_end(seeds: list[Scores], sign: int) -> float:
    """The mean score of the seeds of a cell that did not diverge, higher is better; minus infinity where all did."""
    known = [seed[-1] for seed in seeds if seed[-1] is not None]
    return sign * fmean(known) if known else -math.inf


def main() -> None:
    """Build the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--json", type=Path, metavar="OUT", required=True)
    parser.add_argument("--train-time", type=parse_duration, default=1.0, help="of a full trial")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2**power for power in range(3, 11)])
    parser.add_argument("--rates", type=int, default=10, help="how many, over four decades")
    parser.add_argument("--seeds", type=int, default=4, help="of every cell")
    parser.add_argument("--more-seeds", type=int, default=16, help="of the cells of the better quarter")
    parser.add_argument("--truth-seeds", type=int, default=10, help="of those, how many no search sees")
    parser.add_argument("--step-ms", type=float, nargs=2, metavar=("BASE", "PER_SAMPLE"), help="measured by default")
    parser.add_argument("--stacked", action="store_true", help="a batch size's rates and seeds at once; on the CPU")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()

    torch.set_num_threads(1)
    task = load_task(asked.task)
    runner = TorchRunner(task, open_device(asked.device))
    facts = runner.facts()
    gc.freeze()  # what the imports left need not be gone through again at every trial
    sign = 1 if facts.direction == "maximize" else -1
    if asked.step_ms:
        base_ms, per_sample_ms = asked.step_ms
        curve = curve_of(asked.batch_sizes, [(base_ms + per_sample_ms * b) / 1000 for b in asked.batch_sizes])
    else:
        curve = timed(runner, asked.batch_sizes)
    hint = find_lr_curve(runner, Plan(batch_size=128)).suggestion
    baseline = facts.baseline
    middle = baseline.lr * scale(baseline.plan.batch_size, 128)
    middle = math.sqrt(middle * hint) if hint else middle
    lrs = [float(f"{middle * 10 ** (4 * index / (asked.rates - 1) - 2):.6g}") for index in range(asked.rates)]
    train = partial(train_stacked, task) if asked.stacked else partial(train_one_by_one, runner)

    ladder = Ladder(shares=RUNGS)
    score: dict[tuple[int, int], list[Scores]] = {}

    def fill(batch: int, columns: Sequence[int], seeds: range) -> None:
        plan = Plan(batch_size=batch)
        steps = total_steps(plan, curve, asked.train_time)
        rungs = [ladder.until(level, steps) for level in range(len(RUNGS))]
        curves = train(plan, [lrs[column] for column in columns], seeds, rungs)
        for column, curve_of_seeds in zip(columns, curves, strict=True):
            score.setdefault((batch, column), []).extend(curve_of_seeds)
        print(f"batch {batch}: {steps} steps, {len(columns)} rates, seeds {seeds}", file=sys.stderr, flush=True)

    for batch in asked.batch_sizes:
        fill(batch, range(len(lrs)), range(asked.seeds))
    ranked = sorted(score, key=lambda place: -mean_at_end(score[place], sign))
    better = ranked[: math.ceil(BETTER * len(ranked))]
    for batch in asked.batch_sizes:
        columns = sorted(column for size, column in better if size == batch)
        if columns:
            fill(batch, columns, range(asked.seeds, asked.seeds + asked.more_seeds))

    table = {
        "name": asked.json.stem,
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).date().isoformat(),
        "device": runner.device().name,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "full_trial_s": asked.train_time,
        "direction": facts.direction,
        "batch_sizes": asked.batch_sizes,
        "lrs": lrs,
        "rungs": list(RUNGS),
        "step_time_s": [curve.step_s(size) for size in asked.batch_sizes],
        "peak_lr_fraction": facts.peak_lr_fraction,
        "baseline": {"batch_size": baseline.plan.batch_size, "lr": baseline.lr},
        "lr_range_test_min_over_10_at_128": hint,  # null where the test suggested nothing
        "truth_seeds": asked.truth_seeds,
        "score": [[score[batch, column] for column in range(len(lrs))] for batch in asked.batch_sizes],
    }
    runner.close()
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(table) + "\n", encoding="utf-8")
    describe(table, sign)


def describe(table: dict[str, Any], sign: int) -> None:
    """The five best cells by the seeds that no search sees, with their standard errors."""
    print(f"{table['name']}: {len(table['batch_sizes'])} batch sizes x {len(table['lrs'])} rates, {table['direction']}")
    found = []
    for batch, row in zip(table["batch_sizes"], table["score"], strict=True):
        for lr, cell in zip(table["lrs"], row, strict=True):
            held = [seed[-1] for seed in cell[-table["truth_seeds"] :]]
            if len(cell) > table["truth_seeds"] and None not in held:
                found.append((fmean(held), stdev(held) / math.sqrt(len(held)), batch, lr))
    found.sort(key=lambda entry: -sign * entry[0])
    for mean, stderr, batch, lr in found[:5]:
        print(f"  batch {batch:5} lr {lr:<10g} {mean:.5g} +- {stderr:.2g}")


if __name__ == "__main__":
    main()
