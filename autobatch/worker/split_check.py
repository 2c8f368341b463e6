"""Whether a batch may be cut into micro-batches: is its gradient the mean of theirs, weighed as training weighs them?

Looked at once, on the task's own loss, with a batch of a few samples and its halves. Dropout and batch norm, which see
another batch in any case, are put into the mode to judge; a loss that draws at random otherwise says nothing here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ..tasks.data import collate_samples, rows_of, seed_everything, tensors_of, to_device
from ..tasks.task import Task
from .shares import counted
from .training import autocast

# Samples of a half, so that there are pairs in it.
_HALF = 2
# Numbers of the gradient that are compared. Assumed: a loss that cannot be split shows it in any of its parameters.
_COMPARED = 1 << 20
# How far apart two gradients are that differ by rounding, as a part of their norm. Assumed, by the precision; a mean
# over tokens is off by 5 to 20 % in batches of this size.
_ROUNDING = {"fp32": 0.01, "tf32": 0.02, "bf16": 0.05, "fp16": 0.05}


def _batch_in_halves(task: Task, samples: list[Any], batch: Any, count: int) -> list[Any] | None:
    """A training batch and its two halves, as unlike each other as the samples allow; None where it cannot be cut."""
    if task.train_loader is not None:  # rows of another number are no samples: time steps, two views of each
        return _cut(batch, count) if count > 1 and rows_of(batch) == count else None
    half = min(_HALF, len(samples) // 2, count // 2)  # memory may hold no more than the batch that was asked for
    if not half:
        return None
    # By length, padding, labels, whatever they hold: a loss counts unlike samples unlike.
    ordered = sorted(samples, key=_content)
    first, second = ordered[:half], ordered[-half:]
    batches = [collate_samples(task, part) for part in (first + second, first, second)]
    if [rows_of(batch) for batch in batches] == [2 * half, half, half]:
        return _cut(batches[0], 2 * half)  # padded alike: what is made of the padding is another matter
    again = collate_samples(task, first + second)
    return batches if _are_equal(again, batches[0]) else None  # where collate draws, halves have draws of their own


def _are_equal(one: Any, other: Any) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(torch.equal(torch.as_tensor(left), torch.as_tensor(right)) for left, right in pairs)


def _cut(batch: Any, count: int) -> list[Any]:
    """A batch and its halves, where its rows are its samples."""
    return [batch, *(_rows(batch, count, part) for part in (slice(count // 2), slice(count // 2, None)))]


def _content(part: Any) -> float:
    """A number that unlike samples differ in: how much they hold, and the sum of all whole numbers in it."""
    if isinstance(part, (Tensor, np.ndarray)):
        values = torch.as_tensor(part)
        if values.is_nested or values.is_floating_point() or values.is_complex():
            return float(values.numel())
        return float(values.numel()) + float(values.sum())
    if isinstance(part, Mapping):
        return sum(map(_content, part.values()))
    if isinstance(part, (list, tuple)):
        return len(part) + sum(map(_content, part))
    if isinstance(part, int):
        return float(part)
    return float(len(part)) if isinstance(part, (str, bytes)) else 0.0


def _rows(batch: Any, count: int, where: slice) -> Any:
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch[where] if batch.ndim else batch
    if isinstance(batch, Mapping):
        parts = {key: _rows(value, count, where) for key, value in batch.items()}
        return parts if type(batch) is dict else type(batch)(parts)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_rows(value, count, where) for value in batch))
    if isinstance(batch, (list, tuple)):
        if len(batch) == count and next(tensors_of(batch), None) is None:  # such as of texts
            return batch[where]
        return type(batch)(_rows(value, count, where) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: _rows(getattr(batch, name), count, where) for name in names})
    return batch


def split_warnings(
    task: Task, model: nn.Module, samples: list[Any], batch: Any, count: int, device: torch.device
) -> list[str]:
    """A sentence where micro-batches would train something else than the batch does; gradients stay as they are.

    Args:
        task: its loss or training step. An error of theirs on these batches says nothing here.
        model: on the device.
        samples: the first of the training data; none where the task has a loader of its own.
        batch: of that loader, of a few samples.
        count: of those; no more go through the model at once.
        device: where the model is.
    """
    try:
        batches = _batch_in_halves(task, samples, batch, count)
    except Exception:  # noqa: BLE001  # the user's collate may raise anything: it has run on other samples
        return []
    if batches is None:
        return []
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    everything = list(model.modules())
    random: list[nn.Module] = [module for module in everything if isinstance(module, (_DropoutNd, _NormBase))]
    try:
        found = _warnings_with(everything, task, model, batches, device)
        if found is None:  # it may train in its own mode only (an LSTM on CUDA, a detector)
            found = _warnings_with(random, task, model, batches, device)
        return found or []
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _warnings_with(
    judging: list[nn.Module], task: Task, model: nn.Module, batches: list[Any], device: torch.device
) -> list[str] | None:
    """The same with some modules in the mode to judge; None where that cannot be run."""
    try:
        with _judging(judging):
            found = _Compared(task, model, batches, device).verdict()
    except Exception:  # noqa: BLE001  # the user's code may raise anything in a mode that it was not written for
        return None
    return [] if found is None else [found]


@contextmanager
def _judging(modules: list[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Compared:
    """The gradient of a batch beside those of its halves."""

    def __init__(self, task: Task, model: nn.Module, batches: list[Any], device: torch.device) -> None:
        self._task, self._model, self._device = task, model, device
        self._batches = [to_device(batch, device) for batch in batches]
        self._hosts = batches
        self._parameters: list[nn.Parameter] = []
        for parameter in sorted((p for p in model.parameters() if p.requires_grad), key=Tensor.numel):
            if self._parameters and sum(p.numel() for p in self._parameters) + parameter.numel() > _COMPARED:
                break
            self._parameters.append(parameter)
        self._what = "loss(model, batch)" if task.training_step is None else "training_step(model, batch, scale)"
        low = any(p.dtype in (torch.bfloat16, torch.float16) for p in self._parameters)
        self._rounding = _ROUNDING["bf16" if low else task.precision]

    def verdict(self) -> str | None:
        """What is wrong with micro-batches, if anything is."""
        before = [parameter._version for parameter in self._parameters]
        whole = self._gradient(0)
        if [parameter._version for parameter in self._parameters] != before:
            return (
                f"{self._what} changes the model's parameters itself, as an optimizer of its own would: its steps "
                "cannot be accumulated. Set accumulation = False"
            )
        weights = [self._weight(half) for half in (1, 2)]
        if not sum(weights):
            return None
        shares = [weight / sum(weights) for weight in weights]
        # Where nothing in a half counts there may be no loss of it.
        halves = [
            self._gradient(half, share) if share else torch.zeros_like(whole)
            for half, share in zip((1, 2), shares, strict=True)
        ]
        size = max(float(one.norm()) for one in (whole, *halves))
        off = float((whole - halves[0] - halves[1]).norm()) / size if size else 0.0
        if not off > self._rounding:  # or not a number, which the check of the loss tells
            return None
        again = self._gradient(0, seed=1)
        if float((whole - again).norm()) > 0.1 * off * size:
            return None  # it draws at random: two batches differ anyway
        return self._told(whole, halves, shares, off)

    def _gradient(self, index: int, share: float = 1.0, *, seed: int = 0) -> Tensor:
        """The batch's gradient times a share, in double precision on the host."""
        for parameter in self._model.parameters():
            parameter.grad = None
        seed_everything(seed)
        with autocast(self._device, self._task.precision):
            if self._task.training_step is not None:
                self._task.training_step(self._model, self._batches[index], share)
            else:
                loss = self._task.loss(self._model, self._batches[index]) * share
        if self._task.training_step is None:
            loss.backward()
        return torch.cat([_flat(parameter) for parameter in self._parameters])

    def _weight(self, index: int) -> float:
        """What training takes a half for."""
        loss = self._task.loss if self._task.training_step is None else None
        known = counted(self._model, self._hosts[index], loss=loss, weight=self._task.weight)
        return 1.0 if known is None else known

    def _told(self, whole: Tensor, halves: list[Tensor], shares: list[float], off: float) -> str:
        ignores_scale = float((whole - (halves[0] + halves[1]) / 2).norm()) <= self._rounding * float(whole.norm())
        if self._task.training_step is not None and ignores_scale and shares[0] == shares[1]:
            return (
                f"{self._what} does not multiply its loss by `scale`: the gradients of micro-batches would add up to a "
                "larger one than the batch has. Write (loss * scale).backward(), or set accumulation = False"
            )
        begin = (
            f"the gradient of {self._what} over a batch of a few samples is not that of its two halves put together "
            f"(off by {100 * off:.0f} %): "
        )
        units = torch.stack([half / share for half, share in zip(halves, shares, strict=True) if share], dim=1)
        parts = torch.linalg.lstsq(units, whole[:, None], driver="gelsd").solution[:, 0]
        rest = float((whole - units @ parts).norm()) / float(whole.norm())
        own = "weight(batch) says" if self._task.weight is not None else "and accumulation takes them for"
        taken = " to ".join(f"{share:.2f}" for share in shares if share)
        found = " to ".join(f"{float(part):.2f}" for part in parts)
        if len(parts) == 2 and rest <= self._rounding and bool((parts > -self._rounding).all()):
            if bool(((parts - 1).abs() < self._rounding * 2).all()):
                return (
                    f"{begin}it is the sum of theirs, where the mean is expected. Divide the loss by the number of "
                    "samples, or set accumulation = False"
                )
            return (
                f"{begin}the halves count {found} in it, {own} {taken}, so it is a mean over something else. Define "
                "weight(batch), how many things the loss is a mean over (`(batch[1] != -100).sum()` for tokens), or "
                "set accumulation = False"
            )
        return (
            f"{begin}the samples of a batch are coupled in it, so no weights of micro-batches make up for that. Set "
            "accumulation = False, or let the loss be a mean over samples (over other things with weight(batch))"
        )


def _flat(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), dtype=torch.float64)
    gradient = parameter.grad if parameter.grad.layout is torch.strided else parameter.grad.to_dense()
    return gradient.detach().flatten().to("cpu", torch.float64)
