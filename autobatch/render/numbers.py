"""Numbers for a reader, beyond `units`: scores, learning rates, speeds, shares."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

# Significant digits of a score without a standard error. Assumed: four distinguish any two configurations that matter.
_DIGITS_WITHOUT_STDERR = 4
# The most significant digits of a score, for any standard error. Assumed.
_MOST_DIGITS = 8
_PREFIXES = dict(zip(range(-3, 7), ("n", "µ", "m", "", "k", "M", "G", "T", "P", "E"), strict=True))  # by powers of 1000
_SHARE = re.compile(r"(\d+)%")
# A longer number is written with an exponent. Assumed: it fits into a column of a table.
_LONGEST = 12


def known(value: T | None, write: Callable[[T], str] = str, unknown: str = "unknown") -> str:
    """The value as `write` writes it; `unknown` for None."""
    return unknown if value is None else write(value)


def score_decimals(scores: Iterable[float], stderrs: Iterable[float | None]) -> int:
    """Decimals that show the smallest standard error to two digits; four significant digits for a score without one."""
    largest = max((abs(score) for score in scores), default=0.0)
    leading = math.floor(math.log10(largest)) if largest > 0 else 0
    errors = [error for error in stderrs if error is not None and error > 0]
    wanted = 1 - math.floor(math.log10(min(errors))) if errors else _DIGITS_WITHOUT_STDERR - 1 - leading
    return max(0, min(wanted, _MOST_DIGITS - 1 - leading))


def score_text(score: float | None, decimals: int) -> str:
    """A score with this many decimals, "-" for None; with an exponent if it would be too long to read."""
    if score is None:
        return "-"
    text = f"{score:z.{decimals}f}"
    return text if len(text) <= _LONGEST else f"{score:.{_DIGITS_WITHOUT_STDERR}g}"


def lr_text(lr: float, digits: int = 3) -> str:
    """A learning rate as people type one: `0.03`, `1.25e-5`. The search tries rates of three digits."""
    mantissa, e, exponent = f"{lr:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def speed_text(per_s: float) -> str:
    """Samples per second: three digits where they matter, with separated thousands."""
    return f"{per_s:,.0f}" if per_s >= 99.95 else f"{per_s:.3g}"


def si_text(value: float, unit: str) -> str:
    """Three digits and a fitting prefix: `25.6 M`, `230 mJ`, `52.1 TFLOP/s`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f} {unit}".strip()
    # A number that rounds to the next power of ten has its prefix: 999.7 is 1 k.
    power = math.floor(math.log10(float(f"{abs(value):.2e}")) / 3)
    power = min(max(power, min(_PREFIXES)), max(_PREFIXES))
    return f"{value / 1000.0**power:.3g} {_PREFIXES[power]}{unit}".strip()


def percent_text(share: float) -> str:
    """A small share to two digits: `0.031%`, `1.0%`, `12%`."""
    return f"{100 * share:#.2g}%" if abs(share) < 0.0995 else f"{share:.0%}"


def share_text(share: float) -> str:
    """A share as a whole percentage, "<1%" if that would be none."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def capitalized(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def count_text(count: int, noun: str) -> str:
    """A count with its noun: `1 seed`, `1,024 seeds`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def grouped(remarks: Iterable[tuple[int, str]]) -> list[tuple[tuple[int, ...], str]]:
    """Remarks on numbers, merged if they differ only in their percentages: (numbers, text with the range).

    (8, "had it 26% of the time") and (16, "had it 63% of the time") become ((8, 16), "had it 26% to 63% of the time").
    """
    kinds: dict[tuple[str, ...], list[tuple[int, list[int]]]] = {}
    for number, text in remarks:
        words = _SHARE.split(text)  # text and percentages in turn, as the pattern has a group
        kinds.setdefault(tuple(words[::2]), []).append((number, [int(share) for share in words[1::2]]))
    found = []
    for texts, members in kinds.items():
        numbers = tuple(sorted({number for number, _ in members}))
        columns = list(zip(*(shares for _, shares in members), strict=True))
        ranges = [f"{min(c)}%" if min(c) == max(c) else f"{min(c)}% to {max(c)}%" for c in columns]
        found.append((numbers, "".join(a + b for a, b in zip(texts, [*ranges, ""], strict=True))))
    return found
