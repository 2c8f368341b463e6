"""How far a median of repeated times can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

# The fewest values whose lowest and highest bound the median with 95 % confidence: 1 - 2 * 0.5 ** 6 = 97 %.
_FEWEST = 6
# A median is settled when its interval has at most this relative half-width. The project's requirement is 2 %.
_SETTLED = 0.02
# Halves of a measurement that differ by less are no drift, however certain the difference. Assumed: a curve over batch
# sizes cannot show less.
_DRIFT = 0.02


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """(low, high) of the 95 % confidence interval of the median; None for fewer than six values.

    From order statistics, for any distribution: the ranks n/2 -+ 0.98 sqrt(n) bound the median (normal approximation of
    the binomial; Conover, Practical Nonparametric Statistics, section 3.2).
    """
    count = len(values)
    if count < _FEWEST:
        return None
    ordered = sorted(values)
    low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    high = min(count - 1, math.ceil(count / 2 + 0.98 * math.sqrt(count)))
    return ordered[low], ordered[high]


def relative_spread(values: Sequence[float], visits: Sequence[float] = ()) -> float:
    """Half the width of `likely_range` over the median; infinite below six values."""
    if median_interval(values) is None:
        return math.inf
    low, high = likely_range(values, visits)
    return (high - low) / 2 / median(values)


def is_settled(values: Sequence[float], visits: Sequence[float] = ()) -> bool:
    """Whether the median is known to 2 %."""
    return relative_spread(values, visits) <= _SETTLED


def likely_range(values: Sequence[float], visits: Sequence[float] = ()) -> tuple[float, float]:
    """(low, high) of the median: its 95 % interval; for fewer than six values, the lowest and the highest.

    Args:
        values: the measured values.
        visits: the median of each visit, if there were several. Values of one visit resemble each other, so many of
            them look more certain than they are. The range therefore includes that of the visits' medians.
    """
    ranges = [median_interval(some) or (min(some), max(some)) for some in (values, visits) if some]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def drift(values: Sequence[float]) -> float | None:
    """By how much the median of the second half is above that of the first, relative to it; None for no clear drift.

    A drift is clear if it is above 2 % and more than both intervals allow. It may be the clock of a device that heats
    up, or another process that begins.
    """
    half = len(values) // 2
    first, second = median_interval(values[:half]), median_interval(values[half:])
    if first is None or second is None or (first[0] <= second[1] and second[0] <= first[1]):
        return None
    change = median(values[half:]) / median(values[:half]) - 1
    return change if abs(change) > _DRIFT else None
