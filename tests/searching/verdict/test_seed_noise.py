"""What a seed changes: from repeats, and from a spread that neither a bad score nor a tie spoils."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.searching.verdict.seed_noise import (
    ENOUGH_REPEATS,
    FARTHEST,
    chance_below,
    pooled_sigma,
    score_resolution,
    spread,
    squared_deviations,
    variance_of_the_top,
)

from ...helpers.histories import history
from .test_confirmation import searched

SCORES = st.floats(-100, 100)


def test_sigma_is_the_pooled_one_where_only_repeats_are_there() -> None:
    sigma = pooled_sigma([[1.0, 3.0], [5.0, 5.0, 8.0]], [])
    assert sigma is not None
    assert sigma.value == pytest.approx(math.sqrt((2 + 6) / 3))
    assert (sigma.repeats, sigma.spread_of, sigma.lent) == (3, 0, 0)
    assert sigma.source == "3 degrees of freedom from configurations run under several seeds"


def test_degrees_of_freedom_are_those_of_repeats_and_few_for_a_spread() -> None:
    repeated = pooled_sigma([[1.0, 3.0], [5.0, 5.0, 8.0]], [])
    assert repeated is not None
    assert repeated.degrees == 3
    lent = pooled_sigma([[1.0, 3.0]], [0.5, 0.6, 0.7])
    assert lent is not None
    assert (lent.repeats, lent.lent, lent.spread_of) == (1, 5, 3)
    assert lent.degrees == pytest.approx(6**2 / (1 + 5**2 / 2))  # Satterthwaite
    alone = pooled_sigma([], [0.5, 0.6, 0.7])
    assert alone is not None
    assert alone.degrees == pytest.approx(2)


@pytest.mark.parametrize(
    ("t", "degrees", "chance"),
    [
        (0.0, 3.0, 0.5),
        (1.0, 1.0, 0.75),  # Cauchy
        (6.3138, 1.0, 0.95),  # from here on the usual tables
        (2.9200, 2.0, 0.95),
        (-2.9200, 2.0, 0.05),
        (2.3534, 3.0, 0.95),
        (3.1427, 6.0, 0.99),
        (2.6245, 14.0, 0.99),
        (2.3263, 1000.0, 0.9899),
        (1e9, 2.0, 1.0),
        (math.inf, 2.0, 1.0),
        (-math.inf, 2.0, 0.0),
    ],
)
def test_students_t_is_that_of_the_tables(t: float, degrees: float, chance: float) -> None:
    assert chance_below(t, degrees) == pytest.approx(chance, abs=1e-4)


@given(st.floats(-1e6, 1e6), st.floats(1, 200))
def test_students_t_is_symmetric_and_a_chance(t: float, degrees: float) -> None:
    assert 0 <= chance_below(t, degrees) <= 1
    assert chance_below(t, degrees) + chance_below(-t, degrees) == pytest.approx(1)


def test_sigma_is_unknown_where_nothing_was_repeated() -> None:
    assert pooled_sigma([[1.0], []], [0.5, 0.6]) is None


def test_the_spread_lends_what_the_repeats_lack_and_no_more() -> None:
    wild = [0.0, -10.0, -20.0]
    for count in range(1, 8):
        repeats = [float(number % 2) for number in range(count)]
        sigma = pooled_sigma([repeats], wild)
        assert sigma is not None
        assert sigma.repeats == count - 1
        assert sigma.lent == max(0, ENOUGH_REPEATS - (count - 1))
        assert (sigma.spread_of == 3) == (sigma.lent > 0)
        assert ("spread" in sigma.source) == (sigma.lent > 0)
        assert (sigma.value > 1) == (sigma.lent > 0)


def test_the_spread_of_equal_configurations_estimates_the_noise_of_a_seed() -> None:
    rng = random.Random(0)
    for count in (3, 6, 12, 30):
        draws = [spread([rng.gauss(0, 1) for _ in range(count)], 0.0)[0] for _ in range(3000)]
        # A finite sample's top third is a little wider than the normal's: the estimate errs upwards, as it should.
        assert 0.75 <= sum(value**2 for value in draws) / len(draws) <= 1.5


@given(st.lists(SCORES, min_size=3, max_size=8), st.floats(0, 1), st.floats(0, 1e9))
def test_one_bad_score_does_not_make_the_spread_useless(scores: list[float], step: float, lower: float) -> None:
    """However bad it is, the spread stays within what the gap between the best two allows."""
    first, second, *_ = sorted(scores, reverse=True)
    worst = min(range(len(scores)), key=scores.__getitem__)
    bad = [score - lower if number == worst else score for number, score in enumerate(scores)]
    found, _ = spread(bad, step)
    top = math.sqrt(variance_of_the_top(3 / len(scores)))
    assert found <= FARTHEST * max(first - second, step) / top + 1e-9


@given(st.lists(SCORES, min_size=3, max_size=12), st.floats(-50, 50), st.floats(0.01, 100))
def test_the_spread_moves_with_the_unit_and_not_with_the_zero_of_the_score(
    scores: list[float], shift: float, unit: float
) -> None:
    found, of = spread(scores, 0.01)
    moved, of_moved = spread([unit * (score + shift) for score in scores], unit * 0.01)
    assert moved == pytest.approx(unit * found, abs=1e-6)
    assert of_moved == of


def test_a_score_past_the_root_of_the_largest_double_makes_the_spread_infinite() -> None:
    assert squared_deviations([1.0, 1.1, 1e200]) == math.inf
    assert spread([-1.0, -1.1, -1e200], 0.01)[0] < 1  # it is far behind, and says nothing of seeds


def test_the_top_of_a_normal_sample_is_narrower_than_the_whole() -> None:
    assert variance_of_the_top(1.0) == 1.0
    assert variance_of_the_top(0.5) == pytest.approx(1 - 2 / math.pi)  # the half-normal distribution
    assert variance_of_the_top(0.1) < variance_of_the_top(1 / 3) < variance_of_the_top(0.5)


def test_scores_that_agree_are_not_told_apart_more_finely_than_the_score_can() -> None:
    sigma = pooled_sigma([[0.98, 0.98]], [0.98, 0.98, 0.98], resolution=0.02)
    assert sigma is not None
    assert sigma.value == 0.02
    assert "smallest step between two scores" in sigma.source
    assert pooled_sigma([[0.98, 0.98]], [0.98, 0.98, 0.98]) is None  # not a sigma of nothing
    coarse = pooled_sigma([[0.9, 0.98]], [0.98, 0.98, 0.9], resolution=0.02)
    assert coarse is not None
    assert coarse.value > 0.02
    assert "smallest step" not in coarse.source


def test_the_resolution_is_the_smallest_step_that_any_two_scores_differ_by() -> None:
    assert score_resolution(history(searched(0.96, 0.98, 0.98, 0.90))) == pytest.approx(0.02)
    assert score_resolution(history(searched(0.96, 0.96 + 1e-9, 0.98))) == pytest.approx(0.02)  # rounding is no step
    assert score_resolution(history(searched(0.5, 0.5))) == 0
    assert score_resolution(history([])) == 0
