"""How far a median can be trusted."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.medians import drift, is_settled, likely_range, median_interval, relative_spread

times = st.lists(st.floats(1e-4, 10), min_size=6, max_size=60)


@given(values=times)
def test_the_interval_holds_the_median_and_is_made_of_values_that_were_seen(values: list[float]) -> None:
    interval = median_interval(values)
    assert interval is not None
    assert interval[0] <= median(values) <= interval[1]
    assert set(interval) <= set(values)


@given(values=times, factor=st.sampled_from([0.5, 2.0, 1024.0]))
def test_the_spread_does_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    assert relative_spread([factor * value for value in values]) == pytest.approx(relative_spread(values))


def test_below_six_values_nothing_is_said() -> None:
    assert median_interval([1.0] * 5) is None
    assert relative_spread([1.0] * 5) == float("inf")
    assert relative_spread([1.0] * 6) == 0.0


@given(visits=st.lists(times, min_size=2, max_size=9))
def test_the_range_over_several_moments_holds_the_median_of_each_or_of_most(visits: list[list[float]]) -> None:
    together = [value for visit in visits for value in visit]
    medians = [median(visit) for visit in visits]
    low, high = likely_range(together, medians)
    assert low <= median(together) <= high
    assert low <= median(medians) <= high
    if len(visits) < 6:
        assert (low, high) == (min(low, *medians), max(high, *medians))
    alone = likely_range(together)
    assert low <= alone[0] <= alone[1] <= high


def test_moments_that_differ_are_not_settled_however_many_values_each_has() -> None:
    quick, slow = [1.0] * 500, [1.1] * 500
    assert is_settled(quick + quick)
    assert not is_settled(quick + slow, [1.0, 1.1])
    assert is_settled(quick * 11 + slow, [1.0] * 11 + [1.1])  # one slow moment of twelve


@pytest.mark.parametrize("count", [6, 15, 40])
def test_about_nineteen_of_twenty_intervals_hold_the_true_median(count: int) -> None:
    draw = random.Random(count)
    held = 0
    for _ in range(2000):
        interval = median_interval([draw.expovariate(1.0) for _ in range(count)])
        assert interval is not None
        held += interval[0] <= 0.6931471805599453 <= interval[1]
    assert held / 2000 > 0.94


def test_a_slope_is_a_drift_and_noise_is_none() -> None:
    draw = random.Random(0)
    assert drift([1 + 0.02 * index for index in range(40)]) == pytest.approx(0.4 / 1.19, rel=0.1)
    assert drift([1 - 0.01 * index for index in range(40)]) == pytest.approx(-0.2 / 0.905, rel=0.1)
    assert sum(drift([draw.gauss(1, 0.05) for _ in range(40)]) is not None for _ in range(300)) < 9
    assert drift([1.0, 2.0, 3.0]) is None
