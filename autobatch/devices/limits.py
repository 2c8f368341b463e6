"""What a step may use of a memory: what was asked for, what there is, and the headroom. Numbers only, without torch."""

from __future__ import annotations

from ..core.units import format_size
from ..errors import SettingError


def check_limit(memory_limit_bytes: int | None, headroom: float) -> None:
    """Nothing, if both can be used.

    Raises:
        SettingError: the limit is not positive, or the headroom is outside [0, 1).
    """
    if memory_limit_bytes is not None and memory_limit_bytes <= 0:
        raise SettingError(
            f"a memory limit is above zero; found {memory_limit_bytes}. Leave it out for all that is free"
        )
    if not 0 <= headroom < 1:
        raise SettingError(
            f"headroom is a share of the memory, at least 0 and below 1; found {headroom}. Write 0.05 for 5 %"
        )


def capacity(memory_limit_bytes: int | None, available_bytes: int, source: str) -> tuple[int, str]:
    """(bytes, where they come from): what was asked for, or what is available where that is less or nothing was."""
    if memory_limit_bytes is None:
        return available_bytes, source
    if memory_limit_bytes <= available_bytes:
        return memory_limit_bytes, "the memory limit that was set"
    return available_bytes, f"{source}, which is less than the limit of {format_size(memory_limit_bytes)}"


def budget_bytes(capacity_bytes: int, headroom: float) -> int:
    """Capacity less headroom, rounded down; at most the capacity."""
    return min(capacity_bytes, int(capacity_bytes * (1 - headroom)))
