"""Facts about an NVIDIA card that torch does not know. The only place that imports pynvml (package nvidia-ml-py).

Every fact is optional: a container, an old card or a missing permission removes one and leaves the others. An unknown
fact is None, with a sentence that says why.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, final

_Fact = TypeVar("_Fact")

# NVML's return codes (nvml.h, nvmlReturn_t), and what each means for the reader of a fact.
_REASONS = {
    1: "NVML is not initialised",
    3: "this card or driver does not support it",
    4: "this user has no permission to read it",
    6: "NVML knows no such card",
    9: "the NVIDIA driver is not loaded",
    12: "no NVIDIA driver: its library libnvidia-ml.so.1 was not found",
    13: "the installed driver is older than this function",
    15: "the card has fallen off the bus (GPU is lost): reboot",
    18: "driver and library versions differ: reboot, or reload the driver after its update",
    999: "NVML gives no reason",
}

# Bits of clocks_event_reasons that mean "slower than it could be", in words (nvml.h, nvmlClocksEventReason*). An idle
# card, clocks set by hand, and a display's own clocks are not among them.
_SLOWED_BY = {
    0x04: "the power limit",
    0x08: "a hardware slowdown",
    0x10: "a boost group shared with another card",
    0x20: "its temperature (software)",
    0x40: "its temperature (hardware)",
    0x80: "the power brake of the machine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What NVML reports about one card now. An unknown fact is None, and `notes` says why.

    Attributes:
        name: the vendor's name.
        driver: version of the driver.
        power_limit_w: enforced limit in watts.
        others_bytes: memory that other processes hold on the card.
        slowed_by: what holds its clocks back now, in words; empty for nothing.
        notes: one sentence for each fact that could not be read.
    """

    name: str | None = None
    driver: str | None = None
    power_limit_w: float | None = None
    others_bytes: int | None = None
    slowed_by: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def load_library() -> tuple[Any | None, tuple[str, ...]]:
    """The module pynvml, or None, and sentences about what is wrong with it. No driver is called yet."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import pynvml
        except ImportError as error:
            return None, (f"facts from NVML: the package nvidia-ml-py cannot be imported ({error}); install it",)
    if any(issubclass(warning.category, FutureWarning) for warning in caught):
        return pynvml, (
            "the deprecated package pynvml stands before nvidia-ml-py: "
            "pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py",
        )
    return pynvml, ()


def resolve_visible(index: int, visible: str | None) -> int | str | None:
    """The card with CUDA's number `index`: NVML's index, or a UUID or its beginning; None if CUDA shows no such card.

    CUDA reads CUDA_VISIBLE_DEVICES up to the first entry that names no card (CUDA C++ Programming Guide, environment
    variables). The order of plain indexes agrees with NVML's only under CUDA_DEVICE_ORDER=PCI_BUS_ID or if all cards
    are alike. So a UUID is tried first if torch has one.

    Args:
        index: its number among the devices that this process sees.
        visible: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    if visible is None:
        return index
    cards: list[int | str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith(("GPU-", "MIG-")):
            cards.append(entry)
        elif entry.isdigit():
            cards.append(int(entry))
        else:
            break
    return cards[index] if index < len(cards) else None


class _Unknown(Exception):
    """A fact that NVML answers in an unusable way. The message says why."""


@final
class Card:
    """One card, for as long as this object lives. A card that cannot be found has only the reason for that.

    Args:
        index: torch's number, among the devices that this process sees.
        uuid: the card's UUID from torch, with or without "GPU-"; None if torch does not have it.
        library: pynvml, or a stand-in in tests; None if it cannot be imported.
        notes: known problems of the library.
        visible: the value of CUDA_VISIBLE_DEVICES.
    """

    def __init__(
        self,
        index: int,
        uuid: str | None,
        *,
        library: Any,
        notes: tuple[str, ...] = (),
        visible: str | None = None,
    ) -> None:
        self._nvml = library
        opening = list(notes)
        self._handle: Any = None
        if library is not None:
            # NVML counts its users: every nvmlInit after the first is free, and the end of the process undoes them.
            self._ask("facts from NVML", lambda: self._open(index, uuid, visible), opening)
        self._opening_notes = tuple(opening)

    def facts(self) -> CardFacts:
        """What NVML reports about the card now."""
        if self._handle is None:
            return CardFacts(notes=self._opening_notes)
        nvml, handle, notes = self._nvml, self._handle, list(self._opening_notes)
        name = self._ask("name of the card", lambda: nvml.nvmlDeviceGetName(handle), notes)
        driver = self._ask("driver version", nvml.nvmlSystemGetDriverVersion, notes)
        limit_mw = self._ask("power limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle), notes)
        others = self._ask("memory of other processes", self._others_bytes, notes)
        slowed_by = self._ask("clocks", self._slowed_by, notes)
        self._ask("energy", self._millijoules, notes)
        return CardFacts(
            name=_text(name),
            driver=_text(driver),
            power_limit_w=None if limit_mw is None else limit_mw / 1000,
            others_bytes=others,
            slowed_by=slowed_by,
            notes=tuple(notes),
        )

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None before Volta, or if NVML does not answer."""
        if self._handle is None:
            return None
        millijoules = self._ask("energy", self._millijoules, [])
        return None if millijoules is None else millijoules / 1000

    def watts(self) -> float | None:
        """The present power; None if NVML does not answer."""
        if self._handle is None:
            return None
        milliwatts = self._ask("power", lambda: int(self._nvml.nvmlDeviceGetPowerUsage(self._handle)), [])
        return None if milliwatts is None else milliwatts / 1000

    def slowed_by(self) -> tuple[str, ...] | None:
        """What holds the clocks back now; None if NVML does not answer."""
        return None if self._handle is None else self._ask("clocks", self._slowed_by, [])

    def _slowed_by(self) -> tuple[str, ...]:
        reasons = self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        return tuple(why for bit, why in _SLOWED_BY.items() if reasons & bit)

    def _open(self, index: int, uuid: str | None, visible: str | None) -> None:
        self._nvml.nvmlInit()
        self._handle = self._find(index, uuid, visible)

    def _find(self, index: int, uuid: str | None, visible: str | None) -> Any:
        nvml = self._nvml
        if uuid is not None:
            bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
            for prefix in ("GPU-", "MIG-"):
                try:
                    return nvml.nvmlDeviceGetHandleByUUID(prefix + bare)
                except nvml.NVMLError:
                    continue  # looked up by index below, which reports a failure
        card = resolve_visible(index, visible)
        if card is None:
            raise _Unknown(f"CUDA_VISIBLE_DEVICES={visible} names no card with index {index}")
        if isinstance(card, int):
            return nvml.nvmlDeviceGetHandleByIndex(card)
        for other in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(other)
            if (_text(nvml.nvmlDeviceGetUUID(handle)) or "").startswith(card):
                return handle
        return nvml.nvmlDeviceGetHandleByUUID(card)  # a MIG instance is not among the cards

    def _others_bytes(self) -> int:
        """Memory of other processes: known only if NVML lists this process too, under the number it has here."""
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        held = {process.pid: process.usedGpuMemory for process in processes}
        if os.getpid() not in held:
            raise _Unknown("this process is not in NVML's list: it holds nothing yet, or a container hides its number")
        if None in held.values():
            raise _Unknown("the driver does not report it for each process, as under Windows (WDDM)")
        return sum(used for process, used in held.items() if process != os.getpid())

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def _ask(self, what: str, call: Callable[[], _Fact], notes: list[str]) -> _Fact | None:
        """The result of `call`; or None, with one more sentence in `notes`."""
        try:
            return call()
        except self._nvml.NVMLError as error:
            notes.append(f"{what}: {_REASONS.get(error.value, f'NVML answers {error}')}")
        except _Unknown as why:
            notes.append(f"{what}: {why}")
        return None


def _text(value: str | bytes | None) -> str | None:
    """Text; old versions of the library return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
