"""A range test ends where training blows up, and nowhere else."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.lr_sweep import BLOW_UP, SETTLED_STEPS, SMOOTHING, blew_up, drive, smooth

cheap = settings(max_examples=50)


def squared_errors(draw: random.Random, batch: int) -> float:
    """The mean of `batch` draws of chi-squared with one degree: the loss of a regression that learns nothing."""
    return 2 * draw.gammavariate(batch / 2, 1.0) / batch


def end_of(losses: list[float]) -> int | None:
    """The step, counted from 0, at which a range test with these losses ends; None where it does not."""
    told = iter(losses)
    lrs, _, diverged = drive(lambda lr: next(told), lowest=1e-7, highest=10.0, steps=len(losses))
    return len(lrs) - 1 if diverged else None


@cheap
@given(loss=st.floats(0.1, 10), count=st.integers(1, 50))
def test_a_constant_loss_stays_the_same_from_the_first_step_on(loss: float, count: int) -> None:
    assert smooth([loss] * count) == pytest.approx([loss] * count)


@cheap
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_smoothing_is_the_weighted_mean_of_the_past(losses: list[float]) -> None:
    weights = [SMOOTHING ** (len(losses) - 1 - i) for i in range(len(losses))]
    mean = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    assert smooth(losses)[-1] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("steps", [20, 30, 100])
@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_a_flat_loss_is_not_ended_by_its_noise(batch: int, steps: int) -> None:
    draw = random.Random(f"{batch} {steps}")
    curves = [[squared_errors(draw, batch) for _ in range(steps)] for _ in range(200)]
    ended = sum(end_of(losses) is not None for losses in curves) / len(curves)
    assert ended <= (0.1 if batch == 1 else 0.02)
    if batch <= 8 and steps == 100:  # by single losses nearly every one of them has "blown up"
        raw = [any(loss > BLOW_UP * min(losses[: i + 1]) for i, loss in enumerate(losses)) for losses in curves]
        assert sum(raw) / len(raw) > 0.95


@settings(max_examples=200)
@given(
    batch=st.sampled_from([4, 8, 16, 64]),
    start=st.integers(12, 70),
    growth=st.floats(1.5, 100.0),
    learned=st.floats(0.0, 0.95),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 10_000),
)
def test_a_loss_that_grows_from_step_to_step_ends_the_test_within_ten(
    batch: int, start: int, growth: float, learned: float, unit: float, seed: int
) -> None:
    """After it has fallen, or not, to a part of where it was; whatever it is measured in."""
    draw = random.Random(seed)
    clean = [1 - learned * min(1.0, step / start) + growth ** (step - start) for step in range(100)]
    losses = [unit * level * squared_errors(draw, batch) for level in clean]
    ended = end_of(losses)
    grown = next((step for step, level in enumerate(clean) if level > 2 * BLOW_UP), len(clean))
    assert ended is not None
    assert ended <= grown + 10


@settings(max_examples=200)
@given(
    batch=st.sampled_from([4, 8, 16, 64]),
    start=st.integers(12, 80),
    level=st.floats(20.0, 1e9),
    seed=st.integers(0, 10_000),
)
def test_a_loss_that_jumps_and_stays_up_ends_the_test_within_ten_steps(
    batch: int, start: int, level: float, seed: int
) -> None:
    draw = random.Random(seed)
    losses = [(level if step >= start else 1.0) * squared_errors(draw, batch) for step in range(100)]
    ended = end_of(losses)
    assert ended is not None
    assert start - 12 <= ended <= start + 10


@pytest.mark.parametrize("batch", [4, 8, 16])
def test_most_blow_ups_are_found_in_a_few_steps(batch: int) -> None:
    draw = random.Random(batch)
    late = []
    for start in range(20, 80):
        losses = [2.0 ** max(0, step - start) * squared_errors(draw, batch) for step in range(100)]
        ended = end_of(losses)
        assert ended is not None
        late.append(ended - (start + 2))  # from where it is four times what it was
    assert median(late) <= 3
    assert max(late) <= 8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_loss_that_is_no_number_ends_the_test_at_once_and_is_not_told(bad: float | None) -> None:
    for good in (0, 1, 40):
        told = iter([*[1.0] * good, bad, 1.0])
        lrs, losses, diverged = drive(lambda lr, told=told: next(told), lowest=1e-3, highest=1.0, steps=60)  # type: ignore[misc]
        assert (len(lrs), losses, diverged) == (good, (1.0,) * good, True)


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("one outlier", [1.0] * 50 + [25.0] + [1.0] * 49),
        ("it falls to nothing", [0.8**step for step in range(100)]),
        ("it falls below zero and comes back to it", [2.0 - 0.06 * step for step in range(90)] + [-3.3, -3.2, -3.1]),
        ("rounding about zero", [1.0, 0.5, 0.25] + [1e-9 * (step % 7) for step in range(97)]),
        ("zero all through", [0.0] * 100),
    ],
)
def test_what_is_no_blow_up_does_not_end_the_test(name: str, losses: list[float]) -> None:
    assert end_of(losses) is None


@cheap
@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=60), st.sampled_from([2.0**-40, 0.5, 2.0**30]))
def test_what_the_loss_is_measured_in_changes_nothing(losses: list[float], unit: float) -> None:
    assert blew_up([unit * loss for loss in losses]) == blew_up(losses)


def test_before_it_has_settled_nothing_is_called_a_blow_up() -> None:
    assert not blew_up([])
    assert not blew_up([1.0] * (SETTLED_STEPS - 1) + [1e9])
    assert blew_up([1.0] * SETTLED_STEPS + [1e9])


@cheap
@given(lowest=st.floats(1e-8, 1e-2), decades=st.floats(0.0, 9.0), steps=st.integers(2, 120))
def test_the_rates_rise_geometrically_from_the_lowest_to_the_highest(lowest: float, decades: float, steps: int) -> None:
    asked: list[float] = []

    def loss_at(lr: float) -> float:
        asked.append(lr)
        return 1.0

    highest = lowest * 10**decades
    lrs, losses, diverged = drive(loss_at, lowest=lowest, highest=highest, steps=steps)
    assert (list(lrs), losses, diverged) == (asked, (1.0,) * steps, False)
    assert [lrs[0], lrs[-1]] == pytest.approx([lowest, highest])
    ratios = [after / before for before, after in pairwise(lrs)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
