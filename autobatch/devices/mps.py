"""Apple's GPU, which shares the machine's memory."""

from __future__ import annotations

import gc
import platform
from typing import Any, final

import torch

from ..core.facts import DeviceInfo, MemoryLimit
from .backend import BACKENDS
from .base import Device, software
from .limits import budget_bytes, capacity, check_limit


@final
class MpsDevice(Device):
    """The GPU behind torch.mps. It counts no peak, so a limit at the budget decides, as on the CPU.

    Args:
        mps: torch.mps, or a stand-in in tests.
    """

    backend = BACKENDS["mps"]

    def __init__(self, *, mps: Any = torch.mps) -> None:
        self.torch_device = torch.device(self.backend.torch_name)
        self._mps, self._walled = mps, False

    def info(self) -> DeviceInfo:
        recommended = int(self._mps.recommended_max_memory())
        return DeviceInfo(
            name=f"Apple GPU ({platform.processor() or platform.machine()})",
            kind=self.backend.kind,
            memory_bytes=recommended,
            free_bytes=max(0, recommended - int(self._mps.driver_allocated_memory())),
            threads=torch.get_num_threads(),
            runtime=f"Metal, macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else "Metal",
            notes=("peak memory, allocator retries, energy: Metal counts none of them",),
            **software(),
        )

    def set_limit(self, memory_limit_bytes: int | None, headroom: float) -> MemoryLimit:
        """Set what this process may allocate from now on. There is always a limit, and it is at the budget.

        Without one the allocator goes up to 1.7 times what Metal recommends
        (torch.mps.set_per_process_memory_fraction), and the machine swaps long before it refuses.
        """
        check_limit(memory_limit_bytes, headroom)
        recommended = int(self._mps.recommended_max_memory())
        usable, source = capacity(memory_limit_bytes, recommended, "recommended by Metal")
        budget = budget_bytes(usable, headroom)
        self._mps.set_per_process_memory_fraction(budget / recommended)
        self._walled = True
        return MemoryLimit(capacity_bytes=budget, budget_bytes=budget, source=source)

    def lift_limit(self) -> None:
        if self._walled:
            self._mps.set_per_process_memory_fraction(1.7)  # torch's default, see set_limit
            self._walled = False

    def synchronize(self) -> None:
        self._mps.synchronize()

    def reset_peak(self) -> None:
        self.clean_up()

    def peak_bytes(self) -> int | None:
        return None

    def alloc_retries(self) -> int | None:
        return None

    def clean_up(self) -> None:
        gc.collect()
        self._mps.empty_cache()


def open_nth(index: int) -> MpsDevice:
    """Apple's GPU. There is only one."""
    return MpsDevice()
