"""An NVIDIA GPU, or an AMD one: ROCm uses torch.cuda too."""

from __future__ import annotations

import os
from typing import Any, final

import torch

from ..core.facts import DeviceInfo
from ..core.units import format_size
from .backend import BACKENDS
from .base import software
from .caching import CachingDevice
from .nvml import Card, CardFacts, load_library


@final
class CudaDevice(CachingDevice):
    """One GPU behind torch.cuda, with NVML's facts about it.

    Args:
        index: its number among the devices that this process sees.
        cuda: torch.cuda, or a stand-in in tests.
        card: its NVML facts; looked up by default. ROCm has none.
    """

    def __init__(self, index: int, *, cuda: Any = torch.cuda, card: Card | None = None) -> None:
        super().__init__(index, BACKENDS["cuda" if torch.version.hip is None else "rocm"], cuda)
        self._card = card
        if card is None and torch.version.hip is None:
            library, notes = load_library()
            visible = os.environ.get(self.backend.visible or "")
            self._card = Card(index, self._uuid(), library=library, notes=notes, visible=visible)

    def info(self) -> DeviceInfo:
        properties = self._module.get_device_properties(self._index)
        free, _ = self._module.mem_get_info(self._index)
        on_rocm = torch.version.hip is not None
        card = self._card.facts() if self._card else CardFacts(notes=("driver, power limit, energy: ROCm has no NVML",))
        notes = list(card.notes)
        if card.others_bytes:
            notes.append(f"other processes hold {format_size(card.others_bytes)} of this card")
        allocator = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
        if allocator:
            notes.append(f"torch's allocator is set up as {allocator}")
        if card.slowed_by:
            notes.append(f"its clocks are held back now by {' and '.join(card.slowed_by)}")
        return DeviceInfo(
            name=properties.name,
            kind=self.backend.kind,
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

    def others_bytes(self) -> int | None:
        return None if self._card is None else self._card.facts().others_bytes

    def alloc_retries(self) -> int | None:
        # torch leaves the statistics empty until the allocator is first used.
        return int(self._module.memory_stats(self._index).get("num_alloc_retries", 0))

    def refusals(self) -> int | None:
        return int(self._module.memory_stats(self._index).get("num_ooms", 0))

    def joules(self) -> float | None:
        return self._card.joules() if self._card else None

    def watts(self) -> float | None:
        return self._card.watts() if self._card else None

    def slowed_by(self) -> tuple[str, ...] | None:
        return self._card.slowed_by() if self._card else None

    def _uuid(self) -> str | None:
        """The card's own identifier, as in nvidia-smi; None if this torch does not have it."""
        uuid = getattr(self._module.get_device_properties(self._index), "uuid", None)
        if uuid is None:
            return None
        return str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def open_nth(index: int) -> CudaDevice:
    """The GPU with this number among those that this process sees."""
    return CudaDevice(index)


def why_absent() -> str:
    """Why torch sees no CUDA device, in one sentence."""
    reasons = []
    if torch.version.cuda is None and torch.version.hip is None:
        reasons.append(f"this torch ({torch.__version__}) is built without CUDA and ROCm")
    if torch.version.hip is None:
        library, notes = load_library()
        reasons.extend(Card(0, None, library=library, notes=notes).facts().notes)
    return "; ".join(reasons) or "torch cannot use the driver that is installed"
