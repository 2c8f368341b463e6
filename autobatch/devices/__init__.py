"""Facts about one accelerator, and a limit on its memory; nothing is decided here.

Importing this package imports no torch, because the process that only coordinates reads `environment` from it: what
needs torch is imported where it is used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.facts import DeviceInfo
from ..errors import DeviceError

if TYPE_CHECKING:
    from .base import Device as Device


def __getattr__(name: str) -> object:
    if name == "Device":
        from .base import Device

        return Device
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_device(name: str = "auto") -> Device:
    """The device called `name`; nothing about it is changed yet.

    Args:
        name: "auto" (the first GPU, else the CPU), "cpu", "cuda" (torch's current one), "cuda:1" or "mps".

    Raises:
        DeviceError: there is no such device; the message lists those there are.
    """
    present = device_names()
    wanted = name.strip().lower()
    if wanted == "auto":
        wanted = present[0]
    elif wanted == "cuda" and "cuda:0" in present:
        import torch

        wanted = f"cuda:{torch.cuda.current_device()}"
    if wanted not in present:
        why = f" ({_why_no_cuda()})" if wanted.startswith("cuda") and "cuda:0" not in present else ""
        raise DeviceError(
            f"a device is auto, cpu, cuda, cuda:N or mps, and must be there; found {name!r}{why}. "
            f"There is: {', '.join(present)}"
        )
    if wanted == "cpu":
        from .cpu import CpuDevice

        return CpuDevice()
    if wanted == "mps":
        from .mps import MpsDevice

        return MpsDevice()
    from .cuda import CudaDevice

    return CudaDevice(int(wanted.removeprefix("cuda:")))


def describe_devices() -> list[DeviceInfo]:
    """Every device that this process sees, the one that "auto" takes first.

    Where there is no GPU, the last note of the CPU says why.
    """
    found = [open_device(name).info() for name in device_names()]
    if len(found) == 1:
        return [replace(found[0], notes=(*found[0].notes, f"no GPU: {_why_no_cuda()}"))]
    return found


def device_names() -> list[str]:
    """Names of the devices that are there, GPUs first."""
    import torch

    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def _why_no_cuda() -> str:
    """Why torch sees no CUDA device, in one sentence."""
    import torch

    from .nvml import Card, load_library

    reasons = []
    if torch.version.cuda is None and torch.version.hip is None:
        reasons.append(f"this torch ({torch.__version__}) is built without CUDA and ROCm")
    if torch.version.hip is None:
        library, notes = load_library()
        reasons.extend(Card(0, None, library=library, notes=notes).facts().notes)
    return "; ".join(reasons) or "torch cannot use the driver that is installed"
