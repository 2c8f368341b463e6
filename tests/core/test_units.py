from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.units import format_duration, format_lr, format_size, parse_duration, parse_size
from autobatch.errors import SettingError

cheap = settings(max_examples=100)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("600", 600),
        (" 2h ", 7200),
        ("2d", 172_800),
        ("1.5h", 5400),
        ("0.5", 0.5),
        (60, 60),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "ten", "10 minutes", "30m1h", "-5", "-5s", "0", "0s", "1e3", "nan", "inf", 0, -1.0, float("nan")]
)
def test_what_is_no_duration_is_refused_with_the_forms_that_are(text: str | float) -> None:
    with pytest.raises(SettingError, match="a duration is written 90s, 10m, 1h30m or 600"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        ("1.5gib", 3 << 29),
        ("2048", 2048),
        ("16 B", 16),
        ("1TiB", 1 << 40),
        ("3kB", 3000),
        (4096, 4096),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8 G", "eight GiB", "-1GiB", "0", "0.1B", "8GiBs", 0, -5])
def test_what_is_no_size_is_refused_with_the_forms_that_are(text: str | int) -> None:
    with pytest.raises(SettingError, match="a size is written 8GiB, 500MB or a number of bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.042, "42 ms"),
        (0.0996, "0.10 s"),
        (0.42, "0.42 s"),
        (9.999, "10.0 s"),
        (12.34, "12.3 s"),
        (59.96, "1m 00s"),
        (245, "4m 05s"),
        (3599.6, "1h 00m"),
        (3720, "1h 02m"),
        (47 * 3600, "47h 00m"),
        (72 * 3600, "3.0 days"),
        (-245, "-4m 05s"),
    ],
)
def test_a_duration_is_written_with_the_digits_that_matter(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1000, "0.977 KiB"),
        (3.4 * (1 << 20), "3.4 MiB"),
        (139 * (1 << 30), "139 GiB"),
        (1 << 40, "1 TiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_a_size_is_written_in_the_unit_that_fits(size: float, text: str) -> None:
    assert format_size(size) == text


@cheap
@given(st.integers(1, 999 << 40))
def test_a_written_size_reads_back_to_three_digits(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.006, abs=1)


@cheap
@given(st.integers(1, 999), st.sampled_from("smhd"))
def test_a_written_duration_without_spaces_reads_back(count: int, unit: str) -> None:
    seconds = parse_duration(f"{count}{unit}")
    written = format_duration(seconds)
    if "days" not in written:
        assert parse_duration(written.replace(" ", "")) == pytest.approx(seconds, rel=0.02)


@pytest.mark.parametrize(
    ("lr", "text"), [(0.03, "0.03"), (1.2e-4, "0.00012"), (3e-5, "3e-5"), (1.0, "1"), (1.75e-6, "1.7e-6")]
)
def test_a_rate_is_written_to_two_digits(lr: float, text: str) -> None:
    assert format_lr(lr) == text
