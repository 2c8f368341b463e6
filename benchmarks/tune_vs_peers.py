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
the standard error over repeats (over seeds where there is but one). A method that is not installed is left out, and
said so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import optuna
import torch
from torch.utils.data import DataLoader

import autobatch
from autobatch.data import training_batches, val_loader
from autobatch.devices import open_device
from autobatch.plan import Config, Plan
from autobatch.task import Task, load_task
from autobatch.throughput import ThroughputCurve
from autobatch.torch_runner import TorchRunner
from autobatch.training import Trainer
from autobatch.trials import Space, space_for, total_steps
from autobatch.units import parse_duration

TASKS = sorted((Path(__file__).parent / "tasks").glob("[!_]*.py"))
EQUIVALENTS = 20  # full trials that the budget would pay for
LONGER = 4
EVAL_BATCH = 1024
FRESH_SEED = 1_000_000  # far from every seed that a search draws
TIMING_S = 0.5
WORST = 1e9  # reported for what is not a number, which Optuna refuses


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a method says to train with: a configuration, and the task with its optimizer where it brings its own; why,
    where it says so.
    """

    task: Task
    config: Config
    trials: int = 0
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What all methods share for one task.

    Attributes:
        task, path: what is trained.
        curve: step times.
        space: where to search.
        budget_s, horizon_s: what a search may take, and what one training takes.
        train_data, val_data: loaded once.
    """

    task: Task
    path: Path
    curve: ThroughputCurve
    space: Space
    budget_s: float
    horizon_s: float
    train_data: Any
    val_data: Any

    @property
    def baseline(self) -> Config:
        """What the task file trains with."""
        return self.task.baseline_config()[0]

    @property
    def sign(self) -> int:
        """By which a score is multiplied so that higher is better."""
        return 1 if self.task.direction == "maximize" else -1

    def train(
        self, answer: Answer, seed: int, horizon_s: float, keep_on: Callable[[int, float], bool] | None = None
    ) -> float:
        """The score after `horizon_s` of training by the profile; not a number where it diverged or was given up.

        `keep_on` is asked with the eighths of the schedule behind and the score, at 1/8 and 1/2.
        """
        steps = max(1, total_steps(answer.config.plan, self.curve, horizon_s))
        trainer = Trainer(answer.task, answer.config, torch.device("cpu"), seed=seed, total_steps=steps)
        batches = training_batches(answer.task, self.train_data, answer.config.plan, seed=seed)
        switch = hasattr(trainer.optimizer, "eval")  # Schedule-Free holds other weights in training than in evaluation
        asked = {max(1, steps * eighths // 8): eighths for eighths in (1, 4)} if keep_on else {}
        if switch:
            trainer.optimizer.train()  # type: ignore[attr-defined]
        for step in range(1, steps + 1):
            loss = trainer.step(batches)
            if step % 50 == 0 and loss is not None and not bool(torch.isfinite(loss)):
                return math.nan
            if step in asked and keep_on is not None and not keep_on(asked[step], self._score(answer, trainer)):
                return math.nan
        if switch:
            trainer.optimizer.eval()  # type: ignore[attr-defined]
        return self._score(answer, trainer)

    def _score(self, answer: Answer, trainer: Trainer) -> float:
        return trainer.evaluate(val_loader(answer.task, self.val_data, EVAL_BATCH))


def enter(path: Path, budget_s: float) -> Field:
    """The task with its profile and its space."""
    task = load_task(path)
    runner = TorchRunner(task, open_device("cpu"))
    facts = runner.facts()
    assert task.train_data is not None
    train_data, val_data = task.train_data(), task.val_data()
    largest = 1 << int(math.log2(max(8, (facts.train_size or 8192) / 8)))
    sizes = [2**power for power in range(3, int(math.log2(largest)) + 1)]
    curve = ThroughputCurve(measurements=tuple(runner.time(Plan(batch_size=size), budget_s=TIMING_S) for size in sizes))
    baseline = task.baseline_config()[0]
    horizon_s = budget_s / EQUIVALENTS
    space = space_for(facts, curve, max_batch=largest, max_micro_batch=largest, horizon_s=horizon_s, baseline=baseline)
    runner.close()
    return Field(
        task=task,
        path=path,
        curve=curve,
        space=space,
        budget_s=budget_s,
        horizon_s=horizon_s,
        train_data=train_data,
        val_data=val_data,
    )


def ours(field: Field, repeat: int, search: str) -> Answer:
    """`autobatch tune`."""
    with tempfile.TemporaryDirectory() as folder:
        report = autobatch.tune(
            field.path,
            budget=field.budget_s,
            train_time=field.horizon_s,
            seed=repeat,
            search=search,
            run_dir=Path(folder) / "run",
        )
    return Answer(task=field.task, config=report.plan, trials=len(report.trials), why=report.why)


def tpe(field: Field, repeat: int, halving: bool) -> Answer:
    """Optuna's TPE until the time is up: full-length trials, or the baseline first and successive halving."""
    ends = time.perf_counter() + field.budget_s
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
    study = optuna.create_study(
        direction=field.task.direction,
        sampler=optuna.samplers.TPESampler(seed=repeat),
        pruner=pruner if halving else optuna.pruners.NopPruner(),
    )
    sizes = field.space.effective_batch_sizes
    if halving:
        start = field.space.nearest(field.baseline.plan.effective_batch_size)
        scaled = min(max(field.space.scaled_lr(field.baseline), field.space.lr_low), field.space.lr_high)
        study.enqueue_trial({"batch": sizes.index(start), "lr": scaled})
    best, trials = Answer(task=field.task, config=field.baseline), 0
    best_score = -math.inf
    while time.perf_counter() + field.horizon_s < ends:
        trial = study.ask()
        batch = sizes[trial.suggest_int("batch", 0, len(sizes) - 1)]
        lr = field.space.lr_at(batch, trial.suggest_float("lr", field.space.lr_low, field.space.lr_high, log=True))
        answer = Answer(task=field.task, config=Config(plan=Plan(batch_size=batch), lr=lr))

        def keep_on(eighths: int, score: float, trial: optuna.Trial = trial) -> bool:
            trial.report(score if math.isfinite(score) else -field.sign * WORST, eighths)
            return not trial.should_prune()

        score = field.train(answer, 10_007 * repeat + trials, field.horizon_s, keep_on if halving else None)
        trials += 1
        if math.isfinite(score):
            study.tell(trial, score)
            if field.sign * score > best_score:
                best, best_score = answer, field.sign * score
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return replace(best, trials=trials)


def own_optimizer(field: Field, make: Callable[[Any], Any], scheduled: bool) -> Answer:
    """The baseline with an optimizer that finds its own rate."""
    task = replace(
        field.task,
        optimizer=lambda model, lr: make(model.parameters()),
        scheduler=field.task.scheduler if scheduled else None,
    )
    return Answer(task=task, config=field.baseline)


def schedule_free(field: Field, repeat: int) -> Answer:
    """Schedule-Free AdamW at its defaults, which takes the place of a schedule."""
    return own_optimizer(field, import_module("schedulefree").AdamWScheduleFree, scheduled=False)


def prodigy(field: Field, repeat: int) -> Answer:
    """Prodigy at its defaults, under the task's schedule."""
    return own_optimizer(field, import_module("prodigyopt").Prodigy, scheduled=True)


def lightning(field: Field, repeat: int) -> Answer:
    """Lightning's `scale_batch_size`, then its `lr_find`, both as they come."""
    pl: Any = import_module("lightning.pytorch")
    torch.manual_seed(repeat)

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = field.task.model()
            self.lr = field.baseline.lr
            self.batch_size = field.baseline.plan.batch_size

        def training_step(self, batch: Any, index: int) -> Any:
            return field.task.loss(self.net, batch)

        def configure_optimizers(self) -> Any:
            return field.task.optimizer(self.net, self.lr)

        def train_dataloader(self) -> Any:
            return DataLoader(field.train_data, self.batch_size, shuffle=True, collate_fn=field.task.collate)

    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=10_000,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        module, tuner = Module(), pl.tuner.Tuner(trainer)
        batch = tuner.scale_batch_size(module) or field.baseline.plan.batch_size
        found = tuner.lr_find(module)
        lr = found.suggestion() if found is not None else None
    return Answer(task=field.task, config=Config(plan=Plan(batch_size=batch), lr=lr or field.baseline.lr))


METHODS: dict[str, tuple[Callable[[Field, int], Answer], str | None]] = {
    "baseline": (lambda field, repeat: Answer(task=field.task, config=field.baseline), None),
    "autobatch tpe": (partial(ours, search="tpe"), None),
    "autobatch freeze-thaw": (partial(ours, search="freeze-thaw"), None),
    "Optuna TPE": (partial(tpe, halving=False), None),
    "Optuna TPE, halving": (partial(tpe, halving=True), None),
    "Lightning": (lightning, "lightning"),
    "Schedule-Free": (schedule_free, "schedulefree"),
    "Prodigy": (prodigy, "prodigyopt"),
}


def summary(found: list[list[float]]) -> tuple[float, float]:
    """Mean over repeats of the mean over seeds, and its standard error; a diverged training makes it not a number."""
    means = [fmean(scores) for scores in found]
    spread = means if len(means) > 1 else found[0]
    return fmean(means), stdev(spread) / math.sqrt(len(spread)) if len(spread) > 1 else math.nan


def print_table(path: Path, rows: list[dict[str, Any]], sign: int) -> None:
    """A line for each method; a star marks the best, and what is within its standard error of it."""
    print(f"\n{path.stem} ({'higher' if sign > 0 else 'lower'} is better)")
    print(f"{'method':22} {'at T':>10} {'+-':>8} {'at 4 T':>10} {'+-':>8} {'trials':>7} {'s':>6}  last answer")
    figures = {row["method"]: (summary(row["at_T"]), summary(row["at_4T"])) for row in rows}
    bests = [
        max((f[at][0] * sign for f in figures.values() if math.isfinite(f[at][0])), default=math.nan) for at in (0, 1)
    ]
    for row in rows:
        cells = []
        for at, (mean, stderr) in enumerate(figures[row["method"]]):
            near = sign * mean >= bests[at] - (stderr if math.isfinite(stderr) else 0)
            cells.append(f"{mean:>9.4f}{'*' if near else ' '} {stderr:>8.4f}")
        last = row["answers"][-1]
        print(
            f"{row['method']:22} {cells[0]} {cells[1]} {fmean(row['trials']):>7.0f} {fmean(row['seconds']):>6.1f}  "
            f"batch {last['batch_size']}, lr {last['lr']:.3g}",
            flush=True,
        )


def run_task(path: Path, budget_s: float, repeats: int, fresh: int, methods: list[str]) -> list[dict[str, Any]]:
    """All methods on one task."""
    field = enter(path, budget_s)
    rows = []
    for name in methods:
        method, _ = METHODS[name]
        row: dict[str, Any] = {"method": name, "at_T": [], "at_4T": [], "answers": [], "seconds": [], "trials": []}
        for repeat in range(repeats):
            begun = time.perf_counter()
            answer = method(field, repeat)
            row["seconds"].append(time.perf_counter() - begun)
            row["trials"].append(answer.trials)
            plan = answer.config.plan
            row["answers"].append(
                {"batch_size": plan.effective_batch_size, "lr": answer.config.lr, "why": list(answer.why)}
            )
            seeds = [FRESH_SEED + 100 * repeat + index for index in range(fresh)]
            for key, times in (("at_T", 1), ("at_4T", LONGER)):
                row[key].append([field.train(answer, seed, times * field.horizon_s) for seed in seeds])
            print(f"{path.stem}: {name}, repeat {repeat}: {row['at_T'][-1]} {answer.why}", file=sys.stderr, flush=True)
        rows.append(row)
    print_table(path, rows, field.sign)
    return rows


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path, nargs="*", default=TASKS)
    parser.add_argument("--budget", type=parse_duration, default=60.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fresh", type=int, default=3, help="seeds that judge an answer")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")  # the peers' own
    there = [name for name in asked.methods if (needs := METHODS[name][1]) is None or importlib.util.find_spec(needs)]
    for name in asked.methods:
        if name not in there:
            print(f"{name} is left out: {METHODS[name][1]} is not installed", file=sys.stderr)
    rows = {path.stem: run_task(path, asked.budget, asked.repeats, asked.fresh, there) for path in asked.tasks}
    if asked.json:
        packages = ("torch", "optuna", *(needs for name in there if (needs := METHODS[name][1])))
        about = {
            "command": " ".join(sys.argv),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"processor": open_device("cpu").info().name, "threads": torch.get_num_threads()},
            "versions": {"autobatch": autobatch.__version__, "python": platform.python_version()}
            | {package: version(package) for package in packages},
            "budget_s": asked.budget,
            "horizon_s": asked.budget / EQUIVALENTS,
        }
        asked.json.write_text(json.dumps(about | {"tasks": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
