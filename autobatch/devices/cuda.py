"""An NVIDIA GPU, or an AMD one: ROCm answers to the same torch.cuda."""

from __future__ import annotations

import gc
import os
from typing import Any, final

import torch

from ..core.facts import DeviceInfo, MemoryLimit
from ..core.units import format_size
from ..errors import DeviceError
from .base import (
    Device,
    budget_bytes,
    capacity,
    check_limit,
    software,
)
from .nvml import Card, CardFacts, load_library


@final
class CudaDevice(Device):
    """One GPU behind torch.cuda.

    Memory is what the caching allocator has reserved, since that is what the driver sees and refuses; what tensors
    fill of it is less. What this process takes outside of it after the limit was set (kernels that are loaded
    when they are first called, handles and workspaces of libraries) counts too. The CUDA context, and what other
    processes hold, were there before and are outside of a limit.

    Args:
        index: among the devices that this process sees.
        cuda: torch.cuda, or what stands in for it in a test.
        card: its NVML facts; looked up where not given. ROCm has none.
    """

    def __init__(self, index: int, *, cuda: Any = torch.cuda, card: Card | None = None) -> None:
        self.torch_device = torch.device("cuda", index)
        self._index, self._cuda = index, cuda
        self._fraction_before: float | None = None  # the allocator's own wall to go back to; None while ours is not up
        self._outside_at_start = 0
        self._others_at_start: int | None = None
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
        allocator = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
        if allocator:
            notes.append(f"torch's allocator is set up as {allocator}")
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
        """What this process may take from now on beside the context; a limit or headroom is a wall in the allocator.

        Capacity is what is reserved already plus what the driver has free, so the context and other processes are
        counted out. Headroom is a budget below it: a peak between the two is measured, not refused. The wall keeps the
        capacity where it is when another process gives memory back.
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
        self._outside_at_start, self._others_at_start = self._outside_bytes(), self.others_bytes()
        total = self._cuda.get_device_properties(self._index).total_memory
        if (users := int(self._fraction() * total)) < usable:
            usable, source = users, "the memory fraction that was set for this process"
        if memory_limit_bytes is not None or headroom > 0:
            # The allocator compares what it has reserved with this share of totalGlobalMem
            # (c10/cuda/CUDACachingAllocator.cpp, setMemoryFraction), so the share is taken of the same number.
            self._fraction_before = self._fraction()
            self._cuda.set_per_process_memory_fraction(min(self._fraction_before, usable / total), self._index)
        return MemoryLimit(capacity_bytes=usable, budget_bytes=budget_bytes(usable, headroom), source=source)

    def lift_limit(self) -> None:
        if self._fraction_before is not None:
            self._cuda.set_per_process_memory_fraction(self._fraction_before, self._index)
            self._fraction_before = None

    def _fraction(self) -> float:
        # torch can be asked since 2.7; the user may have set one, in PYTORCH_CUDA_ALLOC_CONF too.
        ask = getattr(self._cuda, "get_per_process_memory_fraction", None)
        return 1.0 if ask is None else float(ask(self._index))

    def synchronize(self) -> None:
        self._cuda.synchronize(self._index)

    def reset_peak(self) -> None:
        # Memory kept from a larger step would stand as reserved for the whole of the next window.
        self.clean_up()
        self._cuda.reset_peak_memory_stats(self._index)

    def peak_bytes(self) -> int | None:
        """Most memory since `reset_peak`, by this process in all: `set_limit` counts the same way.

        That is the most that was reserved, and what is held outside of the allocator now more than when the limit was
        set. NVML tells how much of the latter is other processes'; where it does not, all of it is taken for our own.
        """
        others = self.others_bytes()
        growth = self._outside_bytes() - self._outside_at_start
        if others is not None and self._others_at_start is not None:
            growth -= others - self._others_at_start
        return int(self._cuda.max_memory_reserved(self._index)) + max(0, growth)

    def peak_allocated_bytes(self) -> int | None:
        return int(self._cuda.max_memory_allocated(self._index))

    def others_bytes(self) -> int | None:
        return None if self._card is None else self._card.facts().others_bytes

    def _outside_bytes(self) -> int:
        """What is in use of the card and not reserved by our allocator: the context, libraries, other processes."""
        free, total = self._cuda.mem_get_info(self._index)
        return int(total - free - self._cuda.memory_reserved(self._index))

    def alloc_retries(self) -> int | None:
        # torch leaves the statistics empty until the allocator is first used.
        return int(self._cuda.memory_stats(self._index).get("num_alloc_retries", 0))

    def refusals(self) -> int | None:
        return int(self._cuda.memory_stats(self._index).get("num_ooms", 0))

    def clean_up(self) -> None:
        gc.collect()
        self._cuda.empty_cache()

    def joules(self) -> float | None:
        return self._card.joules() if self._card else None

    def watts(self) -> float | None:
        return self._card.watts() if self._card else None

    def slowed_by(self) -> tuple[str, ...] | None:
        return self._card.slowed_by() if self._card else None

    def _uuid(self) -> str | None:
        """The card's own identifier, as nvidia-smi writes it; None where this torch does not give one."""
        uuid = getattr(self._cuda.get_device_properties(self._index), "uuid", None)
        if uuid is None:
            return None
        return str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
