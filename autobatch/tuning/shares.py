"""How much of a budget each stage before the race may take. The run and `--dry-run` read the same numbers here."""

from __future__ import annotations

from ..searching.budget.advice import MEMORY_SHARE, PROFILE_SHARE, SWEEP_SHARE

# A profile takes half a minute at most, or this share of the time left if that is longer. Assumed: a budget of hours
# pays for trials whose steps take seconds.
_PROFILE_LONG_SHARE = 0.01
_PROFILE_ENOUGH_S = 30.0


def memory_s(left_s: float) -> float:
    """Seconds that the search for the largest batch may take of those that are left before it."""
    return MEMORY_SHARE * left_s


def profile_s(left_s: float) -> float:
    """Seconds that timing may take of those that are left before it."""
    return min(PROFILE_SHARE * left_s, max(_PROFILE_ENOUGH_S, _PROFILE_LONG_SHARE * left_s))


def sweep_s(left_s: float) -> float:
    """Seconds that the range test may take of those that are left before it."""
    return SWEEP_SHARE * left_s
