"""The learning rates that an optimizer holds."""

from __future__ import annotations

import torch


def held_by(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """Those of its parameter groups at the moment; 0 of a group that has none."""
    return tuple(float(group.get("lr") or 0.0) for group in optimizer.param_groups)


def following(once: tuple[float, ...], twice: tuple[float, ...]) -> list[int]:
    """The groups whose rate in `twice`, made for twice the rate, is another; the rest have one of their own."""
    return [group for group, (before, after) in enumerate(zip(once, twice, strict=True)) if before != after]
