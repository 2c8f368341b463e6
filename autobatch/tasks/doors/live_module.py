"""A live model, with a sample of its input, its data, or a guess at either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .door import Door, GivenTask, is_a

if TYPE_CHECKING:
    from torch import nn


def _takes(given: object) -> bool:
    return is_a(given, "torch.nn", "Module")


def _opened(given: nn.Module, *, sample: Any = None, data: Any = None, **how: Any) -> GivenTask:
    from ..inputs import task_for_model  # imports torch, as the model's owner has done already

    task, assumed = task_for_model(given, sample, data=data, **how)
    is_guess = sample is None and data is None
    return GivenTask(name=task.name, task=task, is_live=True, assumed=assumed, guess=assumed[0] if is_guess else None)


DOOR = Door(what="a torch.nn.Module", takes=_takes, opened=_opened, is_whole=False)
