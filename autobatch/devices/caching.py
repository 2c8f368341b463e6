"""A card behind a torch module with a caching allocator: torch.cuda, and modules like it."""

from __future__ import annotations

import gc
from typing import Any

import torch

from ..core.facts import MemoryLimit
from ..errors import DeviceError
from .backend import Backend
from .base import Device
from .limits import budget_bytes, capacity, check_limit


class CachingDevice(Device):
    """One card and its memory. Subclasses add the vendor's facts.

    Memory is what the caching allocator has reserved, since that is what the driver sees and refuses; tensors fill less
    of it. Memory that this process takes outside of it after the limit was set counts too: kernels that are loaded when
    they are first called, handles and workspaces of libraries. The driver's context and the memory of other processes
    were there before, and do not count.

    Args:
        index: its number among the devices that this process sees.
        backend: its row of the table.
        module: torch's module for it, or a stand-in in tests.
    """

    def __init__(self, index: int, backend: Backend, module: Any) -> None:
        self.backend = backend
        self.torch_device = torch.device(backend.torch_name, index)
        self._index, self._module = index, module
        self._fraction_before: float | None = (
            None  # the allocator's own limit, to be restored; None while ours is not set
        )
        self._outside_at_start = 0
        self._others_at_start: int | None = None

    def set_limit(self, memory_limit_bytes: int | None, headroom: float) -> MemoryLimit:
        """Set what this process may take from now on, beside the context. A limit or headroom becomes a limit of the
        allocator.

        The capacity is what is already reserved plus the driver's free memory, so that the context and other processes
        are excluded. Headroom is a budget below it: a peak between the two is measured, not refused. The allocator's
        limit keeps the capacity in place if another process frees memory.
        """
        check_limit(memory_limit_bytes, headroom)
        self.lift_limit()
        free, _ = self._free_and_total()
        available = free + self._module.memory_reserved(self._index)
        if available <= 0:
            raise DeviceError(
                f"{self.torch_device} has no free memory: other processes hold all of it. End one of them"
            )
        usable, source = capacity(memory_limit_bytes, available, "free on the device")
        self._outside_at_start, self._others_at_start = self._outside_bytes(), self.others_bytes()
        total = self._module.get_device_properties(self._index).total_memory
        if (users := int(self._fraction() * total)) < usable:
            usable, source = users, "the memory fraction that was set for this process"
        if memory_limit_bytes is not None or headroom > 0:
            # The allocator compares its reserved memory with this share of totalGlobalMem
            # (c10/cuda/CUDACachingAllocator.cpp, setMemoryFraction), so the share is computed from the same number.
            self._fraction_before = self._fraction()
            self._module.set_per_process_memory_fraction(min(self._fraction_before, usable / total), self._index)
        return MemoryLimit(capacity_bytes=usable, budget_bytes=budget_bytes(usable, headroom), source=source)

    def lift_limit(self) -> None:
        if self._fraction_before is not None:
            self._module.set_per_process_memory_fraction(self._fraction_before, self._index)
            self._fraction_before = None

    def _fraction(self) -> float:
        # torch.cuda can report it since 2.7. The user may have set one, also in PYTORCH_CUDA_ALLOC_CONF.
        ask = getattr(self._module, "get_per_process_memory_fraction", None)
        return 1.0 if ask is None else float(ask(self._index))

    def synchronize(self) -> None:
        self._module.synchronize(self._index)

    def reset_peak(self) -> None:
        # Otherwise memory kept from a larger step would count as reserved in the whole next window.
        self.clean_up()
        self._module.reset_peak_memory_stats(self._index)

    def peak_bytes(self) -> int | None:
        """The most memory of this process since `reset_peak`, counted as in `set_limit`.

        It is the most that was reserved, plus the growth of memory outside of the allocator since the limit was set. If
        it is unknown how much of that growth belongs to other processes, all of it counts.
        """
        others = self.others_bytes()
        growth = self._outside_bytes() - self._outside_at_start
        if others is not None and self._others_at_start is not None:
            growth -= others - self._others_at_start
        return int(self._module.max_memory_reserved(self._index)) + max(0, growth)

    def peak_allocated_bytes(self) -> int | None:
        return int(self._module.max_memory_allocated(self._index))

    def _free_and_total(self) -> tuple[int, int]:
        """Bytes of the card that are free, and that it has, for all processes."""
        free, total = self._module.mem_get_info(self._index)
        return int(free), int(total)

    def _outside_bytes(self) -> int:
        """Memory of the card in use outside of our allocator: the context, libraries, other processes."""
        free, total = self._free_and_total()
        return int(total - free - self._module.memory_reserved(self._index))

    def clean_up(self) -> None:
        gc.collect()
        self._module.empty_cache()
