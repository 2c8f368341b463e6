"""One task in several ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from autobatch.arm import Arm
from autobatch.errors import DoesNotFit
from autobatch.measuring.arms import ArmProfile, compared, loss_difference, profile_arm
from autobatch.plan import LrSweep, Plan, Runner
from autobatch.simulated.sim import SimRunner
from autobatch.stages import max_batch_of, profile_of


def sweep(*losses: float, batch_size: int = 8) -> LrSweep:
    rates = (1e-3,) * len(losses)
    return LrSweep(plan=Plan(batch_size=batch_size), lrs=rates, losses=losses, diverged=False, seconds=1.0)


def measured(arm: Arm, runner: SimRunner) -> ArmProfile:
    @contextmanager
    def opened() -> Iterator[tuple[Runner, Plan]]:
        yield runner, Plan(batch_size=1, precision=arm.precision)
        runner.close()

    return profile_arm(
        arm,
        opened,
        None,
        find=lambda runner, plan: max_batch_of(runner, plan, max_batch_size=256),
        time_it=lambda runner, plan, largest: profile_of(runner, plan, int(largest), budget_s=5.0),
    )


def test_arms_stand_side_by_side_with_what_they_do_to_the_loss() -> None:
    slow = measured(Arm(), SimRunner())
    quick = measured(Arm(precision="bf16"), SimRunner(step_s=lambda batch: 0.001 + 1e-5 * batch))
    found = compared([quick, slow])
    assert found["reference"] == "fp32"
    assert [arm["arm"] for arm in found["arms"]] == ["bf16", "fp32"]
    assert [arm["outcome"] for arm in found["arms"]] == ["ok", "ok"]
    assert found["arms"][0]["loss_difference"] == {"steps": 10, "first": 0.0, "largest": 0.0}
    assert found["arms"][1]["loss_difference"] is None
    speeds = [arm["throughput"]["samples_per_s"] for arm in found["arms"]]
    assert speeds[0] == pytest.approx(2 * speeds[1])


def test_an_arm_in_which_nothing_fits_says_so_and_the_others_go_on() -> None:
    failed = measured(Arm(precision="fp16"), SimRunner(capacity_bytes=1 << 20))
    assert failed.curve is None
    assert failed.message is not None
    found = compared([failed, measured(Arm(), SimRunner())])
    assert found["arms"][0]["outcome"] == "failed"
    assert found["arms"][0]["throughput"] is None
    with pytest.raises(DoesNotFit) as raised:
        max_batch_of(SimRunner(capacity_bytes=1 << 20), Plan(batch_size=1))
    assert failed.message == str(raised.value)


def test_a_loss_differs_by_its_share_and_the_largest_is_by_size() -> None:
    found = loss_difference(sweep(2.02, 1.4, 1.1), sweep(2.0, 1.5, 1.1))
    assert found is not None
    assert found.steps == 3
    assert found.first == pytest.approx(0.01)
    assert found.largest == pytest.approx(-0.1 / 1.5)


def test_losses_that_cannot_be_compared_are_not() -> None:
    assert loss_difference(None, sweep(1.0)) is None
    assert loss_difference(sweep(1.0), None) is None
    assert loss_difference(sweep(1.0, batch_size=4), sweep(1.0)) is None
    assert loss_difference(sweep(1.0), sweep(0.0)) is None
