"""One task in several ways."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autobatch.core.compute_mode import ComputeMode
from autobatch.core.lr_sweep import SETTLED_STEPS, drive
from autobatch.core.measurement import LrSweep
from autobatch.core.plan import Plan
from autobatch.core.runner import Runner
from autobatch.errors import DoesNotFit, NoValidResult, TaskError
from autobatch.measuring.compute_modes import (
    FirstLosses,
    ModeProfile,
    compared,
    first_losses,
    loss_difference,
    profile_compute_mode,
)
from autobatch.render.terminal import print_compute_modes
from autobatch.simulated.sim import SimRunner
from autobatch.tuning.stages import max_batch_of, profile_of


def sweep(*losses: float, batch_size: int = 8) -> LrSweep:
    rates = (1e-3,) * len(losses)
    return LrSweep(plan=Plan(batch_size=batch_size), lrs=rates, losses=losses, diverged=False, seconds=1.0)


def measured(compute_mode: ComputeMode, runner: SimRunner) -> ModeProfile:
    @contextmanager
    def opened() -> Iterator[tuple[Runner, Plan]]:
        yield runner, Plan(batch_size=1, precision=compute_mode.precision)
        runner.close()

    return profile_compute_mode(
        compute_mode,
        opened,
        None,
        find=lambda runner, plan: max_batch_of(runner, plan, max_batch_size=256),
        time_it=lambda runner, plan, largest: profile_of(runner, plan, int(largest), budget_s=5.0),
    )


def test_compute_modes_stand_side_by_side_with_what_they_do_to_the_loss() -> None:
    slow = measured(ComputeMode(), SimRunner())
    quick = measured(ComputeMode(precision="bf16"), SimRunner(step_s=lambda batch: 0.001 + 1e-5 * batch))
    found = compared([quick, slow])
    assert found["reference"] == "fp32"
    assert [compute_mode["arm"] for compute_mode in found["arms"]] == ["bf16", "fp32"]
    assert [compute_mode["outcome"] for compute_mode in found["arms"]] == ["ok", "ok"]
    assert found["arms"][0]["loss_difference"] == {"steps": 10, "first": 0.0, "largest": 0.0}
    assert found["arms"][1]["loss_difference"] is None
    speeds = [compute_mode["throughput"]["samples_per_s"] for compute_mode in found["arms"]]
    assert speeds[0] == pytest.approx(2 * speeds[1])


def test_an_compute_mode_in_which_nothing_fits_says_so_and_the_others_go_on() -> None:
    failed = measured(ComputeMode(precision="fp16"), SimRunner(capacity_bytes=1 << 20))
    assert failed.curve is None
    assert failed.message is not None
    found = compared([failed, measured(ComputeMode(), SimRunner())])
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


def drawn(*compute_modes: ModeProfile) -> str:
    file = io.StringIO()
    print_compute_modes(compared(compute_modes), Console(file=file, width=200, color_system=None))
    return " ".join(file.getvalue().split())


def blown_up(*losses: float) -> FirstLosses:
    return FirstLosses(sweep=replace(sweep(*losses), diverged=True))


@given(st.lists(st.floats(0.5, 1.5), max_size=9), st.booleans())
def test_a_sweep_tells_at_which_step_it_diverged(losses: list[float], is_finite: bool) -> None:
    """A loss that is no number is not told, one that is far above the others is."""
    told = iter([*losses, 1e9 if is_finite and len(losses) >= SETTLED_STEPS else math.nan])
    lrs, ended, diverged = drive(lambda lr: next(told), lowest=1e-3, highest=1e-3, steps=10)
    found = LrSweep(plan=Plan(batch_size=8), lrs=lrs, losses=ended, diverged=diverged, seconds=1.0)
    assert found.diverged_step == len(losses) + 1
    assert replace(found, diverged=False).diverged_step is None


def test_a_loss_that_diverges_is_told_with_its_step_and_the_steps_that_were_compared() -> None:
    fp32, bf16, fp16, tf32 = (
        measured(ComputeMode.parse(name), SimRunner()) for name in ("fp32", "bf16", "fp16", "tf32")
    )
    assert fp32.losses is not None
    assert fp32.losses.sweep is not None
    start, second = fp32.losses.sweep.losses[:2]
    fp16, tf32 = replace(fp16, losses=blown_up(0.99 * start, second)), replace(tf32, losses=blown_up())
    found = compared([fp32, bf16, fp16, tf32])["arms"]
    assert [compute_mode["losses"] for compute_mode in found] == [
        {"steps": 10, "diverged_at": None, "message": None},
        {"steps": 10, "diverged_at": None, "message": None},
        {"steps": 2, "diverged_at": 3, "message": None},
        {"steps": 0, "diverged_at": 1, "message": None},
    ]
    assert found[2]["loss_difference"]["first"] == pytest.approx(-0.01)
    assert found[3]["loss_difference"] is None
    text = drawn(fp32, bf16, fp16, tf32)
    assert "The loss is compared over 10 steps (2 in fp16) from the same weights" in text
    assert "In fp16 the loss diverged at step 3." in text
    assert "Before, the loss in fp16 differs from that of fp32 by 1.0% in the first step and by at most 1.0%" in text
    assert "In tf32 the loss diverged at step 1." in text


def test_a_reference_that_diverges_says_so_and_ends_what_is_compared() -> None:
    fp32, bf16 = (measured(ComputeMode.parse(name), SimRunner()) for name in ("fp32", "bf16"))
    text = drawn(replace(fp32, losses=blown_up(2.3, 2.3)), bf16)
    assert "In fp32 the loss diverged at step 3." in text
    assert "The loss is compared over 2 steps from the same weights" in text
    text = drawn(replace(fp32, losses=blown_up()), bf16)
    assert "In bf16 the loss is not compared: that in fp32 diverged at step 1." in text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoValidResult("a range test needs the loss"), "the task's training_step tells no loss"),
        (TaskError("batch 8 does not fit in memory: no room\nmore"), "batch 8 does not fit in memory: no room"),
    ],
)
def test_losses_that_could_not_be_had_say_why(error: Exception, told: str) -> None:
    class Refusing(SimRunner):
        def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
            raise error

    assert first_losses(Refusing(), 64) == FirstLosses(message=told)
    fp32, bf16 = (measured(ComputeMode.parse(name), SimRunner()) for name in ("fp32", "bf16"))
    without = FirstLosses(message=told)
    assert f"In bf16 the loss is not compared: {told}." in drawn(fp32, replace(bf16, losses=without))
    text = drawn(replace(fp32, losses=without), bf16)
    assert f"In fp32 the loss is not compared: {told}." in text
    assert f"In bf16 the loss is not compared: there is none in fp32: {told}." in text


def test_an_compute_mode_that_nothing_can_be_compared_with_says_why() -> None:
    fp32, bf16 = (measured(ComputeMode.parse(name), SimRunner()) for name in ("fp32", "bf16"))
    small = FirstLosses(sweep=sweep(1.0, batch_size=4))
    told = "In bf16 the loss is not compared: its steps were of batch 4, those in fp32 of batch 8."
    assert told in drawn(fp32, replace(bf16, losses=small))
    zero = FirstLosses(sweep=sweep(1.0, 0.0))
    assert "not compared: that in fp32 is zero in one of them." in drawn(replace(fp32, losses=zero), bf16)
    failed = measured(ComputeMode(), SimRunner(capacity_bytes=1 << 20))
    assert "In bf16 the loss is not compared: there is none in fp32: it failed: a batch" in drawn(failed, bf16)
