"""Facts about one accelerator, and a limit on its memory. Nothing is decided here.

Importing this package imports no torch, because the coordinator reads `environment` from it: what needs torch is
imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.facts import DeviceInfo
from ..core.words import did_you_mean
from ..errors import DeviceError
from .backend import CARDS, NAMED, names_in_words

if TYPE_CHECKING:
    from .base import Device as Device


def __getattr__(name: str) -> object:
    if name == "Device":
        from .base import Device

        return Device
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_device(name: str = "auto") -> Device:
    """The device called `name`. Opening it changes nothing.

    Args:
        name: "auto" (the first GPU, otherwise the CPU), "cpu", "cuda" (torch's current one), "cuda:1", "mps".

    Raises:
        DeviceError: there is no such device. The message lists the existing ones.
    """
    present = device_names()
    wanted = name.strip().lower()
    if wanted == "auto":
        wanted = present[0]
    elif wanted in CARDS and f"{wanted}:0" in present:
        wanted = f"{wanted}:{CARDS[wanted].current_index()}"
    kind, _, number = wanted.partition(":")
    if wanted not in present:
        *words, last = names_in_words("N")
        raise DeviceError(
            f"a device is {', '.join(words)} or {last}, and must be there; found {name!r}{_why_not(kind, present)}. "
            f"There is: {', '.join(present)}{_meant(kind)}"
        )
    return NAMED[kind].open(int(number or 0))


def describe_devices() -> list[DeviceInfo]:
    """Every device that this process sees, with that for "auto" first.

    Without a GPU, the last note of the CPU says why.
    """
    found = [open_device(name).info() for name in device_names()]
    if len(found) == 1:
        why = "; ".join(backend.why_absent() for backend in CARDS.values())
        return [replace(found[0], notes=(*found[0].notes, f"no GPU: {why}"))]
    return found


def device_names() -> list[str]:
    """Names of the existing devices, GPUs first."""
    return [name for backend in NAMED.values() for name in backend.names()]


def _meant(kind: str) -> str:
    """Which word may have been meant, where it is none of those that there are."""
    if kind == "gpu":
        return "; did you mean auto, which takes a GPU where there is one?"
    return "" if kind in NAMED else did_you_mean(kind, ("auto", *NAMED))


def _why_not(kind: str, present: Sequence[str]) -> str:
    """Why there is no such device of a kind, in brackets; empty if that is obvious."""
    if kind not in CARDS:
        return ""
    visible = CARDS[kind].visible
    if f"{kind}:0" not in present:
        return f" ({CARDS[kind].why_absent()})"
    return f" ({visible} is {os.environ[visible]!r})" if visible is not None and visible in os.environ else ""
