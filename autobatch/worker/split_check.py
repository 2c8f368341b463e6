"""Whether a batch may be split into micro-batches: is its gradient their mean, weighted as in training?

This is checked once, on the task's own loss, with a batch of a few samples and its halves. Dropout and batch norm,
which always depend on the batch, are put into evaluation mode. A loss that draws random numbers in another way cannot
be checked.
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

# Samples in a half, so that it contains pairs.
_HALF = 2
# The numbers of the gradient to compare. Assumed: a loss that cannot be split shows it in any of its parameters.
_COMPARED = 1 << 20
# How far apart two gradients may be by rounding, relative to their norm. Assumed, by precision. A wrongly weighted mean
# over tokens is off by 5 to 20 % in batches of this size.
_ROUNDING = {"fp32": 0.01, "tf32": 0.02, "bf16": 0.05, "fp16": 0.05}


def _batch_in_halves(task: Task, samples: list[Any], batch: Any, count: int) -> list[Any] | None:
    """A training batch and its two halves, which differ as much as the samples allow; None if it cannot be split."""
    if task.train_loader is not None:  # if their number differs, rows are no samples: time steps, two views of each
        return _cut(batch, count) if count > 1 and rows_of(batch) == count else None
    half = min(_HALF, len(samples) // 2, count // 2)  # memory may hold no more than a batch of `count`
    if not half:
        return None
    # By length, padding, labels and other contents: a loss weighs unlike samples differently.
    ordered = sorted(samples, key=_content)
    first, second = ordered[:half], ordered[-half:]
    batches = [collate_samples(task, part) for part in (first + second, first, second)]
    if [rows_of(batch) for batch in batches] == [2 * half, half, half]:
        return _cut(batches[0], 2 * half)  # with equal padding, which is not checked here
    again = collate_samples(task, first + second)
    return batches if _are_equal(again, batches[0]) else None  # a random collate gives each half other values


def _are_equal(one: Any, other: Any) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(torch.equal(torch.as_tensor(left), torch.as_tensor(right)) for left, right in pairs)


def _cut(batch: Any, count: int) -> list[Any]:
    """A batch and its halves, if its rows are its samples."""
    return [batch, *(_rows(batch, count, part) for part in (slice(count // 2), slice(count // 2, None)))]


def _content(part: Any) -> float:
    """A number by which samples differ: how many numbers they hold, and the sum of all whole ones."""
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
        if len(batch) == count and next(tensors_of(batch), None) is None:  # for example a list of texts
            return batch[where]
        return type(batch)(_rows(value, count, where) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: _rows(getattr(batch, name), count, where) for name in names})
    return batch


def split_warnings(
    task: Task, model: nn.Module, samples: list[Any], batch: Any, count: int, device: torch.device
) -> list[str]:
    """A sentence if micro-batches would train differently from the batch. The gradients stay unchanged.

    Args:
        task: has the loss or training step. If it raises on these batches, there is no warning.
        model: on the device.
        samples: the first training samples; empty if the task has its own loader.
        batch: of a few samples, from that loader.
        count: their number; no more go through the model at once.
        device: that of the model.
    """
    try:
        batches = _batch_in_halves(task, samples, batch, count)
    except Exception:  # noqa: BLE001  # the user's collate may raise anything on these samples
        return []
    if batches is None:
        return []
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    everything = list(model.modules())
    random: list[nn.Module] = [module for module in everything if isinstance(module, (_DropoutNd, _NormBase))]
    try:
        warnings = _warnings_with(everything, task, model, batches, device)
        if warnings is None:  # it may run in training mode only (an LSTM on CUDA, a detector)
            warnings = _warnings_with(random, task, model, batches, device)
        return warnings or []
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _warnings_with(
    judging: list[nn.Module], task: Task, model: nn.Module, batches: list[Any], device: torch.device
) -> list[str] | None:
    """The same warnings with some modules in evaluation mode; None if that cannot be run."""
    try:
        with _judging(judging):
            problem = _Compared(task, model, batches, device).problem()
    except Exception:  # noqa: BLE001  # the user's code may raise anything in another mode
        return None
    return [] if problem is None else [problem]


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

    def problem(self) -> str | None:
        """What is wrong with micro-batches; None if nothing is."""
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
        # If a half holds nothing that counts, its loss may not exist.
        halves = [
            self._gradient(half, share) if share else torch.zeros_like(whole)
            for half, share in zip((1, 2), shares, strict=True)
        ]
        size = max(float(one.norm()) for one in (whole, *halves))
        off = float((whole - halves[0] - halves[1]).norm()) / size if size else 0.0
        if not off > self._rounding:  # also if it is not a number, which the check of the loss reports
            return None
        again = self._gradient(0, seed=1)
        if float((whole - again).norm()) > 0.1 * off * size:
            return None  # the loss is random: two batches differ anyway
        return self._sentence(whole, halves, shares, off)

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
        """The weight of a half in training."""
        loss = self._task.loss if self._task.training_step is None else None
        known = counted(self._model, self._hosts[index], loss=loss, weight=self._task.weight)
        return 1.0 if known is None else known

    def _sentence(self, whole: Tensor, halves: list[Tensor], shares: list[float], off: float) -> str:
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
        counted = " to ".join(f"{float(part):.2f}" for part in parts)
        if len(parts) == 2 and rest <= self._rounding and bool((parts > -self._rounding).all()):
            if bool(((parts - 1).abs() < self._rounding * 2).all()):
                return (
                    f"{begin}it is the sum of theirs, where the mean is expected. Divide the loss by the number of "
                    "samples, or set accumulation = False"
                )
            return (
                f"{begin}the halves count {counted} in it, {own} {taken}, so it is a mean over something else. Define "
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
