"""The surrogate of scores over batch, rate and share of the schedule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autobatch.searching.schedulers.surrogate import Observation, denoised, fit

SHARES = (1 / 8, 1 / 2, 1.0)


def seen(count: int, *, best_rate: float = -6.0, noise: float = 0.0, seed: int = 0) -> tuple[Observation, ...]:
    """Scores of a bowl at batch 2 ** 7 and `best_rate`; every third trial went on, every ninth to the end."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        batch, rate = float(draw.integers(4, 11)), float(draw.uniform(-11, -1))
        for level, share in enumerate(SHARES):
            if number % 3**level == 0:
                score = 0.9 - 0.01 * (rate - best_rate) ** 2 - 0.005 * (batch - 7) ** 2 - 0.1 * (1 - share) ** 2
                found.append(Observation(batch=batch, rate=rate, share=share, score=score + noise * draw.normal()))
    return tuple(found)


in_any_unit = given(
    unit=st.sampled_from([1e-6, 0.01, 1.0, 100.0, 1e6]),
    zero=st.sampled_from([-1.0, 0.0, 3.0]),
    count=st.integers(1, 30),
    noise=st.sampled_from([0.0, 0.01]),
)


def ends(*places: tuple[float, float]) -> np.ndarray:
    """Places at the end of the schedule."""
    return np.array([(batch, rate, 0.0) for batch, rate in places])


@pytest.mark.parametrize("best_rate", [-8.0, -6.0, -3.0])
def test_what_looks_best_of_a_bowl_is_close_to_its_best(best_rate: float) -> None:
    rates = np.linspace(-11, -1, 41)
    means = fit(seen(27, best_rate=best_rate)).mean(ends(*((7.0, rate) for rate in rates)))
    assert 0.01 * (rates[means.argmax()] - best_rate) ** 2 <= 0.02  # of 0.25 and more that the range spans


def test_an_early_score_says_something_of_the_end() -> None:
    paused = [o for o in seen(27) if o.share == SHARES[0]]
    top, bottom = max(paused, key=lambda o: o.score), min(paused, key=lambda o: o.score)
    good, bad = fit(seen(27)).mean(ends((top.batch, top.rate), (bottom.batch, bottom.rate)))
    assert good > bad


def test_what_was_seen_is_less_uncertain_than_what_was_not() -> None:
    whole = [o for o in seen(9) if o.share == 1.0]
    _, sd = fit(seen(9)).predict(ends((whole[0].batch, whole[0].rate), (30.0, 30.0)))
    assert (sd[:, 0] < sd[:, 1]).all()


@settings(max_examples=25)
@in_any_unit
def test_the_unit_of_the_score_changes_nothing(unit: float, zero: float, count: int, noise: float) -> None:
    places = ends((5.0, -9.0), (7.0, -6.0), (9.0, -2.0))
    scores = seen(count, noise=noise)
    other = tuple(replace(o, score=unit * (o.score + zero)) for o in scores)
    np.testing.assert_allclose(fit(scores).mean(places), fit(other).mean(places), atol=1e-5)


@settings(max_examples=25)
@given(count=st.integers(1, 40), seed=st.integers(0, 99), equal=st.booleans())
def test_whatever_was_seen_there_is_an_answer(count: int, seed: int, equal: bool) -> None:
    scores = seen(count, noise=0.02, seed=seed)
    if equal:
        scores = tuple(replace(o, score=0.5) for o in scores)
    known = fit(scores)
    places = ends(*((batch, rate) for batch in (3.0, 7.0, 11.0) for rate in (-12.0, -6.0, 0.0)))
    improvement = known.expected_improvement(places, ends((7.0, -6.0)))
    assert np.isfinite(improvement).all()
    assert (improvement >= -1e-12).all()
    assert math.isclose(known.weights.sum(), 1.0)


def test_a_place_that_scored_far_below_promises_less_than_one_beside_the_best() -> None:
    known = fit(seen(27))
    beside, far = known.expected_improvement(ends((7.0, -5.8), (7.0, -1.0)), ends((6.0, -7.5)))
    assert beside > far


