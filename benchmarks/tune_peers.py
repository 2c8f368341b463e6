"""The ways to settings that `tune_vs_peers.py` compares: the same task, the same space, the same seconds.

The space is the one that `autobatch tune` would search. For Optuna the same function of the package makes it, around
what the range test at the knee suggests and clipped where that blew up. The test is run anew in each repeat, under its
seed and with as many steps as `tune` would give it, and its seconds are the method's. What is a present to everyone but
`tune`, which pays for its own: the profile, measured once for all, and the start of the process. Batch sizes end where
those of `tune` do, at an eighth of the samples or at the baseline's; the profile ran them, so memory holds them.

The packages of others are used as they come, each through its public entry point.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import optuna
import torch
from torch.utils.data import DataLoader

import autobatch
from autobatch.core.facts import TaskFacts
from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.devices import open_device
from autobatch.errors import NoValidResult
from autobatch.measuring.learning_rate import LrCurve, find_lr_curve
from autobatch.measuring.profiling import profile
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.searching.schedulers.warm_starts import warm_starts
from autobatch.searching.space import Space, space_for
from autobatch.searching.trials import total_steps
from autobatch.tasks.data import training_batches, val_loader
from autobatch.tasks.task import Task, load_task
from autobatch.tuning.stages import sweep_steps
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.training import Trainer

EQUIVALENTS = 20  # full trials that the budget would pay for
LONGER = 4  # times T, for which an answer is trained too
FRESH_SEED = 1_000_000  # far from every seed that a search draws
EVAL_BATCH = 1024
PROFILE_S = 20.0  # several visits to each size: by it all trainings of a task are as long as they are
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
        task, path, facts: what is trained.
        curve: step times.
        budget_s, horizon_s: what a search may take, and what one training takes.
        train_data, val_data: loaded once.
    """

    task: Task
    path: Path
    facts: TaskFacts
    curve: ThroughputCurve
    budget_s: float
    horizon_s: float
    train_data: Any
    val_data: Any

    @property
    def baseline(self) -> Config:
        """What the task file trains with."""
        return self.facts.baseline

    @property
    def sign(self) -> int:
        """By which a score is multiplied so that higher is better."""
        return 1 if self.task.direction == "maximize" else -1

    @property
    def _largest(self) -> tuple[int, int]:
        """The largest batch, where `tune` looks no further, and the largest of several that a step accumulates."""
        largest = max(self.curve.timed[-1].plan.batch_size, self.baseline.plan.batch_size)
        return largest, largest if self.facts.accumulates else 0

    def plan(self, batch: int) -> Plan:
        """What `autobatch tune` takes for this effective batch size."""
        largest, micro_batch = self._largest
        found = self.curve.plan_for(batch, largest, self.facts.precision, micro_batch)
        assert found is not None  # asked for sizes of the space only
        return found

    def range_test(self, seed: int) -> LrCurve | None:
        """The range test of `autobatch tune`: at the knee, of as many steps as its share of the budget pays for.

        None where that is too few, or where the task tells no loss.
        """
        steps = sweep_steps(self.curve, self.budget_s)
        if steps is None:
            return None
        # The data is there already: loading it again would count as time of the test.
        runner = TorchRunner(replace(self.task, train_data=lambda: self.train_data), open_device("cpu"))
        try:
            return find_lr_curve(runner, self.plan(self.curve.knee_batch_size), steps=steps, seed=seed)
        except NoValidResult:
            return None
        finally:
            runner.close()

    def space(self, swept: LrCurve | None) -> Space:
        """Where `autobatch tune` would search after this range test."""
        largest, micro_batch = self._largest
        return space_for(
            self.facts,
            self.curve,
            max_batch=largest,
            max_micro_batch=micro_batch,
            horizon_s=self.horizon_s,
            baseline=self.baseline,
            lr_hint=swept.suggestion if swept else None,
            lr_diverged=swept.diverged_at if swept else None,
        )

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


