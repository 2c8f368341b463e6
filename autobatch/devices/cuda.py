"""An NVIDIA GPU, or an AMD one: ROCm answers to the same torch.cuda."""

from __future__ import annotations

import gc
import os
from typing import Any, final

import torch

from ..errors import DeviceError
from ..plan import DeviceInfo, MemoryLimit
from ..units import format_size
from .base import Device, budget_bytes, capacity, check_limit, software
from .nvml import Card, CardFacts, load_library


@final
class CudaDevice(Device):
    """One GPU behind torch.cuda.

    Memory is what the caching allocator has reserved, since that is what the driver sees and refuses; what tensors
    fill of it is less. The CUDA context and other processes are outside of it, and outside of a limit.

    Args:
        index: among the devices that this process sees.
        cuda: torch.cuda, or what stands in for it in a test.
        card: its NVML facts; looked up where not given. ROCm has none.
    """

    def __init__(self, index: int, *, cuda: Any = torch.cuda, card: Card | None = None) -> None:
        self.torch_device = torch.device("cuda", index)
        self._index, self._cuda, self._walled = index, cuda, False
        self._card = card
        if card is None and torch.version.hip is None:
            library, notes = load_library()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            self._card = Card(index, self._uuid(), library=library, notes=notes, visible=visible)

    def info(self) -> DeviceInfo:
        properties = self._cuda.get_device_properties(self._index)
        free, _ = self._cuda.mem_get_info(self._index)
        on_rocm = torch.version.hip is not None
        card = self._card.facts() if self._card else CardFacts(notes=("driver, power limit, energy: ROCm has no NVML",))
        notes = list(card.notes)
        if card.others_bytes:
            notes.append(f"other processes hold {format_size(card.others_bytes)} of this card")
        if card.slowed_by:
            notes.append(f"its clocks are held back at the moment by {' and '.join(card.slowed_by)}")
        return DeviceInfo(
            name=properties.name,
            kind="rocm" if on_rocm else "cuda",
            index=self._index,
            memory_bytes=properties.total_memory,
            free_bytes=free,
            threads=torch.get_num_threads(),
            driver=card.driver,
            runtime=torch.version.hip if on_rocm else torch.version.cuda,
            uuid=self._uuid(),
            power_limit_w=card.power_limit_w,
            notes=tuple(notes),
            **software(),
        )

    def set_limit(self, memory_limit_bytes: int | None, headroom: float) -> MemoryLimit:
        """What this process may have reserved from now on; a limit asked for is a wall in the allocator.

        Capacity is what is reserved already plus what the driver has free, so the context and other processes are
        counted out. Headroom is a budget below it: a peak between the two is measured, not refused.
        """
        check_limit(memory_limit_bytes, headroom)
        self.lift_limit()
        free, _ = self._cuda.mem_get_info(self._index)
        available = free + self._cuda.memory_reserved(self._index)
        if available <= 0:
            raise DeviceError(
                f"{self.torch_device} has no free memory: other processes hold all of it. End one of them"
            )
        usable, source = capacity(memory_limit_bytes, available, "free on the device")
        if memory_limit_bytes is not None:
            # The allocator compares what it has reserved with this share of totalGlobalMem
            # (c10/cuda/CUDACachingAllocator.cpp, setMemoryFraction), so the share is taken of the same number.
            total = self._cuda.get_device_properties(self._index).total_memory
            self._cuda.set_per_process_memory_fraction(min(1.0, usable / total), self._index)
            self._walled = True
        return MemoryLimit(capacity_bytes=usable, budget_bytes=budget_bytes(usable, headroom), source=source)

    def lift_limit(self) -> None:
        if self._walled:
            self._cuda.set_per_process_memory_fraction(1.0, self._index)
            self._walled = False

    def synchronize(self) -> None:
        self._cuda.synchronize(self._index)

    def reset_peak(self) -> None:
        # Memory kept from a larger step would stand as reserved for the whole of the next window.
        self.clean_up()
        self._cuda.reset_peak_memory_stats(self._index)

    def peak_bytes(self) -> int | None:
        """Most memory reserved since `reset_peak`, by this process in all: `set_limit` counts the same way."""
        return int(self._cuda.max_memory_reserved(self._index))

    def peak_allocated_bytes(self) -> int:
        """Most memory in tensors since `reset_peak`; the rest of `peak_bytes` is what the allocator keeps."""
        return int(self._cuda.max_memory_allocated(self._index))

    def alloc_retries(self) -> int | None:
        # torch leaves the statistics empty until the allocator is first used.
        return int(self._cuda.memory_stats(self._index).get("num_alloc_retries", 0))

    def clean_up(self) -> None:
        gc.collect()
        self._cuda.empty_cache()

    def joules(self) -> float | None:
        return self._card.joules() if self._card else None

    def _uuid(self) -> str | None:
        """The card's own identifier, as nvidia-smi writes it; None where this torch does not give one."""
        uuid = getattr(self._cuda.get_device_properties(self._index), "uuid", None)
        if uuid is None:
            return None
        return str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
