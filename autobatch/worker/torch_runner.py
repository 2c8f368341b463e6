"""`TorchRunner`: the real runner. It takes a task's own steps on a device of this process, and measures them.

The prober finds what fits into memory (torch_prober.py). All of the user's code runs inside `_guarded`
(task_session.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import repeat
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..core.checkpoints import checkpoint_path, forget_checkpoints
from ..core.files import sync_folder
from ..core.lr_sweep import drive
from ..core.measurement import Energy, LrSweep, Measurement, Workload
from ..core.plan import Config, Plan
from ..core.runner import Runner
from ..core.segment import SegmentResult, TrainSegment
from ..core.units import format_duration
from ..errors import CheckpointError, NoValidResult, TaskError
from ..tasks.data import (
    Batch,
    Collated,
    SampleDataset,
    num_samples,
    seed_everything,
    to_device,
    training_batches,
    val_loader,
)
from ..tasks.state import preserve_generators
from .data_parallel import is_rank_lost
from .flops import matmul_flops_per_s, step_flops
from .norm_watch import NormWatch
from .task_session import COUNTED_SAMPLES, Refused
from .timing import Timing, measure_energy, time_step
from .torch_prober import TorchProber, at_size, see_that_nothing_was_caught
from .training import Trainer
from .trial_state import read_checkpoint, restore_trainer, save_trainer

_EVALUATION_SAMPLE_S = 1.0  # an evaluation longer than this is timed in part
# Samples per batch when data is read without a model. Assumed: few enough to stop soon after a limit.
_READ_AT_ONCE = 16
# A trial is given up at half of its first segment if the mean loss of each tenth since the first exceeds the largest
# loss of a step in the first tenth by this share. Assumed. If the first tenth has few steps, its largest loss says
# little: of 16 noisy ones (batches of one sample, exponential losses) all lie below 95 % of their mean once in 2,500
# trials.
_RISEN, _FEWEST_TO_JUDGE = 0.05, 16


class TorchRunner(TorchProber, Runner):
    """Runs a task on a device in this process. Has the arguments of `OpenTask`."""

    _has_trained = False  # whether it has trained a segment

    # -- speed --------------------------------------------------------------------------------------------------------

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        started = perf_counter()
        with self._borrow():
            what, refusals = at_size("a training step", plan), self._device.refusals()
            timed = self._guarded(what, lambda: self._time_step(plan, budget_s, loader, parts))
            if not isinstance(timed, Refused) and self._is_suspect(self._workbench(plan), refusals):
                again = self._counted(what, lambda: self._step_again(plan))
                timed = again if isinstance(again, Refused) else timed
            if self._live:
                self._bench = None
        seconds = perf_counter() - started
        if isinstance(timed, Refused):
            return Measurement(plan=plan, outcome="oom", seconds=seconds, message=timed.message)
        return Measurement(
            plan=plan,
            outcome="ok",
            step_s=timed.step_s,
            compute_s=timed.compute_s,
            loader_s=timed.loader_s,
            phases_s=timed.phases_s,
            remarks=timed.remarks,
            seconds=seconds,
        )

    def _time_step(self, plan: Plan, budget_s: float, loader: Mapping[str, Any] | None, parts: bool) -> Timing:
        batches = self._batches_to_time(plan, loader)
        bench = self._workbench(plan)
        bench.caught.expect()
        if self._group is None:
            timed = time_step(bench, self._device, batches, budget_s, parts=parts)
        else:
            timed = time_step(bench, self._device, batches, budget_s, self._group.lead, parts=parts)
        see_that_nothing_was_caught(bench)
        return timed

    def _is_suspect(self, trainer: Trainer, refusals: int | None) -> bool:
        """Whether some of its steps may not have run; `refusals` is the device's count before them."""
        if self._group is not None:  # the others would wait for a rank that repeats a step
            return False
        return trainer.gradients.missed > 0 or self._device.refusals() != refusals

    def _step_again(self, plan: Plan) -> None:
        """Take one more step like those that were timed, and check that it ran."""
        self._step_that_ran(self._workbench(plan), self._worst_batch(plan.batch_size))

    def _batches_to_time(self, plan: Plan, loader: Mapping[str, Any] | None = None) -> Iterator[Batch]:
        """Batches as in training; with a stand-in for data, one that is on the device already."""
        batches = training_batches(self._task, self._train_data(), plan, seed=0, loader=loader, rank=self._rank)
        if not isinstance(self._train_data(), SampleDataset):
            return batches
        return repeat(to_device(next(batches), self._device.torch_device))

    def energy(self, plan: Plan, *, budget_s: float) -> Energy | None:
        if self._group is not None or (self._device.joules() is None and self._device.watts() is None):
            return None
        with self._borrow():
            energy = self._guarded(at_size("a training step", plan), lambda: self._measure_energy(plan, budget_s))
            if self._live:
                self._bench = None
        return None if isinstance(energy, Refused) else energy

    def _measure_energy(self, plan: Plan, budget_s: float) -> Energy | None:
        return measure_energy(self._workbench(plan), self._device, self._batches_to_time(plan), budget_s)

    def workload(self) -> Workload:
        with self._borrow():
            counted = self._guarded("counting the model's operations", self._count)
        if isinstance(counted, Refused):
            raise TaskError(f"there is no memory to count the model's operations in: {counted.message}")
        return counted

    def _count(self) -> Workload:
        model = self._task.model()
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        del model
        if self._live:  # the only model must stay where it is
            return Workload(parameters=parameters, flops_per_sample=None)
        flops = step_flops(self._task, self._worst_batch(COUNTED_SAMPLES))
        return Workload(parameters=parameters, flops_per_sample=None if flops is None else flops / COUNTED_SAMPLES)

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        self._drop_bench()
        reached = self._guarded(
            "a matrix product", lambda: matmul_flops_per_s(self._device, self._task.precision, budget_s)
        )
        self._device.clean_up()
        return None if isinstance(reached, Refused) else reached

    def see_evaluation_end(self, limit_s: float) -> None:
        names = ("val_data", "test_data") if self._task.test_data is not None else ("val_data",)
        for name in names:
            self._guarded(f"going through {name}()", partial(self._go_through, name, limit_s))

    def _go_through(self, name: str, limit_s: float) -> None:
        data = self._load(name)
        worst = self._worst_cases.get(name)
        if num_samples(data) is not None or (worst is not None and worst.num_samples is not None):
            return
        started, seen = perf_counter(), 0
        with preserve_generators():
            for collated in val_loader(self._task, data, _READ_AT_ONCE):
                seen += collated.samples
                if (seconds := perf_counter() - started) > limit_s:
                    raise TaskError(
                        f"{name}() did not end: it has no length, and gave {seen:,} samples in "
                        f"{format_duration(seconds)}, without a model; each evaluation goes through all of it. If it "
                        "has no end, take a part of it with itertools.islice; if it has one, give it a __len__, or "
                        "give more time"
                    )

    def time_evaluation(self, batch_size: int) -> float:
        data = self._load("val_data")
        bench = self._workbench(self._task.baseline_config()[0].plan)
        loader = val_loader(self._task, data, batch_size)
        size = num_samples(data)
        started = perf_counter()
        seen = 0

        def part() -> Iterator[Collated]:
            nonlocal seen
            for collated in loader:
                seen += collated.samples
                if size is not None and seen > size * max(1, loader.num_workers):
                    raise TaskError(
                        f"val_data() did not end where it should: its length is {size:,} samples (__len__) and "
                        f"gave {seen:,}"
                    )
                yield collated
                if perf_counter() - started > _EVALUATION_SAMPLE_S:
                    return

        # A task's own `evaluate` needs all of the data, and may use the loader's length. With data of unknown length,
        # it is not known which part was seen.
        whole = self._task.evaluate is not None or size is None
        refused = self._guarded("an evaluation", lambda: bench.evaluate(loader if whole else part()))
        self._device.synchronize()
        elapsed = perf_counter() - started
        if isinstance(refused, Refused):
            raise TaskError(f"an evaluation batch of {batch_size} does not fit in memory: {refused.message}")
        return elapsed if whole or size is None else elapsed * max(1.0, size / max(1, seen))

    # -- learning rate ------------------------------------------------------------------------------------------------

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        started = perf_counter()
        self._drop_bench()
        with self._borrow():
            what = at_size("a training step", plan)
            swept = self._guarded(what, lambda: self._sweep(plan, lowest, highest, steps, seed))
        self._device.clean_up()
        if isinstance(swept, Refused):
            raise TaskError(f"the range test at batch {plan.batch_size} does not fit in memory: {swept.message}")
        lrs, losses, diverged = swept
        seconds = perf_counter() - started
        return LrSweep(
            plan=plan,
            lrs=lrs,
            losses=losses,
            diverged=diverged,
            seconds=seconds,
            without_schedule=self._task.scheduler is not None,
        )

    def _sweep(
        self, plan: Plan, lowest: float, highest: float, steps: int, seed: int
    ) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
        # Without the task's schedule, as the sweep sets the rate. Groups keep their ratio to the rate; a group with its
        # own rate keeps that.
        task = replace(self._task, scheduler=None)
        trainer = self._trainer_of(task, Config(plan=plan, lr=lowest), seed=seed, total_steps=steps)
        groups = trainer.rate_shares()
        batches = training_batches(task, self._train_data(), plan, seed=seed, rank=self._rank)
        has_trained = False

        def loss_at(lr: float) -> float | None:
            nonlocal has_trained
            # A group that a hook has added since keeps its own rate.
            for group, share in zip(trainer.optimizer.param_groups, groups, strict=False):
                if share is not None:
                    group["lr"] = lr * share
            try:
                loss = trainer.step(batches)
            except (Exception, SystemExit) as error:
                if not has_trained or self._device.is_out_of_memory(error) or is_rank_lost(error):
                    raise
                return None  # many training loops raise when the loss blows up
            if loss is None:
                raise NoValidResult("a range test needs the loss: let training_step return it")
            has_trained = True
            return self._mean_of_ranks(loss)

        swept = drive(loss_at, lowest=lowest, highest=highest, steps=steps)
        see_that_nothing_was_caught(trainer)
        return swept

    # -- trials -------------------------------------------------------------------------------------------------------

    def advance(self, segment: TrainSegment) -> SegmentResult:
        self.prepare()
        started = perf_counter()
        is_first, self._has_trained = not self._has_trained, True
        self._drop_bench()
        with self._borrow():
            done = self._guarded(at_size("training", segment.config.plan), lambda: self._advance(segment, started))
        self._device.clean_up()
        if isinstance(done, Refused):
            done = SegmentResult(segment=segment, outcome="oom", message=done.message)
        return replace(done, seconds=perf_counter() - started, is_first=is_first)

    def _paused(self, segment: TrainSegment) -> dict[str, Any]:
        """The checkpoint from which a segment continues."""
        path = checkpoint_path(self._folder(), segment.trial, segment.start_step)
        try:
            state = read_checkpoint(path, self._rank)
        except FileNotFoundError:
            raise CheckpointError(
                f"trial {segment.trial} has no checkpoint at step {segment.start_step} to go on from: "
                f"{path} is not there"
            ) from None
        if (state["step"], state["total_steps"]) != (segment.start_step, segment.total_steps):
            raise CheckpointError(
                f"{path} is of step {state['step']} of {state['total_steps']}, not of {segment.start_step} of "
                f"{segment.total_steps}"
            )
        return state

    def _advance(self, segment: TrainSegment, started: float) -> SegmentResult:
        deadline = math.inf if segment.limit_s is None else started + segment.limit_s
        trainer = self._trainer(segment.config, seed=segment.seed, total_steps=segment.total_steps)
        batches = training_batches(
            self._task,
            self._train_data(),
            segment.config.plan,
            seed=segment.seed,
            start_step=segment.start_step,
            rank=self._rank,
        )
        if segment.start_step:
            # Not bound to a name, which would keep a second copy of everything during the segment.
            restore_trainer(trainer, self._paused(segment))
        refusals = self._device.refusals()
        steps = segment.until_step - segment.start_step
        tenth = max(1, math.ceil(steps / 10))
        begun = perf_counter()
        means: list[float] = []
        pending: list[Tensor] = []
        gives_up, highest = segment.may_give_up and segment.start_step == 0, math.inf
        norms = NormWatch(self._task.clip_grad_norm)
        for index in range(1, steps + 1):
            loss = trainer.step(batches)
            if self._group is None:  # a rank that stops by itself leaves the others waiting
                see_that_nothing_was_caught(trainer)
            norms.see(trainer.grad_norm)
            if loss is not None:
                pending.append(loss)
            if perf_counter() > deadline:
                return SegmentResult(segment=segment, outcome="timeout", message="out of its allotted time")
            if index % tenth and index != steps:
                continue
            # Reading a loss or a norm waits for the device, so it is done ten times per segment, not at every step.
            norms.read()
            if pending:
                if not means and gives_up and len(pending) >= _FEWEST_TO_JUDGE:
                    highest = max(self._mean_of_ranks(loss[None]) for loss in pending)
                means.append(self._mean_of_ranks(torch.stack(pending)))
                pending.clear()
                message = None
                if not math.isfinite(means[-1]):
                    message = f"the loss was not finite by step {segment.start_step + index}"
                elif gives_up and 2 * index >= steps:
                    gives_up = False  # this is checked once
                    if 0 < (1 + _RISEN) * highest < min(means[1:]):
                        message = f"the loss rose from {means[0]:.4g} to {means[-1]:.4g} and stayed up"
                if message is not None:
                    return SegmentResult(
                        segment=segment,
                        outcome="diverged",
                        message=message,
                        grad_norms=norms.summary(),
                        train_s=perf_counter() - begun,
                    )
        self._device.synchronize()
        train_s = perf_counter() - begun
        if self._is_skipped(trainer, refusals):
            missed = f"{trainer.gradients.missed} of {trainer.gradients.taken} steps"
            return SegmentResult(
                segment=segment,
                outcome="oom",
                message=self._not_run(missed),
                grad_norms=norms.summary(),
                train_s=train_s,
            )
        path = checkpoint_path(self._folder(), segment.trial, segment.until_step)
        new = path.with_suffix(".pt.new")
        save_trainer(trainer, new, name=path)  # before the evaluation, which may draw random numbers
        begun = perf_counter()
        score = 0.0
        if self._rank == 0:
            score = self._evaluate(trainer, "val_data", segment)
            # After the evaluation: if that ends the process, the segment runs again from its beginning.
            new.replace(path)
            sync_folder(path.parent)
        if not math.isfinite(score):
            return SegmentResult(
                segment=segment,
                outcome="diverged",
                message=f"the score was {score}",
                grad_norms=norms.summary(),
                train_s=train_s,
            )
        return SegmentResult(
            segment=segment,
            outcome="ok",
            score=score,
            grad_norms=norms.summary(),
            train_s=train_s,
            eval_s=perf_counter() - begun,
        )

    def _is_skipped(self, trainer: Trainer, refusals: int | None) -> bool:
        """Whether steps of a trial did not run although steps on a few samples do: most of them, or some for lack of
        memory.

        `refusals` is the device's count before them. A task may skip a batch now and then for its own reasons.
        """
        gradients = trainer.gradients
        if not gradients.missed or self._group is not None:
            return False
        if 2 * gradients.missed <= gradients.taken and self._device.refusals() == refusals:
            return False
        with preserve_generators():  # the trial may go on after this
            usual = self._usual_for_sure(self._workbench(trainer.config.plan))
        self._bench = None
        return usual is None or bool(usual.always)

    def _evaluate(self, trainer: Trainer, name: str, segment: TrainSegment) -> float:
        seed_everything(
            segment.seed
        )  # so that a random evaluation is repeatable; the trial's own state is in its checkpoint
        return trainer.evaluate(val_loader(self._task, self._load(name), segment.eval_batch_size))

    def test_score(self, segment: TrainSegment) -> float | None:
        if self._task.test_data is None:
            return None
        with self._borrow():
            scored = self._guarded("the evaluation on test_data()", lambda: self._test(segment))
        self._device.clean_up()
        return None if isinstance(scored, Refused) else scored

    def _test(self, segment: TrainSegment) -> float:
        trainer = self._trainer(segment.config, seed=segment.seed, total_steps=segment.total_steps)
        restore_trainer(trainer, read_checkpoint(checkpoint_path(self._folder(), segment.trial, segment.until_step)))
        return self._evaluate(trainer, "test_data", segment)

    def forget(self, trial: int, before: int | None = None) -> None:
        forget_checkpoints(self._folder(), trial, before)
