"""The interface of a device: facts about one accelerator. It decides nothing."""

from __future__ import annotations

import gc
import platform
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TypedDict

import torch

from ..core.facts import DeviceInfo, MemoryLimit
from .backend import Backend
from .oom import is_out_of_memory


class Device(ABC):
    """One device for training steps. `open_device` makes one; opening changes nothing.

    Attributes:
        torch_device: the device for tensors.
        backend: the properties of its kind.
    """

    torch_device: torch.device
    backend: Backend

    @abstractmethod
    def info(self) -> DeviceInfo:
        """What is known about it now. A fact that could not be read is None, with the reason in `notes`."""

    @abstractmethod
    def set_limit(self, memory_limit_bytes: int | None, headroom: float) -> MemoryLimit:
        """Set what a step may use from now on. Called once, before the model is built.

        Args:
            memory_limit_bytes: the user's limit; None for all free memory.
            headroom: the share of the capacity, in [0, 1), that a step must leave unused.

        Raises:
            SettingError: the limit is not positive, or the headroom is outside [0, 1).
            DeviceError: a limit cannot be kept on this device, or no memory is left.
        """

    @abstractmethod
    def lift_limit(self) -> None:
        """Remove the limit of `set_limit`, for a process that goes on to other work."""

    def held_to_budget(self) -> AbstractContextManager[None]:
        """Inside, a step is refused memory above the budget, and not only above the capacity.

        For final probes, on a device whose peak is read less exactly than its limit is kept. Elsewhere it does nothing.
        """
        return nullcontext()

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all queued work has run."""

    def begin_count(self) -> None:  # noqa: B027  # most devices count what they allocate themselves
        """Count from what the process holds now, with the limit as far above it as before.

        For the first steps of a process: what brought it its task (a model of megabytes, in several copies) was there
        when the limit was set, and is gone by now. Measured: a peak of 12 MiB varied by 6 MiB between processes.
        """

    @abstractmethod
    def reset_peak(self) -> None:
        """Begin a new window for `peak_bytes`. Unused memory of the last one is given back first."""

    @abstractmethod
    def peak_bytes(self) -> int | None:
        """Highest memory in use since `reset_peak`; None if nothing counts it."""

    def peak_allocated_bytes(self) -> int | None:
        """Highest memory in tensors since `reset_peak`; None if nothing counts it separately.

        The rest of the peak is what the allocator keeps for later, or cannot use.
        """
        return None

    def others_bytes(self) -> int | None:
        """Memory of the device that other processes hold now; None if unknown."""
        return None

    @abstractmethod
    def alloc_retries(self) -> int | None:
        """How often the allocator has freed memory and tried again; None if nothing counts it."""

    def refusals(self) -> int | None:
        """How often the allocator has raised an out-of-memory, caught or not; None if nothing counts it."""
        return None

    def clean_up(self) -> None:
        """Give unused memory back.

        After an out-of-memory, call it outside the except block: inside, the traceback still holds the failed step's
        tensors.
        """
        gc.collect()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` says that this device ran out of memory."""
        return is_out_of_memory(error)

    def joules(self) -> float | None:
        """Energy that the device has used since some fixed moment; None if it has no counter."""
        return None

    def watts(self) -> float | None:
        """The device's present power; None if it cannot be read."""
        return None

    def slowed_by(self) -> tuple[str, ...] | None:
        """What holds the device's clocks back now, in words; None if unknown."""
        return None

    def waited_s(self) -> float | None:
        """Seconds so far that this process waited for a processor that others used; None if unknown."""
        return None


class Software(TypedDict):
    """The fields of `DeviceInfo` that are the same for every device."""

    torch: str
    python: str


def software() -> Software:
    """Versions of torch and Python."""
    return {"torch": str(torch.__version__), "python": platform.python_version()}
