"""What memory should hold during a race: measured before it, and lowered when a training runs out of memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.plan import Plan, Precision
from .trials import StepTimes


@dataclass(slots=True, kw_only=True)
class MemoryLimits:
    """The most samples in one pass, and the plans that stay within them.

    Attributes:
        times: the throughput profile, which gives the fastest plan of an effective batch size.
        precision: of all plans.
        max_batch: the most samples in one forward and backward pass.
        max_micro_batch: the same when gradients are kept from one pass to the next, for steps that accumulate; 0 if
            none may.
    """

    times: StepTimes
    precision: Precision
    max_batch: int
    max_micro_batch: int

    def plan_for(self, effective_batch: int) -> Plan | None:
        """The fastest plan of an effective batch size; None if none fits."""
        return self.times.plan_for(effective_batch, self.max_batch, self.precision, self.max_micro_batch)

    def holds(self, plan: Plan) -> bool:
        """Whether a plan should fit."""
        return plan.batch_size <= (self.max_batch if plan.accumulation_steps == 1 else self.max_micro_batch)

    def as_trained(self, own: Plan, *, accumulates: bool) -> Plan:
        """What the user trains with, changed to fit: accumulated or as one batch. Unchanged if it fits in neither way.

        If the task may not accumulate, nothing is split and nothing is known about micro-batches.
        """
        if not accumulates or self.holds(own):
            return own
        return self.plan_for(own.effective_batch_size) or own

    def lower_below(self, plan: Plan) -> None:
        """Remember that a plan ran out of memory. A step that does not accumulate may still fit where one that does
        failed.
        """
        self.max_micro_batch = min(self.max_micro_batch, plan.batch_size - 1)
        if plan.accumulation_steps == 1:
            self.max_batch = min(self.max_batch, plan.batch_size - 1)
