"""`TorchProber`: which sizes of a task fit into memory, by steps on a device of this process.

All of the user's code runs inside `_guarded` (task_session.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.measurement import Measurement, Outcome
from ..core.plan import Plan
from ..core.runner import Prober
from ..core.units import format_size
from ..devices.oom import is_device_lost
from ..tasks.data import Batch, Collated, num_samples, to_device, training_batches
from .caught import Caught
from .swallowed import Usual
from .task_session import COUNTED_SAMPLES, OpenTask, Refused
from .training import Trainer, autocast

# Steps before the evaluation batch, the short batch and one more step. The first step allocates the optimizer's state,
# which exists during the last one (+1241 MiB for GPT-2 small in FakeTensor traces).
_EXPLORE_STEPS, _FINAL_STEPS = 1, 3
# Steps on a few samples after which it is known which parameters get a gradient in all of them. Assumed: adversarial
# trainings step each of their parts at every fifth step at least (n_critic of WGAN is 5).
_STEPS_TO_BE_SURE = 8


def at_size(what: str, plan: Plan) -> str:
    """An action and its batch size, which the user may not have chosen."""
    return f"{what} at batch size {plan.batch_size}"


def see_that_nothing_was_caught(trainer: Trainer) -> None:
    """Check that no step so far went on after memory had run out.

    Raises:
        torch.OutOfMemoryError: a step did.
    """
    trainer.caught.see_none(at_size("a training step", trainer.config.plan))


class TorchProber(OpenTask, Prober):
    """Takes a task's steps to see what they need. Has the arguments of `OpenTask`."""

    _usual: Usual | None = None  # which parameters get a gradient from steps on a few samples
    _is_usual_sure = False  # whether there were enough steps to notice a task that trains its parts in turn

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        started = perf_counter()
        self._probes += 1
        if self._probes == 1:
            self._device.begin_count()
        others = self._device.others_bytes()
        self._device.reset_peak()
        retries = self._device.alloc_retries()
        with self._borrow(), self._device.held_to_budget() if final else nullcontext():
            what = at_size("a training step" if self._mode == "training" else "a forward pass", plan)
            ran = self._counted(what, lambda: self._probe_steps(plan, final))
            peak, allocated = self._device.peak_bytes(), self._device.peak_allocated_bytes()
            if self._live:
                self._bench = None  # the bench holds the borrowed model
        fresh = self._probes == 1
        others_now = self._device.others_bytes()
        if others is not None and others_now is not None:
            others = max(others, others_now)
        if isinstance(ran, Refused):
            return Measurement(
                plan=plan,
                outcome="oom",
                others_bytes=others,
                seconds=perf_counter() - started,
                fresh=fresh,
                message=ran.message if peak is None else f"{ran.message} (beside {format_size(peak)} in use)",
            )
        finite, step_s = ran
        outcome: Outcome = "ok" if finite else "nonfinite"
        if peak is not None and peak > self._limit.budget_bytes:
            outcome = "over_limit"
        now = self._device.alloc_retries()
        return Measurement(
            plan=plan,
            outcome=outcome,
            step_s=(step_s,),
            peak_bytes=peak,
            allocated_bytes=allocated,
            others_bytes=others,
            alloc_retries=None if retries is None or now is None else now - retries,
            seconds=perf_counter() - started,
            fresh=fresh,
        )

    def _probe_steps(self, plan: Plan, final: bool) -> tuple[bool, float]:
        """Run the steps of a probe. Returns whether every loss was finite, and the seconds of a later step."""
        steps = _FINAL_STEPS if final else _EXPLORE_STEPS
        if self._mode == "inference":
            return self._probe_forward(plan, steps)
        bench = self._workbench(plan)
        batch = self._worst_batch(plan.batch_size)
        losses = [self._step_that_ran(bench, batch) for _ in range(steps)]
        if bench.scaler is not None:
            bench.step_with_zeros()
        self._probe_evaluation(bench, plan)
        size = None if self._task.train_loader is not None else num_samples(self._train_data())
        rest = size % plan.batch_size if size is not None else 0
        # A last batch of one sample harms only batch norm, which cannot take it.
        if rest > 1:
            self._probe_short_batch(bench, rest)
        self._device.synchronize()
        begun = perf_counter()
        losses.append(self._step_that_ran(bench, batch))
        self._device.synchronize()
        step_s = perf_counter() - begun
        if final and self._soak_steps:
            batches = training_batches(self._task, self._train_data(), plan, seed=0, rank=self._rank)
            losses.extend(bench.step(batches) for _ in range(self._soak_steps))
        self._device.synchronize()
        see_that_nothing_was_caught(bench)  # with ranks only here: one that stops by itself leaves the others waiting
        return all(bool(torch.isfinite(loss)) for loss in losses if loss is not None), step_s

    def _step_that_ran(self, bench: Trainer, batch: Batch) -> Tensor | None:
        """Take a step on this batch, of the plan's size.

        Raises:
            torch.OutOfMemoryError: it left fewer gradients than a step on a few samples, or went on after memory had
                run out.
        """
        bench.caught.expect()
        # Ranks would wait for one that takes steps by itself. And if the user has put the model into DDP or FSDP, its
        # gradients are written elsewhere, into buckets and shards.
        if self._group is not None or (dist.is_available() and dist.is_initialized()):
            return bench.step(cycle([batch]))
        with bench.gradients.exactly():
            loss = bench.step(cycle([batch]))
            see_that_nothing_was_caught(bench)
            left = bench.gradients.left
            size = bench.config.plan.batch_size
            if self._usual is None and self._task.training_step is not None and size > COUNTED_SAMPLES:
                self._usual = self._gradients_of_few(bench, 1)
            if not left or (self._usual is not None and not self._usual.always <= left):
                usual = self._usual_for_sure(bench)
                if usual is None or not usual.always <= left or not usual.ever:
                    raise torch.OutOfMemoryError(self._not_run(f"a step on {size} samples"))
        return loss

    def _not_run(self, what: str) -> str:
        whose = "loss(model, batch)" if self._task.training_step is None else "training_step(model, batch, scale)"
        return (
            f"{what} left no gradient, or not all that one on a few samples leaves: {whose} did not run to its end, "
            "and seems to catch an error, such as too little memory"
        )

    def _usual_for_sure(self, bench: Trainer) -> Usual | None:
        """Which parameters get a gradient, after enough steps for a task that trains its parts in turn; once per
        process.

        None if steps on a few samples are refused.
        """
        if not self._is_usual_sure:
            self._usual, self._is_usual_sure = self._gradients_of_few(bench, _STEPS_TO_BE_SURE), True
        return self._usual

    def _gradients_of_few(self, bench: Trainer, steps: int) -> Usual | None:
        plan = bench.config.plan
        left = []
        try:
            few = self._worst_batch(COUNTED_SAMPLES)
            bench.config = replace(bench.config, plan=replace(plan, batch_size=COUNTED_SAMPLES))
            with bench.gradients.exactly():
                for _ in range(steps):
                    bench.step(cycle([few]))
                    left.append(bench.gradients.left)
        except (Exception, SystemExit) as error:
            # A loss over groups of eight takes no two samples; then there is nothing to compare with.
            if self._device.is_out_of_memory(error) or is_device_lost(error):
                raise
            bench.optimizer.zero_grad(set_to_none=True)
            return None
        finally:
            bench.config = replace(bench.config, plan=plan)
        return Usual.of(left)

    def _probe_short_batch(self, bench: Trainer, size: int) -> None:
        """A step on the size that an epoch may leave for its last batch."""
        try:
            bench.step(cycle([self._worst_batch(size)]))
        except (Exception, SystemExit) as error:
            # A loss over pairs cannot take an odd number: such a training drops the last batch.
            if self._device.is_out_of_memory(error) or is_device_lost(error):
                raise
            bench.optimizer.zero_grad(set_to_none=True)

    def _probe_evaluation(self, bench: Trainer, plan: Plan) -> None:
        """One evaluation batch of the same size, if there is enough data, on its largest samples."""
        val_size = num_samples(self._load("val_data"))
        size = min(plan.batch_size, val_size or plan.batch_size)
        batch = self._worst_samples("val_data").batch(size)
        try:
            with bench.caught.watching():
                bench.evaluate([Collated(batch, size)])
        except (Exception, SystemExit) as error:
            # An F1 or an area under the curve may not exist for one batch, but its forward pass has run.
            no_batch = self._task.evaluate is not None and not is_device_lost(error)
            if not no_batch or self._device.is_out_of_memory(error):
                raise

    def _probe_forward(self, plan: Plan, passes: int) -> tuple[bool, float]:
        model = self._task.model().to(self._device.torch_device).eval()
        batch = to_device(self._worst_batch(plan.batch_size), self._device.torch_device)
        caught = Caught(self._device.is_out_of_memory)
        with torch.no_grad(), autocast(self._device.torch_device, plan.precision), caught.watching():
            outputs = [self._task.loss(model, batch) for _ in range(passes - 1)]
            self._device.synchronize()
            begun = perf_counter()
            outputs.append(self._task.loss(model, batch))
        self._device.synchronize()
        step_s = perf_counter() - begun
        caught.see_none(at_size("a forward pass", plan))
        return all(bool(torch.isfinite(output).all()) for output in outputs), step_s
