"""What a batch may change before its gradients are certain: saved, and restored after each failed attempt."""

from __future__ import annotations

import gc
from typing import Any, final

import torch
from torch import nn

from ..devices.backend import is_processor
from ..tasks.state import rng_state, set_rng_state


@final
class Before:
    """The state of the model and the random generators before a batch. The gradients are set aside at once."""

    def __init__(self, parts: nn.Module) -> None:
        self._parts = parts
        self._gradients = [(parameter, parameter.grad) for parameter in parts.parameters()]
        self._generators: dict[str, Any] | None = None
        self._drop_gradients()

    def remember(self) -> None:
        """Copy what an attempt may change, once for all attempts. Separate from the rest because memory may be refused.

        All buffers are copied: batch norm changes its statistics without increasing their versions.
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
        """Restore buffers and random generators to their state before the batch."""
        if self._generators is None:  # memory was refused for the copies, and nothing has changed yet
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
        """Add the gradients that were set aside to the new ones. They stay unchanged, to be restored."""
        for parameter, aside in self._gradients:
            if aside is not None and parameter.grad is not None:
                parameter.grad.add_(aside)
            elif aside is not None:
                parameter.grad = aside.clone()

    @torch.no_grad()
    def keep_gradients(self) -> None:
        """Put the sums into the tensors that existed before: others may hold them, for example in one flat buffer."""
        for parameter, aside in self._gradients:
            if aside is not None and parameter.grad is not None:
                aside.copy_(parameter.grad)
                parameter.grad = aside

    def put_gradients_back(self) -> None:
        """Restore the gradients from before the batch."""
        for parameter, aside in self._gradients:
            parameter.grad = aside

    def _drop_gradients(self) -> None:
        for parameter, _ in self._gradients:
            parameter.grad = None
