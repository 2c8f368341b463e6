"""Shares of micro-batches in the mean over a whole batch, if they differ in how many things that is a mean over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import TaskError
from ..tasks.defaults import cross_entropy_loss, labels_counted


def weight_of(weight: Callable[[Any], Any], batch: Any) -> float:
    """The value of a task's `weight` function for a batch.

    Raises:
        TaskError: it is no number, or is below zero.
    """
    answer = weight(batch)
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError):
        returned = "None: is its `return` missing?" if answer is None else f"a {type(answer).__name__}"
        raise TaskError(
            f"weight(batch) returns how many things the loss is a mean over; it returned {returned}"
        ) from None
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
    """How many things the loss of a batch is a mean over; None if these are its samples.

    Args:
        model: as the loss calls it.
        batch: the batch of the loss, if the model computes its loss itself.
        loss: the task's own, or the default; None if a `training_step` computes it.
        weight: the task's function, which has precedence.
    """
    if weight is not None:
        return weight_of(weight, batch)
    return labels_counted(model, batch) if loss is cross_entropy_loss else None


class Shares:
    """The shares in an optimizer step whose micro-batches come one by one, so that none waits for the weights of the
    others.

    Each gets the share that it has if all others weigh as much as the first. At the end, `correction` turns the sum of
    their gradients into the mean; it is 1 if they did.

    Args:
        count: micro-batches of the step on one rank.
        mean_of_ranks: the mean of a number over all ranks; None for one process. All ranks call it equally often.
    """

    def __init__(self, count: int, mean_of_ranks: Callable[[float], float] | None = None) -> None:
        self._count, self._mean = count, mean_of_ranks or float
        self._first = 0.0
        self._seen, self._total = 0, 0.0

    def of(self, weight: float) -> float:
        """The share of the next micro-batch, which has this weight. On several ranks, their mean counts."""
        if self._seen == 0:
            self._first = self._mean(weight) or 1.0
        self._seen += 1
        self._total += weight
        return weight / self._first / self._count

    def correction(self) -> float:
        """The factor that makes the sum of all shares 1; 1.0 if no micro-batch had a weight."""
        if self._count == 1:
            return 1.0
        total = self._mean(self._total)
        return self._count * self._first / total if total else 1.0
