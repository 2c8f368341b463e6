"""One task computed in several ways, side by side: how large a batch fits, how fast it is, what it does to the loss."""

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

# Training steps whose losses are compared, and the most samples in a batch of them. Assumed: enough for a difference to
# grow where it grows, and few enough to cost nothing.
_LOSS_STEPS, _LOSS_BATCH = 10, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLosses:
    """Losses of the first training steps, from the weights and batches of seed 0.

    Attributes:
        sweep: the steps, all at one rate; None where none was taken.
        message: why there is none.
    """

    sweep: LrSweep | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossDifference:
    """How far losses are from those of another way of computing, relative to them.

    Attributes:
        steps: training steps that both took from the same weights on the same batches; fewer than were asked for where
            the loss of one of them diverged.
        first: of the first loss: the same weights, computed otherwise.
        largest: the largest of all, whatever its sign: what the weights have become is different too.
    """

    steps: int
    first: float
    largest: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"steps": self.steps, "first": self.first, "largest": self.largest}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeProfile:
    """What one way of computing showed.

    Attributes:
        compute_mode: which.
        max_batch: the largest batch; None where it failed.
        curve: its throughput; None where it failed.
        losses: of the first training steps; None where it failed.
        error: why it failed; None where it did not.
        seconds: that all of it took.
    """

    compute_mode: ComputeMode
    max_batch: MaxBatch | None = None
    curve: ThroughputCurve | None = None
    losses: FirstLosses | None = None
    error: AutobatchError | None = None
    seconds: float = 0.0

    @property
    def message(self) -> str | None:
        """Why it failed; None where it did not."""
        return None if self.error is None else str(self.error)

    def to_json(self, reference: ModeProfile) -> dict[str, Any]:
        """Plain JSON values; the difference of the losses is from those of `reference`."""
        base = None if reference is self else reference.losses or FirstLosses(message=f"it failed: {reference.message}")
        return {
            "arm": self.compute_mode.name,
            "outcome": "ok" if self.message is None else "failed",
            "message": self.message,
            "max_batch": self.max_batch.to_json() if self.max_batch is not None else None,
            "throughput": self.curve.to_json() if self.curve is not None else None,
            **told_of_losses(self.losses, base, reference.compute_mode),
            "seconds": self.seconds,
        }


# Opens a runner of one compute_mode: the runner, and the plan whose batch size is looked for.
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
    """One compute mode, from its largest batch to its losses; what goes wrong is told in the answer.

    Args:
        compute_mode: that the runners compute in.
        open_for_memory: opens the runner that the largest batch is found with.
        open_for_time: opens another one to be timed, where that of the memory search is slowed down by counting; None
            to go on with the first.
        find: finds the largest batch.
        time_it: makes the throughput curve up to it.
        also: is called with the runner that was timed, before it is closed.
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
    """Losses of the first training steps at the baseline's rate, from the weights and batches of seed 0."""
    baseline = runner.facts().baseline
    plan = replace(baseline.plan, batch_size=min(_LOSS_BATCH, max_batch), accumulation_steps=1)
    try:
        sweep = runner.sweep_lr(plan, lowest=baseline.lr, highest=baseline.lr, steps=_LOSS_STEPS, seed=0)
    except NoValidResult:
        return FirstLosses(message="the task's training_step tells no loss")
    except TaskError as error:
        return FirstLosses(message=first_line(error))
    return FirstLosses(sweep=sweep)


def told_of_losses(found: FirstLosses | None, reference: FirstLosses | None, against: ComputeMode) -> dict[str, Any]:
    """What a report says of the losses of an compute_mode: plain JSON values.

    Args:
        found: of the compute mode; None where it failed.
        reference: what they are compared with; None for the reference itself.
        against: the compute mode of the reference.

    Returns:
        `losses`, None where the compute mode failed: how many `steps` have a loss, at which step it `diverged_at`, and
        a `message` where they are not compared. `loss_difference`: as `LossDifference.to_json` gives it, or None.
    """
    if found is None:
        return {"losses": None, "loss_difference": None}
    difference = None if reference is None else loss_difference(found.sweep, reference.sweep)
    message = found.message
    if message is None and reference is not None and difference is None:
        message = _why_not_compared(found.sweep, reference, against.name)
    losses = {
        "steps": 0 if found.sweep is None else len(found.sweep.losses),
        "diverged_at": None if found.sweep is None else found.sweep.diverged_step,
        "message": message,
    }
    return {"losses": losses, "loss_difference": difference and difference.to_json()}


def _why_not_compared(sweep: LrSweep | None, reference: FirstLosses, against: str) -> str | None:
    """One clause; None where it is that the loss diverged in the first step, which is told of itself."""
    if sweep is None or not sweep.losses:
        return None
    base = reference.sweep
    if base is None:
        return f"there is none in {against}: {reference.message}"
    if base.plan.batch_size != sweep.plan.batch_size:
        return f"its steps were of batch {sweep.plan.batch_size}, those in {against} of batch {base.plan.batch_size}"
    return f"that in {against} is zero in one of them" if base.losses else f"that in {against} diverged at step 1"


def loss_difference(found: LrSweep | None, reference: LrSweep | None) -> LossDifference | None:
    """How far losses are from those of a reference, over the steps that both have.

    None where one of them has none or is zero, or they are of other batches.
    """
    if found is None or reference is None or found.plan.batch_size != reference.plan.batch_size:
        return None
    pairs = list(zip(found.losses, reference.losses, strict=False))  # a loss that diverged ends its sequence
    if not pairs or any(base == 0 for _, base in pairs):
        return None
    relative = [(loss - base) / abs(base) for loss, base in pairs]
    return LossDifference(steps=len(pairs), first=relative[0], largest=max(relative, key=abs))


def compared(profiles: Sequence[ModeProfile]) -> dict[str, Any]:
    """All of them as plain JSON values, their losses against those of fp32, or of the first where fp32 is not there."""
    reference = next((found for found in profiles if found.compute_mode == ComputeMode()), profiles[0])
    return {"reference": reference.compute_mode.name, "arms": [found.to_json(reference) for found in profiles]}
