"""One task in several compute modes, side by side: how large a batch fits, how fast it is, how its loss differs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from ..core.compute_mode import ComputeMode
from ..core.measurement import LrSweep
from ..core.plan import Plan
from ..core.runner import Runner
from ..errors import AutobatchError, NoValidResult, TaskError, first_line
from .memory import MaxBatch
from .throughput import ThroughputCurve

# The number of training steps whose losses are compared, and the most samples in a batch of them. Assumed: enough for a
# difference that grows to show, and few enough to cost nothing.
_LOSS_STEPS, _LOSS_BATCH = 10, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLosses:
    """Losses of the first training steps, from the weights and batches of seed 0.

    Attributes:
        sweep: the steps, all at one learning rate; None if there were none.
        message: why there were none.
    """

    sweep: LrSweep | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossDifference:
    """How far losses differ from those of another compute mode, relative to them.

    Attributes:
        steps: training steps that both took, from the same weights on the same batches; fewer if one of the losses
            diverged.
        first: the difference of the first loss, which has the same weights in both.
        largest: the largest difference in absolute value. It includes that of the trained weights.
    """

    steps: int
    first: float
    largest: float

    def to_json(self) -> dict[str, Any]:
        """The difference as plain JSON values."""
        return {"steps": self.steps, "first": self.first, "largest": self.largest}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeProfile:
    """The results of one compute mode.

    Attributes:
        compute_mode: the compute mode.
        max_batch: the largest batch; None if it failed.
        curve: its throughput; None if it failed.
        losses: of the first training steps; None if it failed.
        error: why it failed; None if it did not.
        seconds: the time of all of it.
    """

    compute_mode: ComputeMode
    max_batch: MaxBatch | None = None
    curve: ThroughputCurve | None = None
    losses: FirstLosses | None = None
    error: AutobatchError | None = None
    seconds: float = 0.0

    @property
    def message(self) -> str | None:
        """Why it failed; None if it did not."""
        return None if self.error is None else str(self.error)

    def to_json(self, reference: ModeProfile) -> dict[str, Any]:
        """The results as plain JSON values. The loss difference is from `reference`."""
        base = None if reference is self else reference.losses or FirstLosses(message=f"it failed: {reference.message}")
        return {
            "arm": self.compute_mode.name,
            "outcome": "ok" if self.message is None else "failed",
            "message": self.message,
            "max_batch": self.max_batch.to_json() if self.max_batch is not None else None,
            "throughput": self.curve.to_json() if self.curve is not None else None,
            **losses_to_json(self.losses, base, reference.compute_mode),
            "seconds": self.seconds,
        }


# Opens a runner in one compute mode: the runner, and the plan whose largest batch size is wanted.
Open = Callable[[], AbstractContextManager[tuple[Runner, Plan]]]


def profile_compute_mode(
    compute_mode: ComputeMode,
    open_for_memory: Open,
    open_for_time: Open | None,
    *,
    find: Callable[[Runner, Plan], MaxBatch],
    time_it: Callable[[Runner, Plan, MaxBatch], ThroughputCurve],
    also: Callable[[Runner], None] = lambda runner: None,
) -> ModeProfile:
    """One compute mode, from its largest batch to its losses. A failure becomes part of the result.

    Args:
        compute_mode: the compute mode of the runners.
        open_for_memory: opens the runner that finds the largest batch.
        open_for_time: opens another runner for timing, if counting memory slows the first one down; None to go on with
            the first.
        find: finds the largest batch.
        time_it: makes the throughput curve up to it.
        also: called with the runner that was timed, before it is closed.
    """
    began = time.monotonic()
    largest: MaxBatch | None = None
    curve: ThroughputCurve | None = None
    losses: FirstLosses | None = None
    failure: AutobatchError | None = None
    try:
        with open_for_memory() as (runner, plan):
            largest = find(runner, plan)
            if open_for_time is None:
                curve, losses = time_it(runner, plan, largest), first_losses(runner, int(largest))
                also(runner)
        if open_for_time is not None:
            with open_for_time() as (runner, plan):
                curve, losses = time_it(runner, plan, largest), first_losses(runner, int(largest))
                also(runner)
    except AutobatchError as error:
        largest = curve = losses = None
        failure = error
    return ModeProfile(
        compute_mode=compute_mode,
        max_batch=largest,
        curve=curve,
        losses=losses,
        error=failure,
        seconds=time.monotonic() - began,
    )


def first_losses(runner: Runner, max_batch: int) -> FirstLosses:
    """Losses of the first training steps at the baseline's learning rate, from the weights and batches of seed 0."""
    baseline = runner.facts().baseline
    plan = replace(baseline.plan, batch_size=min(_LOSS_BATCH, max_batch), accumulation_steps=1)
    try:
        sweep = runner.sweep_lr(plan, lowest=baseline.lr, highest=baseline.lr, steps=_LOSS_STEPS, seed=0)
    except NoValidResult:
        return FirstLosses(message="the task's training_step tells no loss")
    except TaskError as error:
        return FirstLosses(message=first_line(error))
    return FirstLosses(sweep=sweep)


