"""An Intel GPU, through torch.xpu.

Written from the source of torch 2.13 and tested with a stand-in. It has not run on a real one.
"""

from __future__ import annotations

from typing import Any, final
from uuid import UUID

import torch

from ..core.facts import DeviceInfo
from ..errors import DeviceError
from .backend import BACKENDS
from .base import software
from .caching import CachingDevice

# What this needs from torch.xpu beyond its first version (torch 2.4), and what for.
_NEEDED = {"mem_get_info": "reports free memory", "set_per_process_memory_fraction": "keeps a memory limit"}
_NOT_COUNTED = (
    "energy, power: torch.xpu averages the power over 150 ms in which it waits, which would slow down what is timed",
    "allocator retries, other processes: torch.xpu counts none of them",
)


@final
class XpuDevice(CachingDevice):
    """One GPU behind torch.xpu, whose allocator is like that of torch.cuda but counts less.

    Args:
        index: its number among the devices that this process sees.
        xpu: torch.xpu, or a stand-in in tests.

    Raises:
        DeviceError: this torch cannot limit the memory of such a device.
    """

    def __init__(self, index: int, *, xpu: Any = torch.xpu) -> None:
        super().__init__(index, BACKENDS["xpu"], xpu)
        missing = [f"{name}, which {what}" for name, what in _NEEDED.items() if not hasattr(xpu, name)]
        if missing:
            raise DeviceError(
                f"{self.torch_device} needs a torch whose torch.xpu has {' and '.join(missing)}; found torch "
                f"{torch.__version__}: install a newer one (2.13 has both), or take --device cpu"
            )

    def info(self) -> DeviceInfo:
        properties = self._module.get_device_properties(self._index)
        free, why = self._free_by_driver()
        notes = [*_NOT_COUNTED, *([] if why is None else [f"free memory: {why}"])]
        if getattr(properties, "is_integrated_gpu", False):
            notes.append("it shares the machine's memory, which other programs use as well")
        if not getattr(properties, "has_fp64", True):
            notes.append("it has no 64-bit floating point, which the gradient scaler of fp16 needs: bf16 does without")
        return DeviceInfo(
            name=properties.name,
            kind=self.backend.kind,
            index=self._index,
            memory_bytes=properties.total_memory,
            free_bytes=free,
            threads=torch.get_num_threads(),
            driver=getattr(properties, "driver_version", None),
            runtime=torch.version.xpu,
            uuid=_uuid_of(properties),
            notes=tuple(notes),
            **software(),
        )

    def alloc_retries(self) -> int | None:
        return None

    def _free_by_driver(self) -> tuple[int | None, str | None]:
        """The free memory by the driver; or None, and the driver's error."""
        try:
            return int(self._module.mem_get_info(self._index)[0]), None
        except RuntimeError as error:  # usually that of an integrated GPU (pytorch#159728)
            return None, str(error).partition("\n")[0]

    def _free_and_total(self) -> tuple[int, int]:
        # Memory that our allocator holds is not free, but some drivers report the same number whatever is held
        # (pytorch#161381). If a driver reports nothing, the rest is assumed to be free, and a step meets the driver's
        # own refusal.
        total = int(self._module.get_device_properties(self._index).total_memory)
        left = total - int(self._module.memory_reserved(self._index))
        free, _ = self._free_by_driver()
        return left if free is None else min(free, left), total


def _uuid_of(properties: Any) -> str | None:
    """The card's own identifier; None if this torch does not have it."""
    uuid = getattr(properties, "uuid", None)
    return str(UUID(bytes=uuid)) if isinstance(uuid, bytes) and len(uuid) == 16 else uuid and str(uuid)


def open_nth(index: int) -> XpuDevice:
    """The GPU with this number among those that this process sees."""
    return XpuDevice(index)


def why_absent() -> str:
    """Why torch sees no Intel GPU, in one sentence."""
    if torch.version.xpu is None:
        return f"this torch ({torch.__version__}) is built without XPU"
    return "torch's XPU sees no Intel GPU with a working driver"
