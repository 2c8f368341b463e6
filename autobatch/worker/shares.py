"""Shares of micro-batches in the mean over all of a batch, where they hold unlike numbers of what it is a mean over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import TaskError
from ..tasks.defaults import cross_entropy_loss, labels_counted


def weight_of(weight: Callable[[Any], Any], batch: Any) -> float:
    """What the function `weight` of a task says of a batch.

    Raises:
        TaskError: it is no number, or below zero.
    """
    said = weight(batch)
    try:
        value = float(said)
    except (TypeError, ValueError, RuntimeError):
        found = "None: is its `return` missing?" if said is None else f"a {type(said).__name__}"
        raise TaskError(f"weight(batch) returns how many things the loss is a mean over; it returned {found}") from None
    if not math.isfinite(value) or value < 0:
        raise TaskError(f"weight(batch) returns how many things the loss is a mean over; it returned {value}")
    return value


def counted(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[..., Any] | None,
    weight: Callable[[Any], Any] | None,
) -> float | None:
    """How many things the loss of a batch is a mean over; None where they are its samples.

    Args:
        model: as the loss calls it.
        batch: that the loss has been taken of, where the model computes its loss itself.
        loss: the task's own, or the default; None where a `training_step` takes it.
        weight: of the task, which goes before all else.
    """
    if weight is not None:
        return weight_of(weight, batch)
    return labels_counted(model, batch) if loss is cross_entropy_loss else None


class Shares:
    """Of an optimizer step, whose micro-batches come one by one: none is kept waiting for the weights of the others.

    Each gets the share that it has if all others are as heavy as the first. When all have come, `correction` turns the
    sum of their gradients into the mean: 1 where they were.

    Args:
        count: micro-batches of the step, of one rank.
        mean_of_ranks: of a number that each rank passes; None in one process. All ranks ask equally often.
    """

    def __init__(self, count: int, mean_of_ranks: Callable[[float], float] | None = None) -> None:
        self._count, self._mean = count, mean_of_ranks or float
        self._first = 0.0
        self._seen, self._total = 0, 0.0

    def of(self, weight: float) -> float:
        """The share of the next micro-batch, whose weight this is. Of all ranks' shares the mean is taken."""
        if self._seen == 0:
            self._first = self._mean(weight) or 1.0
        self._seen += 1
        self._total += weight
        return weight / self._first / self._count

    def correction(self) -> float:
        """What to multiply the sum of all shares by, so that it is 1; 1.0 where no micro-batch had a weight."""
        if self._count == 1:
            return 1.0
        total = self._mean(self._total)
        return self._count * self._first / total if total else 1.0
