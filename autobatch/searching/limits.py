"""What memory is thought to hold, as a race goes on: measured before it, lowered by what runs out in training."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.plan import Plan, Precision
from .trials import StepTimes


@dataclass(slots=True, kw_only=True)
class MemoryLimits:
    """The most samples at once, and the plans that keep within them.

    Attributes:
        times: the throughput profile, by which the fastest plan of an effective batch size is chosen.
        precision: of every plan.
        max_batch: samples of one forward and backward pass.
        max_micro_batch: the same beside gradients that are kept, for steps that accumulate; 0 where none may.
    """

    times: StepTimes
    precision: Precision
    max_batch: int
    max_micro_batch: int

    def plan_for(self, effective_batch: int) -> Plan | None:
        """The fastest plan of an effective batch size; None where none fits."""
        return self.times.plan_for(effective_batch, self.max_batch, self.precision, self.max_micro_batch)

    def holds(self, plan: Plan) -> bool:
        """Whether a plan is thought to fit."""
        return plan.batch_size <= (self.max_batch if plan.accumulation_steps == 1 else self.max_micro_batch)

    def as_trained(self, own: Plan, *, accumulates: bool) -> Plan:
        """What the user trains with, as it fits: accumulated, or as one batch; as it is where it fits in neither way.

        Nothing is split, and nothing known of micro-batches, where a task may not accumulate.
        """
        if not accumulates or self.holds(own):
            return own
        return self.plan_for(own.effective_batch_size) or own

    def lower_below(self, plan: Plan) -> None:
        """Remember that a plan ran out of memory: what holds no step that accumulates may hold one that does not."""
        self.max_micro_batch = min(self.max_micro_batch, plan.batch_size - 1)
        if plan.accumulation_steps == 1:
            self.max_batch = min(self.max_batch, plan.batch_size - 1)
