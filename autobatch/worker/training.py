"""The optimizer step as the user's task takes it.

`Trainer` owns a model, its optimizer, schedule and scaler for one trial (or one probe). It knows nothing about budgets,
segments or searches; `torch_runner.py` calls it for steps.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.plan import Config, Precision
from ..devices.oom import is_out_of_memory
from ..errors import TaskError
from ..tasks.data import Batch, Collated, DeviceLoader, rows_of, seed_everything, to_device
from ..tasks.defaults import accuracy, cross_entropy_loss, right_and_counted
from ..tasks.task import Task
from .carried_state import Carried
from .caught import Caught
from .data_parallel import DataParallel
from .gradients import clip_norm, gradients_of, multiply, sparse_parameters, total_norm, zero_gradient
from .modes import judged, to_train
from .rates import following, held_by, of_groups
from .shares import Shares, counted
from .swallowed import GradientWatch

# Without a clip, the norm of the gradient is measured at every step whose number is a multiple of this. Measured on
# three small models on a CPU: at every step it costs 7 to 13 % of the steps per second, at every sixteenth 0.5 to 0.9 %
# (benchmarks/NOTES.md).
NORM_EVERY = 16
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context of a forward pass: autocast to the precision's type, or nothing for fp32 and tf32."""
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def made_ready(task: Task, batches: list[Batch]) -> list[Batch]:
    """The micro-batches of a step as the task's `before_step` gives them; as they are, where it has none.

    Raises:
        TaskError: it returns another number of them.
    """
    if task.before_step is None:
        return batches
    given: Any = task.before_step(batches)
    if given is None:
        raise TaskError("before_step(batches) returns the micro-batches to train on; it returned None")
    ready: list[Batch] = list(given)
    if len(ready) != len(batches):
        raise TaskError(
            f"before_step(batches) returns as many micro-batches as it is passed; of {len(batches)} it returned "
            f"{len(ready)}"
        )
    return ready