def losses_to_json(result: FirstLosses | None, reference: FirstLosses | None, against: ComputeMode) -> dict[str, Any]:
    """What a report says about the losses of a compute mode, as plain JSON values.

    Args:
        result: the losses of the compute mode; None if it failed.
        reference: the losses to compare with; None for the reference itself.
        against: the compute mode of the reference.

    Returns:
        `losses`, None if the compute mode failed: how many `steps` have a loss, the step at which it `diverged_at`, and
        a `message` if the losses are not compared. `loss_difference`: see `LossDifference.to_json`, or None.
    """
    if result is None:
        return {"losses": None, "loss_difference": None}
    difference = None if reference is None else loss_difference(result.sweep, reference.sweep)
    message = result.message
    if message is None and reference is not None and difference is None:
        message = _why_not_compared(result.sweep, reference, against.name)
    losses = {
        "steps": 0 if result.sweep is None else len(result.sweep.losses),
        "diverged_at": None if result.sweep is None else result.sweep.diverged_step,
        "message": message,
    }
    return {"losses": losses, "loss_difference": difference and difference.to_json()}


def _why_not_compared(sweep: LrSweep | None, reference: FirstLosses, against: str) -> str | None:
    """Why the losses are not compared, as a clause; None if the loss diverged at once, which is reported anyway."""
    if sweep is None or not sweep.losses:
        return None
    base = reference.sweep
    if base is None:
        return f"there is none in {against}: {reference.message}"
    if base.plan.batch_size != sweep.plan.batch_size:
        return f"its steps were of batch {sweep.plan.batch_size}, those in {against} of batch {base.plan.batch_size}"
    return f"that in {against} is zero in one of them" if base.losses else f"that in {against} diverged at step 1"


def loss_difference(sweep: LrSweep | None, reference: LrSweep | None) -> LossDifference | None:
    """How far losses differ from those of a reference, over the steps that both have.

    None if one of them has none or has a zero, or if their batches differ.
    """
    if sweep is None or reference is None or sweep.plan.batch_size != reference.plan.batch_size:
        return None
    pairs = list(zip(sweep.losses, reference.losses, strict=False))  # a sequence ends where its loss diverged
    if not pairs or any(base == 0 for _, base in pairs):
        return None
    relative = [(loss - base) / abs(base) for loss, base in pairs]
    return LossDifference(steps=len(pairs), first=relative[0], largest=max(relative, key=abs))


def compared(profiles: Sequence[ModeProfile]) -> dict[str, Any]:
    """All profiles as plain JSON values. Losses are compared with those of fp32 or, without it, of the first."""
    reference = next((profile for profile in profiles if profile.compute_mode == ComputeMode()), profiles[0])
    return {"reference": reference.compute_mode.name, "arms": [profile.to_json(reference) for profile in profiles]}