def test_what_one_more_score_would_hardly_tell_promises_little() -> None:
    """The less is known of a place beside what a score's noise hides, the more of its expected improvement counts."""
    known = fit(seen(27, noise=0.01))
    places, over = ends((7.0, -6.0), (7.0, -9.0), (60.0, 60.0)), ends((7.0, -6.1))
    assert (np.diff(known.weights @ known.predict(places)[1]) > 0).all()
    counted = known.expected_improvement(places, over)
    exact = replace(known, noises=np.zeros_like(known.noises)).expected_improvement(places, over)
    kept = counted / exact
    assert 0 < kept[0] < kept[1] < kept[2] < 1
    louder = replace(known, noises=2 * known.noises)
    assert (louder.expected_improvement(places, over) < counted).all()
    drowned = replace(known, noises=1e6 * known.noises)
    assert (drowned.expected_improvement(places, over) < 1e-3 * exact).all()


def test_one_of_equal_scores_more_or_less_does_not_hide_the_rest() -> None:
    """A trial that failed far below everything leaves the order of the others as it was."""
    places = ends(*((7.0, rate) for rate in np.linspace(-9, -3, 7)))
    scores = seen(27)
    failed = Observation(batch=10.0, rate=-1.0, share=SHARES[0], score=-1e9)
    assert fit(scores).mean(places).argmax() == fit((*scores, failed)).mean(places).argmax()


def test_draws_have_the_mean_and_the_deviation_that_are_predicted() -> None:
    known = fit(seen(27, noise=0.01))
    places = ends((7.0, -6.0), (7.0, -5.9), (9.0, -2.0), (5.0, -10.0))
    drawn = known.draw(places, count=4000, seed=1)
    mean, sd = known.predict(places)
    second = np.asarray(known.weights @ (sd**2 + mean**2))
    np.testing.assert_allclose(drawn.mean(axis=0), known.mean(places), atol=0.05)
    np.testing.assert_allclose(drawn.std(axis=0), np.sqrt(second - known.mean(places) ** 2), rtol=0.1)
    assert np.asarray(np.corrcoef(drawn.T))[0, 1] > 0.9  # neighbours go up and down together
    np.testing.assert_array_equal(drawn, known.draw(places, count=4000, seed=1))


def test_a_score_that_its_neighbours_agree_with_is_left_alone() -> None:
    scores = seen(27)
    top = np.array([o.score for o in scores if o.share == 1.0])
    freed = np.array([score for score, o in zip(denoised(scores), scores, strict=True) if o.share == 1.0])
    near = top > 0.85
    np.testing.assert_allclose(freed[near], top[near], atol=0.01)  # of .25 and more that the range spans
    assert np.corrcoef(freed, top)[0, 1] > 0.99


def test_the_luckiest_of_many_equal_scores_is_pulled_back() -> None:
    rates = np.linspace(-7, -5, 12)
    noise = 0.02 * np.random.default_rng(3).normal(size=12)
    equals = [Observation(batch=7.0, rate=r, share=1.0, score=0.9 + e) for r, e in zip(rates, noise, strict=True)]
    far = [Observation(batch=7.0, rate=r, share=1.0, score=0.5 - 0.1 * abs(r + 6)) for r in (-11.0, -9.0, -3.0, -1.0)]
    freed = denoised((*equals, *far))[:12]
    lucky = noise.argmax()
    assert 0.9 < freed[lucky] < 0.9 + 0.7 * noise[lucky]
    assert freed.std() < 0.7 * noise.std()


@settings(max_examples=25)
@in_any_unit
def test_a_score_without_its_noise_is_in_the_unit_of_the_scores(
    unit: float, zero: float, count: int, noise: float
) -> None:
    scores = seen(count, noise=noise)
    other = tuple(replace(o, score=unit * (o.score + zero)) for o in scores)
    np.testing.assert_allclose(denoised(other), unit * (denoised(scores) + zero), atol=1e-5 * unit)


@settings(max_examples=50)
@given(st.lists(st.floats(-1e50, 1e50), min_size=1, max_size=9))
@example([0.0, 5e-324])
@example([0.0, 5e-324, 1.0])
@example([0.0, -1e50, 1e-300, 2e-300, 3e-300, 4e-300, 5e-300])
def test_scores_however_close_or_far_apart_are_told_of(scores: list[float]) -> None:
    told = tuple(replace(o, score=score) for o, score in zip(seen(9), scores, strict=False))
    places = ends((5.0, -9.0), (7.0, -6.0))
    assert np.isfinite(fit(told).expected_improvement(places, places)).all()
    assert np.isfinite(denoised(told)).all()


def test_equal_scores_stay_what_they_are() -> None:
    scores = tuple(replace(o, score=0.5) for o in seen(9))
    np.testing.assert_allclose(denoised(scores), 0.5)
