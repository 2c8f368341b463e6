"""The learning rates that an optimizer holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import TaskError, with_class


def held_by(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """The present rates of its parameter groups; 0 for a group that has none."""
    return tuple(float(group.get("lr") or 0.0) for group in optimizer.param_groups)


def following(once: tuple[float, ...], twice: tuple[float, ...]) -> list[int]:
    """The groups whose rate differs in `twice`, made with twice the rate. The others set their own rate."""
    return [group for group, (before, after) in enumerate(zip(once, twice, strict=True)) if before != after]


@contextmanager
def of_groups(optimizer: torch.optim.Optimizer, schedule: Any, groups: int) -> Iterator[None]:
    """Steps of a schedule that was made for the first `groups` parameter groups of the optimizer.

    Raises:
        TaskError: it fails, and groups have been added since it was made.
    """
    try:
        yield
    except Exception as error:
        if len(optimizer.param_groups) <= groups:
            raise
        raise TaskError(
            f"{type(schedule).__name__} failed ({with_class(error)}) because a parameter group was added after it was "
            "made: torch's schedules set the rates of the groups that they were made with. Leave out "
            "add_param_group(), and let optimizer(model, lr) put all parameters into groups, those that train later "
            "too: a parameter with requires_grad=False has no gradient, and is not stepped until requires_grad_(True)"
        ) from error
