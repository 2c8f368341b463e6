"""What running a plan showed: its outcome, times, memory and energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from .lr_sweep import blew_up
from .plan import Plan

# ok          ran, and its peak is within the budget
# over_limit  ran, but its peak is above the budget (limit less headroom): measured, and kept as evidence
# oom         the allocator refused, or the kernel killed the worker for its memory
# nonfinite   ran, but the loss was not a number
# crashed     the worker ended at this size for another reason, and ran at smaller ones
Outcome = Literal["ok", "over_limit", "oom", "nonfinite", "crashed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What running a plan showed.

    Attributes:
        plan: the plan that was run.
        outcome: see `Outcome`.
        step_s: wall seconds of each timed optimizer step as in training, with data loading; for a probe, of one step on
            a batch that was already loaded.
        compute_s: the same for steps on batches that are already on the device.
        loader_s: seconds in which the loader alone brings the samples of one optimizer step onto the device.
        peak_bytes: the highest memory in use, less what was in use before the model was built; None if it cannot be
            read.
        allocated_bytes: the highest part of it in tensors; None if nothing counts them apart.
        others_bytes: the device memory of other processes at the end of the run; None if unknown.
        alloc_retries: how often the allocator had to free memory and try again ("fits, but thrashes").
        visits_s: the median step of each visit, if the plan was timed at several moments; slow moments included.
        phases_s: median seconds of the parts of an optimizer step, each synchronised: "copy" of the batch to the
            device, "forward", "backward", "optimizer". Their sum may exceed a step, whose parts overlap.
        joules: energy of one optimizer step.
        watts: average power while steps were timed.
        remarks: what makes the times doubtful: one sentence each.
        seconds: the wall time of this measurement.
        fresh: whether its process had run no other plan.
        message: the first line of the error, if there was one.
    """

    plan: Plan
    outcome: Outcome
    step_s: tuple[float, ...] = ()
    compute_s: tuple[float, ...] = ()
    loader_s: tuple[float, ...] = ()
    visits_s: tuple[float, ...] = ()
    peak_bytes: int | None = None
    allocated_bytes: int | None = None
    others_bytes: int | None = None
    alloc_retries: int | None = None
    phases_s: Mapping[str, float] = field(default_factory=dict)
    joules: float | None = None
    watts: float | None = None
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0
    fresh: bool = False
    message: str | None = None

    @property
    def median_step_s(self) -> float:
        """Median seconds of one optimizer step, with data loading. `step_s` must not be empty."""
        return median(self.step_s)

    @property
    def undisturbed_step_s(self) -> float:
        """Median seconds of one optimizer step while little else ran on the machine. `step_s` must not be empty.

        A disturbance makes steps slower and never faster. So of several visits the fastest says most about the plan
        itself; of eight or more, the second fastest, because one may have been lucky. Measured (an LSTM on one core of
        a shared AMD EPYC, eight visits of 0.1 s in a restless minute): the medians of visits to one size differed by up
        to 38 %; their minimum was within 3 % of the value in a quiet minute, for all of twelve sizes.
        """
        return sorted(self.visits_s)[len(self.visits_s) // 8] if self.visits_s else self.median_step_s

    @property
    def step_beside_parts_s(self) -> float:
        """Median seconds of one optimizer step in the first visit, in which its parts were timed too."""
        return self.visits_s[0] if self.visits_s else self.median_step_s

    @property
    def samples_per_s(self) -> float:
        """Samples per second at the median step. `step_s` must not be empty."""
        return self.plan.effective_batch_size / self.median_step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSweep:
    """One learning-rate range test: the rate rises geometrically, one optimizer step at each.

    Attributes:
        plan: the plan of its steps.
        lrs: the learning rates, rising.
        losses: the training loss at each rate before its step was taken, up to the step where the loss blew up.
        diverged: whether the sweep ended early because the loss was not finite or far above its lowest.
        seconds: the wall time of the test.
        without_schedule: whether the task's schedule was left out, as the test sets the rate at each step.
    """

    plan: Plan
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool
    seconds: float
    without_schedule: bool = False

    @property
    def diverged_step(self) -> int | None:
        """The step, counted from 1, at which the loss blew up; None if it did not.

        `losses` ends with a loss that is far above the lowest, but leaves out one that is not finite.
        """
        if not self.diverged:
            return None
        return len(self.losses) + (not blew_up(self.losses))


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """The energy that an optimizer step takes from a device.

    Attributes:
        joules: of one step.
        watts: average power while steps were repeated.
        seconds: the wall time of the measurement.
    """

    joules: float
    watts: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model demands of a device.

    Attributes:
        parameters: how many numbers are trained.
        flops_per_sample: operations of the matrix products and convolutions in one forward and backward pass, where a
            multiplication and an addition count as two; None if they could not be counted.
    """

    parameters: int
    flops_per_sample: float | None
