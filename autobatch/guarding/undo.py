"""What a batch may change before its gradients are sure: kept, and put back after each attempt that failed."""

from __future__ import annotations

import gc
from typing import Any, final

import torch
from torch import nn

from ..devices.backend import is_processor
from ..tasks.state import rng_state, set_rng_state


@final
class Before:
    """What the model and the random generators were before a batch; the gradients are set aside at once."""

    def __init__(self, parts: nn.Module) -> None:
        self._parts = parts
        self._gradients = [(parameter, parameter.grad) for parameter in parts.parameters()]
        self._generators: dict[str, Any] | None = None
        self._drop_gradients()

    def remember(self) -> None:
        """Copy what an attempt may change, once for all attempts; apart from the rest because memory may be refused.

        All buffers are copied: batch norm changes its statistics without counting up their versions.
        """
        if self._generators is None:
            self._buffers = [(module._buffers, dict(module._buffers)) for module in self._parts.modules()]
            self._values = [(buffer, buffer.detach().clone()) for buffer in self._parts.buffers()]
            self._generators = rng_state()

    def restore(self) -> None:
        """Undo an attempt, and give back the memory that it took."""
        self._drop_gradients()
        gc.collect()
        for kind in {one.device.type for one, _ in self._gradients if not is_processor(one.device)}:
            torch.get_device_module(kind).empty_cache()
        self.put_values_back()

    def put_values_back(self) -> None:
        """Make buffers and random generators what they were before the batch."""
        if self._generators is None:  # memory was refused to the copies, and nothing had changed yet
            return
        for slots, buffers in self._buffers:
            slots.clear()
            slots.update(buffers)
        with torch.no_grad():
            for buffer, value in self._values:
                buffer.copy_(value)
        set_rng_state(self._generators)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add what was set aside to the new gradients; itself it stays as it was, to be put back."""
        for parameter, aside in self._gradients:
            if aside is not None and parameter.grad is not None:
                parameter.grad.add_(aside)
            elif aside is not None:
                parameter.grad = aside.clone()

    @torch.no_grad()
    def keep_gradients(self) -> None:
        """Leave the sums in the very tensors that were there before: others may hold them, as one flat buffer."""
        for parameter, aside in self._gradients:
            if aside is not None and parameter.grad is not None:
                aside.copy_(parameter.grad)
                parameter.grad = aside

    def put_gradients_back(self) -> None:
        """Leave the gradients as they were before the batch."""
        for parameter, aside in self._gradients:
            parameter.grad = aside

    def _drop_gradients(self) -> None:
        for parameter, _ in self._gradients:
            parameter.grad = None