def step_times(path: Path) -> dict[int, float]:
    """Seconds of one step of the task at powers of two from 8 to an eighth of its samples."""
    runner = TorchRunner(load_task(path), open_device("cpu"))
    facts = runner.facts()
    largest = 1 << int(math.log2(max(8, (facts.train_size or 8192) / 8)))
    curve = profile(runner, facts.smallest_plan, max_batch=largest, budget_s=PROFILE_S)
    runner.close()
    return {measured.plan.batch_size: curve.step_s(measured.plan.batch_size) for measured in curve.timed}


def enter(path: Path, budget_s: float, step_s: dict[int, float]) -> Field:
    """The task with its facts, and a profile of these step times by batch size."""
    task = load_task(path)
    runner = TorchRunner(task, open_device("cpu"))
    facts = runner.facts()
    runner.close()
    assert task.train_data is not None
    curve = ThroughputCurve(
        measurements=tuple(
            Measurement(plan=Plan(batch_size=size), outcome="ok", step_s=(seconds,)) for size, seconds in step_s.items()
        )
    )
    return Field(
        task=task,
        path=path,
        facts=facts,
        curve=curve,
        budget_s=budget_s,
        horizon_s=budget_s / EQUIVALENTS,
        train_data=task.train_data(),
        val_data=task.val_data(),
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
    if report.interrupted:  # it ends a comparison, and is nobody's answer
        raise KeyboardInterrupt
    return Answer(task=field.task, config=report.config, trials=len(report.trials), why=report.why)


def tpe(field: Field, repeat: int, warm: bool) -> Answer:
    """Optuna's TPE until the time is up, the range test included: full-length trials, or `warm`.

    That is with successive halving, and with what `autobatch tune` tries first: the baseline, the baseline scaled to
    the knee, and what the range test suggests there.
    """
    swept = field.range_test(repeat)
    ends = perf_counter() + field.budget_s - (swept.sweep.seconds if swept else 0.0)
    space = field.space(swept)
    sizes = space.effective_batch_sizes
    waiting: list[Config] = []
    if warm:
        at_knee = field.plan(space.nearest(space.reference_batch))
        starts = warm_starts(space, field.baseline, at_knee, swept.suggestion if swept else None)
        waiting = [field.baseline, *(config for config, _ in starts)]
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
    study = optuna.create_study(
        direction=field.task.direction,
        sampler=optuna.samplers.TPESampler(seed=repeat),
        pruner=pruner if warm else optuna.pruners.NopPruner(),
    )
    for config in waiting:
        lr = min(max(space.scaled_lr(config), space.lr_low), space.lr_high)
        study.enqueue_trial({"batch": sizes.index(space.nearest(config.plan.effective_batch_size)), "lr": lr})
    best, trials = Answer(task=field.task, config=field.baseline), 0
    best_score = -math.inf
    while perf_counter() + field.horizon_s < ends:
        trial = study.ask()
        batch = sizes[trial.suggest_int("batch", 0, len(sizes) - 1)]
        lr = space.lr_at(batch, trial.suggest_float("lr", space.lr_low, space.lr_high, log=True))
        # What was enqueued is trained as it is, though the sampler sees it at the nearest point of the space.
        config = waiting.pop(0) if waiting else Config(plan=field.plan(batch), lr=lr)
        answer = Answer(task=field.task, config=config)

        def keep_on(eighths: int, score: float, trial: optuna.Trial = trial) -> bool:
            trial.report(score if math.isfinite(score) else -field.sign * WORST, eighths)
            return not trial.should_prune()

        score = field.train(answer, 10_007 * repeat + trials, field.horizon_s, keep_on if warm else None)
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
    "autobatch": (partial(ours, search="auto"), None),
    "autobatch tpe": (partial(ours, search="tpe"), None),
    "autobatch freeze-thaw": (partial(ours, search="freeze-thaw"), None),
    "Optuna TPE": (partial(tpe, warm=False), None),
    "Optuna TPE, warm, halving": (partial(tpe, warm=True), None),
    "Lightning": (lightning, "lightning"),
    "Schedule-Free": (schedule_free, "schedulefree"),
    "Prodigy": (prodigy, "prodigyopt"),
}


def missing(name: str) -> str | None:
    """The package that a method needs and that is not installed."""
    needs = METHODS[name][1]
    return needs if needs is not None and importlib.util.find_spec(needs) is None else None
