"""Durations and sizes as people write them, and back.

Inside the program there are only seconds and bytes. Here text becomes a number, and a number becomes text.
"""

from __future__ import annotations

import math
import re

from ..errors import SettingError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _BYTES[f"{_letter}B"] = 1000**_power
    _BYTES[f"{_letter}iB"] = 1024**_power

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_duration(text: str | float) -> float:
    """Seconds, from `90s`, `10m`, `1h30m`, `2d` or a plain number of seconds such as `600`.

    SettingError: the text is none of these, or the duration is not positive and finite.
        SettingError: the text is none of these, or the duration is not positive and finite.
    """
    seconds: float | None = None
    if isinstance(text, (int, float)):
        seconds = float(text)
    else:
        stripped = text.strip()
        match = _DURATION.fullmatch(stripped)
        if re.fullmatch(r"\d+(\.\d+)?", stripped):
            seconds = float(stripped)
        elif match and stripped:
            seconds = sum(
                float(value) * unit
                for value, unit in zip(match.groups(), (86400.0, 3600.0, 60.0, 1.0), strict=True)
                if value
            )
    if seconds is None or not math.isfinite(seconds) or seconds <= 0:
        raise SettingError(f"a duration is written 90s, 10m, 1h30m or 600 (seconds) and is above zero; found {text!r}")
    return seconds


def parse_size(text: str | int) -> int:
    """Bytes, from `8GiB` (1024-based), `500MB` (1000-based) or a plain number of bytes.

    Raises:
        SettingError: the text is none of these, or the size is not positive.
    """
    size: int | None = None
    if isinstance(text, int):
        size = text
    else:
        match = _SIZE.fullmatch(text.strip())
        units = {name.lower(): factor for name, factor in _BYTES.items()}
        if match and match[2].lower() in units:
            size = int(float(match[1]) * units[match[2].lower()])
    if size is None or size <= 0:
        raise SettingError(f"a size is written 8GiB, 500MB or a number of bytes and is above zero; found {text!r}")
    return size


def format_duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4m 05s`, `1h 02m`: at most three significant digits."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 0.0995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{seconds / 86400:.1f} days"


def format_size(size: float) -> str:
    """`512 B`, `3.40 MiB`, `139 GiB`: 1024-based, as memory is sold and reported."""
    if size < 0:
        return f"-{format_size(-size)}"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def format_probability(probability: float) -> str:
    """`91%`: rounded down, so that a value below a threshold never reads as the threshold."""
    return f"{math.floor(100 * probability + 1e-9)}%"


def format_lr(lr: float) -> str:
    """A learning rate as people write one: `0.03`, `1.2e-4`."""
    text = f"{lr:.2g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"
