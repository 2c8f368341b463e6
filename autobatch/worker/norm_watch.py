"""The norms of the gradients of a segment, read without waiting for the device at every step."""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor

from ..core.segment import GradNorms


class NormWatch:
    """Collects the norms of the gradient of a segment without waiting for the device at every step.

    Args:
        clip: the task's `clip_grad_norm`.
    """

    def __init__(self, clip: float | None) -> None:
        self._clip = clip
        self._pending: list[Tensor] = []
        self._seen: list[float] = []

    def see(self, norm: Tensor | None) -> None:
        """Record the norm of a step, and leave it on the device."""
        if norm is not None:
            self._pending.append(norm)

    def read(self) -> None:
        """Fetch the recorded norms, which waits for the device."""
        if self._pending:
            self._seen += torch.stack(self._pending).float().tolist()
            self._pending.clear()

    def summary(self) -> GradNorms | None:
        """The summary of all norms read; None if none was finite. A step that fp16 skips has no finite norm."""
        finite = [norm for norm in self._seen if math.isfinite(norm)]
        if not finite:
            return None
        clipped = None if self._clip is None else sum(norm > self._clip for norm in finite) / len(finite)
        return GradNorms(median=median(finite), largest=max(finite), clipped=clipped)
