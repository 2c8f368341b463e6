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
# crashed     the worker ended for another reason at this size, and ran at smaller ones
Outcome = Literal["ok", "over_limit", "oom", "nonfinite", "crashed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What running a plan showed.

    Attributes:
        plan: what was run.
        outcome: see `Outcome`.
        step_s: wall seconds of each timed optimizer step as training takes it, data loading included; of a probe,
            of one step on a batch that was there.
        compute_s: the same steps on batches already on the device.
        loader_s: seconds to get the samples of one optimizer step from the loader alone, onto the device.
        peak_bytes: highest memory in use over what was in use before the model was built; None where it cannot be read.
        allocated_bytes: the most of it that was in tensors; None where nothing counts them apart.
        others_bytes: what other processes held of the device when the run had ended; None where nobody says.
        alloc_retries: times the allocator had to give memory back and ask again: "fits, but thrashes".
        visits_s: the median step at each moment, where the plan was timed at several; a moment that was slow is in it.
        phases_s: median seconds of the parts of an optimizer step, each waited for: "copy" of the batch to the device,
            "forward", "backward", "optimizer". Their sum may exceed a step, whose parts overlap.
        joules: energy of one optimizer step.
        watts: average power while steps were timed.
        remarks: what makes the times doubtful: one sentence each.
        seconds: what this measurement cost in wall time.
        fresh: it ran in a process that had run no other plan.
        message: the error's own first line, where there was one.
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
        """Median seconds of one optimizer step, loading included. Only where `step_s` is not empty."""
        return median(self.step_s)

    @property
    def undisturbed_step_s(self) -> float:
        """Median seconds of one optimizer step when little else went on. Only where `step_s` is not empty.

        What disturbs a machine makes it slower and never faster, so that of several moments the fastest says most of
        the plan itself; from eight on the second, as one may have been lucky. Measured (an LSTM on one core of a shared
        AMD EPYC, eight visits of 0.1 s in a restless minute): the medians of visits to one size differed by up to 38 %,
        their least was within 3 % of what a quiet minute gave, for all of twelve sizes.
        """
        return sorted(self.visits_s)[len(self.visits_s) // 8] if self.visits_s else self.median_step_s

    @property
    def step_beside_parts_s(self) -> float:
        """Median seconds of one optimizer step at the moment at which its parts were timed, which was the first."""
        return self.visits_s[0] if self.visits_s else self.median_step_s

    @property
    def samples_per_s(self) -> float:
        """Samples per second at the median step. Only where `step_s` is not empty."""
        return self.plan.effective_batch_size / self.median_step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSweep:
    """One learning-rate range test: the rate rises geometrically, one optimizer step at each.

    Attributes:
        plan: the steps that were taken.
        lrs: the learning rates, rising.
        losses: the training loss at each rate before its step was taken; cut where the loss blew up.
        diverged: the sweep ended early because the loss was not finite or far above its lowest.
        seconds: what the test cost.
        without_schedule: the task has a schedule, which was left out, as the test sets the rate at each step.
    """

    plan: Plan
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool
    seconds: float
    without_schedule: bool = False

    @property
    def diverged_step(self) -> int | None:
        """The step, counted from 1, at which the loss blew up; None where it did not.

        A loss that is far above the lowest is the last one told; one that is not finite is not told.
        """
        if not self.diverged:
            return None
        return len(self.losses) + (not blew_up(self.losses))


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What an optimizer step takes of a device's energy.

    Attributes:
        joules: of one step.
        watts: average power while steps were repeated.
        seconds: what measuring it cost in wall time.
    """

    joules: float
    watts: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model asks of a device.

    Attributes:
        parameters: numbers that are trained.
        flops_per_sample: operations of the matrix products and convolutions of one forward and backward pass, a
            multiplication and an addition counting two; None where they could not be counted.
    """

    parameters: int
    flops_per_sample: float | None
