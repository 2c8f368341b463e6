"""Where a value lies on an axis, and which values have labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.units import format_size
from .document import Unit
from .numbers import lr_text, si_text

# Of these, differences count, and not how far they are from zero.
_RELATIVE = ("times", "score", "loss")
# Ticks on an axis at most. Assumed: more are not read.
_MOST_TICKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A map from values to pixels, linear or logarithmic.

    Attributes:
        low, high: the values at the ends, or their base-2 logarithms for a logarithmic scale; low is below high.
        start, end: the pixels of the ends.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def __call__(self, value: float) -> float:
        """The pixel of a value. A value beyond an end is drawn at that end."""
        place = math.log2(value) if self.is_log else value
        share = (place - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def size_scale(sizes: Iterable[int], start: float, end: float) -> Scale:
    """Batch sizes on a logarithmic scale, with a little room on both sides. A single size lies in the middle."""
    known = sorted(sizes)
    low, high = math.log2(known[0]), math.log2(known[-1])
    room = 0.04 * (high - low) or 0.5
    return Scale(low=low - room, high=high + room, start=start, end=end, is_log=True)


def value_scale(values: Sequence[float], start: float, end: float, *, is_log: bool, unit: Unit) -> Scale:
    """Values above zero on an axis that begins at zero; at the smallest where it is logarithmic, and for ratios and
    scores, which may be negative.
    """
    if is_log:
        low, high = math.log2(min(values)), math.log2(max(values))
        room = 0.04 * (high - low) or math.log2(_base(unit))
        return Scale(low=low - room, high=high + room, start=start, end=end, is_log=True)
    if unit in _RELATIVE:
        room = 0.08 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
        return Scale(low=min(values) - room, high=max(values) + room, start=start, end=end, is_log=False)
    return Scale(low=0.0, high=1.04 * max(values), start=start, end=end, is_log=False)


def time_scale(seconds: Iterable[float], start: float, end: float) -> Scale:
    """Seconds from zero on."""
    return Scale(low=0.0, high=1.04 * max(seconds) or 1.0, start=start, end=end, is_log=False)


def time_ticks(scale: Scale) -> list[float]:
    """Round times on an axis of seconds, at most five."""
    least = scale.high / 4
    unit_s = 3600.0 if least >= 1800 else 60.0 if least >= 60 else 1.0
    step = unit_s * _round_step(least / unit_s, binary=False)
    return [step * number for number in range(math.floor(scale.high / step) + 1)]


def ticks(scale: Scale, unit: Unit) -> list[float]:
    """Round values on an axis, at most six: powers of two for bytes, of ten for all else."""
    if scale.is_log:
        return _log_ticks(scale, _base(unit))
    step = _round_step((scale.high - scale.low) / (_MOST_TICKS - 1), binary=unit == "bytes")
    return [step * number for number in range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1)]


def tick_text(value: float, unit: Unit) -> str:
    """A tick's label: `0`, `200 k`, `16 GiB`, `500 mJ`, `1.02`."""
    if value == 0:
        return "0"
    if unit == "bytes":
        return format_size(value)
    if unit == "lr":
        return lr_text(value, 2)
    if unit in _RELATIVE:
        return f"{value:.4g}"
    return si_text(value, "J" if unit == "J" else "")


def label_sizes(sizes: Iterable[int], scale: Scale, first: Iterable[int], width: float) -> list[int]:
    """The sizes with a label on the axis: those of `first`, then powers of two, then others, while there is room.

    Args:
        sizes: all measured sizes.
        scale: that of the axis.
        first: the sizes that matter most.
        width: pixels of one digit.
    """
    known = sorted(set(sizes))
    order = [*dict.fromkeys(first), known[-1], known[0]]
    order += sorted(known, key=lambda size: (size & (size - 1) != 0, -size))
    taken: list[tuple[float, float]] = []
    named = []
    for size in dict.fromkeys(order):
        half = width * (len(str(size)) + 1) / 2
        left, right = scale(size) - half, scale(size) + half
        if all(right <= other_left or left >= other_right for other_left, other_right in taken):
            taken.append((left, right))
            named.append(size)
    return sorted(named)


def _log_ticks(scale: Scale, base: float) -> list[float]:
    low, high = scale.low / math.log2(base), scale.high / math.log2(base)
    stride = max(1, math.ceil((high - low) / _MOST_TICKS))
    powers = [power for power in range(math.ceil(low), math.floor(high) + 1) if power % stride == 0]
    if len(powers) >= 2 or base == 2.0:
        return [base**power for power in powers]
    # Less than two powers of ten: add their doubles and halves.
    near = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in (1, 2, 5)]
    return [value for value in near if scale.low <= math.log2(value) <= scale.high]


def _base(unit: Unit) -> float:
    return 2.0 if unit == "bytes" else 10.0


def _round_step(least: float, *, binary: bool) -> float:
    """The smallest round number from `least` on: a power of two, or 1, 2 or 5 times a power of ten."""
    if binary:
        return 2.0 ** math.ceil(math.log2(least))
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)
