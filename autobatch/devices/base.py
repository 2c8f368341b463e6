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
    """One device that training steps run on. `open_device` makes one; opening changes nothing.

    Attributes:
        torch_device: where tensors go.
        backend: what devices of its kind have.
    """

    torch_device: torch.device
    backend: Backend

    @abstractmethod
    def info(self) -> DeviceInfo:
        """What is known about it now; what could not be read is None, with the reason in `notes`."""

    @abstractmethod
    def set_limit(self, memory_limit_bytes: int | None, headroom: float) -> MemoryLimit:
        """What a step may use from now on; called once, before the model is built.

        Args:
            memory_limit_bytes: what was asked for, or None for all that is free.
            headroom: the share of the capacity, in [0, 1), that a step must leave unused.

        Raises:
            SettingError: the limit is not positive, or the headroom is outside [0, 1).
            DeviceError: a limit cannot be kept here, or no memory is left.
        """

    @abstractmethod
    def lift_limit(self) -> None:
        """Take the limit of `set_limit` down again, for a process that goes on to do other work."""

    def held_to_budget(self) -> AbstractContextManager[None]:
        """While it is open, a step is refused what is above the budget, not only what is above the capacity.

        For verdicts, on a device whose peak is read less exactly than its wall stands. Elsewhere it does nothing.
        """
        return nullcontext()

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything that was queued has run."""

    @abstractmethod
    def reset_peak(self) -> None:
        """Begin a new window for `peak_bytes`, with nothing held from the last one but what is in use."""

    @abstractmethod
    def peak_bytes(self) -> int | None:
        """Highest memory in use since `reset_peak`; None where nothing counts it."""

    def peak_allocated_bytes(self) -> int | None:
        """Highest memory in tensors since `reset_peak`; the rest of the peak is what the allocator keeps for later, or
        cannot use. None where nothing counts it apart.
        """
        return None

    def others_bytes(self) -> int | None:
        """Memory of the device that other processes hold now; None where nobody says."""
        return None

    @abstractmethod
    def alloc_retries(self) -> int | None:
        """Times so far that the allocator gave memory back and asked again; None where nothing counts them."""

    def refusals(self) -> int | None:
        """Times so far that the allocator raised an out-of-memory, caught or not; None where nothing counts them."""
        return None

    def clean_up(self) -> None:
        """Give unused memory back. After an out-of-memory, call it when the except block was left: inside it the
        traceback still holds the tensors of the failed step.
        """
        gc.collect()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` says that this device ran out of memory."""
        return is_out_of_memory(error)

    def joules(self) -> float | None:
        """Energy that the device has used since some fixed moment; None where it has no counter."""
        return None

    def watts(self) -> float | None:
        """Power that the device draws at the moment; None where it cannot be read."""
        return None

    def slowed_by(self) -> tuple[str, ...] | None:
        """What holds the device's clocks back at the moment, in words; None where nobody says."""
        return None

    def waited_s(self) -> float | None:
        """Seconds so far that this process was ready and other processes had the processor; None where nobody says."""
        return None


class Software(TypedDict):
    """The fields of `DeviceInfo` that are the same for every device."""

    torch: str
    python: str


def software() -> Software:
    """Versions of torch and Python."""
    return {"torch": str(torch.__version__), "python": platform.python_version()}
