from __future__ import annotations

import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.measurement import LrSweep
from autobatch.core.plan import Plan
from autobatch.errors import SettingError
from autobatch.measuring.learning_rate import RULES, LrCurve, find_lr_curve, min_over_10, steepest, valley
from autobatch.simulated.sim import SimRunner

cheap = settings(max_examples=30)

LRS = tuple(1e-6 * 10 ** (step / 16) for step in range(97))  # six decades, 16 steps each


def sweep(losses: tuple[float, ...], *, diverged: bool = False) -> LrSweep:
    return LrSweep(plan=Plan(batch_size=8), lrs=LRS[: len(losses)], losses=losses, diverged=diverged, seconds=1.0)


def sigmoid_drop(lr: float, *, at: float = 1e-3) -> float:
    """Falls from 2 to 1 around `at`: steepest per decade there."""
    return 2 - 1 / (1 + (at / lr) ** 2)


def dip(lr: float, *, at: float = 1e-2) -> float:
    """Lowest at `at`."""
    return 1 + abs(math.log10(lr / at)) / 6


def test_min_over_10_is_a_tenth_of_the_rate_of_the_lowest_loss() -> None:
    assert min_over_10(LRS, [dip(lr) for lr in LRS]) == pytest.approx(1e-3)


def test_steepest_is_per_decade_and_not_per_rate() -> None:
    losses = [sigmoid_drop(lr) for lr in LRS]
    assert steepest(LRS, losses) == pytest.approx(1e-3)
    by_rate = min(range(1, 96), key=lambda i: (losses[i + 1] - losses[i - 1]) / (LRS[i + 1] - LRS[i - 1]))
    assert LRS[by_rate] < 0.7 * 1e-3  # what dividing by the change of the rate itself would have said


def test_valley_is_the_middle_of_the_longest_fall() -> None:
    losses = [2.0] * 32 + [2 - step / 40 for step in range(1, 33)] + [3.0] * 33
    assert valley(LRS, losses) == pytest.approx(math.sqrt(LRS[31] * LRS[63]), rel=0.08)


@cheap
@given(st.lists(st.integers(0, 30), min_size=2, max_size=8))
def test_valley_agrees_with_a_search_over_all_subsequences(losses: list[int]) -> None:
    """The slow obvious reference."""
    falling = [
        steps
        for count in range(2, len(losses) + 1)
        for steps in itertools.combinations(range(len(losses)), count)
        if all(losses[a] > losses[b] for a, b in itertools.pairwise(steps))
    ]
    found = valley(LRS, [float(loss) for loss in losses])
    if not falling:
        assert found is None
        return
    longest = [steps for steps in falling if len(steps) == len(falling[-1])]
    lowest = min(losses[steps[-1]] for steps in longest)
    middles = [math.sqrt(LRS[steps[0]] * LRS[steps[-1]]) for steps in longest if losses[steps[-1]] == lowest]
    assert found in middles


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", ["flat", "rising", "noise", "nan at once", "empty"])
def test_a_curve_that_never_fell_holds_no_answer(rule: str, shape: str) -> None:
    noise = random.Random(0)
    losses = {
        "flat": (2.3,) * 97,
        "rising": tuple(2.3 + 0.01 * step for step in range(97)),
        "noise": tuple(2.3 + noise.gauss(0, 0.1) for _ in LRS),
        "nan at once": (math.nan,),
        "empty": (),
    }[shape]
    assert LrCurve(sweep=sweep(losses), rule=rule).suggestion is None


@cheap
@given(seed=st.integers(0, 20), rule=st.sampled_from(sorted(RULES)))
def test_a_suggestion_lies_within_the_sweep_under_noise(seed: int, rule: str) -> None:
    noise = random.Random(seed)
    losses = tuple(dip(lr) + noise.gauss(0, 0.02) for lr in LRS)
    suggestion = LrCurve(sweep=sweep(losses), rule=rule).suggestion
    assert suggestion is not None
    assert LRS[0] / 10 <= suggestion <= LRS[-1]


def test_the_losses_before_one_that_is_not_finite_are_read() -> None:
    losses = (*(dip(lr) for lr in LRS[:80]), math.inf)
    curve = LrCurve(sweep=sweep(losses, diverged=True))
    assert len(curve.smoothed) == 80
    assert curve.suggestion is not None
    assert curve.diverged_at == LRS[80]
    assert json.loads(json.dumps(curve.to_json()))["losses"][-1] is None


def test_a_curve_refuses_an_unknown_rule_and_unpaired_losses() -> None:
    with pytest.raises(SettingError, match="a rule is one of min/10, steepest, valley; found 'best'"):
        LrCurve(sweep=sweep((1.0,)), rule="best")
    broken = LrSweep(plan=Plan(batch_size=8), lrs=(0.1, 0.2), losses=(1.0,), diverged=False, seconds=0.0)
    with pytest.raises(ValueError, match="got 2 rates, 1 losses"):
        LrCurve(sweep=broken)
    falling = LrSweep(plan=Plan(batch_size=8), lrs=(0.2, 0.1), losses=(1.0, 1.0), diverged=False, seconds=0.0)
    with pytest.raises(ValueError, match="rising rates"):
        LrCurve(sweep=falling)


def test_the_range_test_of_a_runner_suggests_a_rate_below_where_it_diverged() -> None:
    curve = find_lr_curve(SimRunner(), Plan(batch_size=256))
    assert curve.rule == "min/10"
    assert curve.suggestion is not None
    assert curve.diverged_at is not None
    assert curve.suggestion < curve.diverged_at
    assert curve.to_json()["suggestion"] == curve.suggestion


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lowest": 0.0}, r"from a rate to a higher one, both between 1e-30 and 1e\+30; got 0.0 to 10.0"),
        ({"lowest": 1.0, "highest": 0.1}, "got 1.0 to 0.1"),
        ({"steps": 5}, "at least 20 steps; got 5"),
        ({"rule": "fastest"}, "found 'fastest'"),
    ],
)
def test_an_impossible_range_test_is_refused_before_it_runs(arguments: dict[str, float], message: str) -> None:
    runner = SimRunner()
    with pytest.raises(SettingError, match=message):
        find_lr_curve(runner, Plan(batch_size=8), **arguments)  # type: ignore[arg-type]
    assert runner.clock() == 0