class Trainer:
    """One model in training under one configuration: the state between optimizer steps, and the step.

    Args:
        task: gives the model, loss, optimizer, scheduler and the rest.
        config: micro-batch size, accumulation, precision and learning rate.
        device: where the model trains.
        seed: of initialisation, dropout and (through the caller) data order.
        total_steps: the length of the schedule.
        group: the ranks that train it together, each with a trainer like this one; None for one process.
        is_out_of_memory: the device's own test, for errors that the task's code catches in a step.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        device: torch.device,
        *,
        seed: int,
        total_steps: int,
        group: DataParallel | None = None,
        is_out_of_memory: Callable[[BaseException], bool] = is_out_of_memory,
    ) -> None:
        seed_everything(seed)
        self.group = group
        self.task, self.config, self.device, self.total_steps = task, config, device, total_steps
        self.step_count = self.scheduler_steps = 0
        self.on_part: Callable[[str], None] | None = None  # called when a part of a step has been queued
        self._layout = torch.channels_last if task.channels_last else None
        # The norm of the last step's gradient before clipping, on the device; None if it was not measured.
        self.grad_norm: Tensor | None = None
        self.model: nn.Module = task.model().to(device)
        if self._layout is not None:
            self.model.to(memory_format=self._layout)  # type: ignore[call-overload]  # missing in torch's stub
        self.model.train()
        self.optimizer = task.optimizer(self.model, config.lr)
        to_train(self.optimizer)
        self.scheduler = task.scheduler(self.optimizer, total_steps) if task.scheduler else None
        self._scheduled_groups = len(self.optimizer.param_groups)
        self.scaler = torch.amp.GradScaler(device.type) if config.plan.precision == "fp16" else None
        # A stateful hook (an EMA copy) belongs to one trial; a plain function is shared as it is.
        stateful = hasattr(task.after_step, "state_dict")
        self.after_step = copy.deepcopy(task.after_step) if stateful else task.after_step
        # A compiled module keeps the parameters, buffers and attributes of the one it was made from.
        self.forward = cast(nn.Module, torch.compile(self.model)) if task.compile else self.model
        self.gradients = GradientWatch(self.model)
        self.caught = Caught(is_out_of_memory)
        self._is_by_labels = task.weight is None and task.training_step is None and task.loss is cross_entropy_loss
        self.carried = self.carried_anew()
        # Made in the first step, which all ranks take: a rank that only evaluates must not wait for the others.
        self._together: nn.Module | None = None
        # A new seed, after any that model() may have set: dropout and augmentation follow the trial's seed, and differ
        # between ranks.
        own = (seed * 1_000_003 + 1) % 2**63
        seed_everything(own if group is None else group.seed_of_rank(own))

    def rate_shares(self) -> list[float | None]:
        """The share of the requested rate that each parameter group holds before the first step.

        None for a group that has its own rate.
        """
        lr = self.config.lr
        twice = held_by(self.task.optimizer(self.model, 2 * lr))
        # Made last, as a task may keep it for its hooks.
        self.optimizer = self.task.optimizer(self.model, lr)
        to_train(self.optimizer)
        once = held_by(self.optimizer)
        follow = following(once, twice)
        return [rate / lr if group in follow else None for group, rate in enumerate(once)]

    def carried_anew(self) -> Carried:
        """What a step may change beside the model, as it is now."""
        return Carried(self.task, self.model, self.optimizer, self.scheduler, self.scaler, self.forward)

    def loss(self, batch: Batch, *, counts: bool = True) -> Tensor:
        """The task's loss of a batch on the device, as a scalar tensor with its graph.

        Args:
            batch: one micro-batch.
            counts: False if the batch holds nothing that the loss is a mean over, so that its loss may not exist.

        Raises:
            TaskError: the loss is not a scalar tensor.
        """
        if not counts:
            return self._nothing()
        with autocast(self.device, self.config.plan.precision):
            loss = self.task.loss(self.forward, batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            returned = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TaskError(
                f"loss(model, batch) returns a scalar tensor, the mean over the batch; it returned {returned}"
            )
        return loss

    def _nothing(self) -> Tensor:
        """A loss of zero with a gradient of zero for every parameter: other ranks wait for them."""
        sparse = sparse_parameters(self.model)
        trained = (p for p in self.model.parameters() if p.requires_grad and id(p) not in sparse)
        start = torch.zeros((), device=self.device, requires_grad=True)  # needed if all gradients are sparse
        return torch.stack([start, *(parameter.flatten()[:1].sum() * 0.0 for parameter in trained)]).sum()

    def _synced(self) -> nn.Module:
        """What DDP wraps to average the gradients: the loss, or the model if a task has its own training step.

        DDP wraps the loss as a whole, so that the loss may use any attribute and any method of the model.
        """
        assert self.group is not None
        if self._together is None:
            whole = self.forward if self.task.training_step is not None else _LossOf(self)
            self._together = self.group.wrapped(whole)
        return self._together

    def backward(self, batch: Batch, *, is_last: bool = True, shares: Shares | None = None) -> Tensor | None:
        """Add the gradients of a batch. Returns its loss times its share in the step, if the task returns one.

        Args:
            batch: one micro-batch of an optimizer step, on any device.
            is_last: whether it is the last one of the step. Before it, ranks do not exchange gradients.
            shares: those of the step; None if all micro-batches have the same.
        """
        if self.group is None:
            return self._backward_with(self.forward, self.loss, batch, shares)
        synced = self._synced()
        with nullcontext() if is_last else self.group.without_sync(synced):
            return self._backward_with(synced, synced, batch, shares)

    def _backward_with(
        self, forward: nn.Module, loss_of: Callable[..., Tensor], batch: Batch, shares: Shares | None
    ) -> Tensor | None:
        # The task's own weight may be zero, and is computed first; the number of labels is known after the forward
        # pass.
        weight = self._weight_of(batch) if shares is not None and not self._is_by_labels else None
        arrived = self._arrived(batch)
        if self.task.training_step is not None:
            share = self._share(shares, weight)
            # The backward pass is the user's, so the scaler's factor goes into the share by which they multiply.
            factor = share if self.scaler is None else float(self.scaler.scale(torch.tensor(share, device=self.device)))
            with autocast(self.device, self.config.plan.precision):
                loss: Any = self.task.training_step(forward, arrived, factor)
            self._done("forward and backward")
            return loss.detach() * share if isinstance(loss, Tensor) else None
        mean = loss_of(arrived, counts=weight != 0)
        self._done("forward")
        if shares is not None and weight is None:
            weight = self._weight_of(batch)
        scaled = mean * self._share(shares, weight)
        (self.scaler.scale(scaled) if self.scaler else scaled).backward()
        self._done("backward")
        return scaled.detach()

    def _share(self, shares: Shares | None, weight: float | None) -> float:
        if shares is None or weight is None:
            return 1 / self.config.plan.accumulation_steps
        return shares.of(weight)

    def _shares(self) -> Shares | None:
        """The shares of the next step; None if all micro-batches are equal for certain, or there is only one."""
        count = self.config.plan.accumulation_steps
        is_split = count > 1 or self.group is not None
        # The task's own weight is always used: if it is zero there is no loss.
        if self.task.weight is None and not (is_split and (self._is_by_labels or self.task.train_loader is not None)):
            return None
        return Shares(count, None if self.group is None else self.group.mean)

    def _weight_of(self, batch: Batch, samples: int | None = None) -> float:
        """How many things the loss of a batch is a mean over; by default its samples."""
        loss = self.task.loss if self.task.training_step is None else None
        known = counted(self.forward, batch, loss=loss, weight=self.task.weight)
        return float(samples or rows_of(batch) or self.config.plan.batch_size) if known is None else known

    def _arrived(self, batch: Batch) -> Batch:
        moved = to_device(batch, self.device, self._layout)
        self._done("copy")
        return moved

    def _done(self, part: str) -> None:
        if self.on_part is not None:
            self.on_part(part)

    def step(self, batches: Iterator[Batch]) -> Tensor | None:
        """Take one optimizer step. Returns the mean loss over its micro-batches, still on the device.

        With several ranks it is the mean of this rank. None if a `training_step` returns no loss.
        """
        if not self.caught.is_due:
            return self._step(batches)
        with self.caught.watching():
            return self._step(batches)

    def _step(self, batches: Iterator[Batch]) -> Tensor | None:
        last = self.config.plan.accumulation_steps - 1
        if self.task.before_step is not None:
            batches = iter(made_ready(self.task, list(islice(batches, last + 1))))
        shares = self._shares()
        self.gradients.begin()
        losses = []
        for index in range(last + 1):
            losses.append(self.backward(next(batches), is_last=index == last, shares=shares))
            self.gradients.see()
        self.gradients.end()
        correction = shares.correction() if shares is not None else 1.0
        if correction != 1:
            stepped_on = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            multiply(gradients_of({*self.model.parameters(), *stepped_on}), correction)
        stepped = True
        # A scaler raises without a gradient, where an optimizer does nothing.
        scaler = self.scaler if self.scaler is not None and self.gradients.has_gradients else None
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.task.clip_grad_norm is not None:
            self.grad_norm = clip_norm(self.model.parameters(), self.task.clip_grad_norm)
        else:
            self.grad_norm = self._norm() if self.step_count % NORM_EVERY == 0 else None
        if scaler is None:
            self.optimizer.step()
        else:
            scale = scaler.get_scale()
            scaler.step(self.optimizer)
            scaler.update()
            stepped = scaler.get_scale() >= scale  # a smaller scale means that the step was skipped
        # The schedule counts the steps that were taken. torch warns if it is ahead of the optimizer.
        if self.scheduler is not None and stepped:
            with of_groups(self.optimizer, self.scheduler, self._scheduled_groups):
                self.scheduler.step()
            self.scheduler_steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.after_step is not None:
            self.after_step(self.model, self.step_count)
        self.step_count += 1
        self._done("optimizer")
        known = [loss for loss in losses if loss is not None]
        return torch.stack(known).sum() * correction if known else None

    def _norm(self) -> Tensor | None:
        """The norm of the gradient, still on the device; None if there is no gradient."""
        gradients = gradients_of(self.model.parameters())
        return total_norm(gradients) if gradients else None

    def step_with_zeros(self) -> None:
        """Take an optimizer step on gradients of zero, so that its state exists if fp16 has skipped every step so far.

        A gradient scaler begins at 65,536 and halves at each step that overflows; a measurement takes too few of them.
        """
        sparse = sparse_parameters(self.model)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = zero_gradient(parameter, sparse=id(parameter) in sparse)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self, batches: Iterable[Collated]) -> float:
        """The task's score over an evaluation set: its `evaluate`, or the mean of `metric` over samples.

        If `metric` returns one number for a batch, the batch is weighted by what the loss is a mean over: its samples,
        unless the task says otherwise; for the default metric, its labels. If its rows are not its samples (two views
        of each, samples that `collate` left out), `metric` may return one score per row, and each counts as one.

        Raises:
            TaskError: the metric is neither one score per sample nor their mean, or the result is no number.
        """
        was_training = self.model.training
        self.model.eval()
        loader = DeviceLoader(batches, self.device, self._layout)
        try:
            with judged(self.optimizer), torch.no_grad(), autocast(self.device, self.config.plan.precision):
                if self.task.evaluate is not None:
                    return self._number(self.task.evaluate(self.forward, loader), "evaluate(model, loader)")
                total, weight, seen = 0.0, 0.0, 0
                for batch, size in loader.counted():
                    of_batch, batch_weight = self._scored(batch, size)
                    total, weight, seen = total + of_batch, weight + batch_weight, seen + 1
        finally:
            self.model.train(was_training)
        if not seen:
            raise TaskError("val_data() gives no batch to evaluate on")
        if not weight:
            raise TaskError(
                "nothing in val_data() counts: all of its labels are ignored, or weight(batch) is 0 for all"
            )
        return total / weight

    def _scored(self, batch: Batch, size: int) -> tuple[float, float]:
        """The sum of the scores of a batch of `size` samples, and their number.

        Raises:
            TaskError: the metric is neither one score per sample nor a mean.
        """
        if self.task.metric is accuracy:
            right, counted = right_and_counted(self.forward, batch)
            return float(right.sum()), float(counted.sum())
        values = torch.as_tensor(self.task.metric(self.forward, batch)).detach()
        if values.ndim == 1 and len(values) == rows_of(batch):
            size = len(values)
        if values.shape not in {(), (size,)}:
            raise TaskError(
                f"metric(model, batch) returns one score a sample, shape ({size},), or their mean, "
                f"shape (); it returned shape {tuple(values.shape)}"
            )
        weight = float(size) if values.ndim else self._weight_of(batch, size)
        # On the host: MPS has no float64. A mean over nothing may be nan, and has no weight.
        return (float(values.cpu().double().mean()) * weight if weight else 0.0), weight

    @staticmethod
    def _number(value: object, what: str) -> float:
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise TaskError(f"{what} returns a number; it returned {type(value).__name__}") from None


class _LossOf(nn.Module):
    """The loss of a batch as a module that contains the model."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model = trainer.model
        self._loss = weakref.WeakMethod(trainer.loss)  # the trainer holds this module: no cycle

    def forward(self, batch: Batch, *, counts: bool = True) -> Tensor:
        loss = self._loss()
        assert loss is not None
        return loss(batch, counts=counts)
