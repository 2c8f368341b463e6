"""How long a call may take before it counts as hanging: generous, and based on earlier steps of the task."""

from __future__ import annotations

from ...core.measurement import Measurement
from ...core.plan import Plan
from ...core.segment import HANG_FACTOR, HANG_LEAST_S

# Assumed: a few steps, with their compilation and the reading of their samples, never take longer.
PROBE_TIMEOUT_S = 600.0
_SOAK_STEPS_A_TIMEOUT = 100  # assumed: this many steps on real batches may take as long again
_PROBE_STEPS = 2  # at least


def limit(own_s: float | None, left_s: float | None) -> tuple[float | None, bool]:
    """Seconds that a call has, None for no limit; and whether a call that exceeds them hangs.

    Args:
        own_s: the call's own limit.
        left_s: what is left of the whole time. A call that exceeds it does not hang.
    """
    if own_s is not None and (left_s is None or own_s <= left_s):
        return own_s, True
    return left_s, False


class Patience:
    """The time limits of calls, learned from earlier ones.

    Args:
        probe_timeout_s: the least limit of a probe, and that of a call about which nothing is known.
    """

    def __init__(self, probe_timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self.probe_timeout_s = probe_timeout_s
        self._probe: tuple[int, float] | None = None  # samples of the last probe, and its seconds
        self._step: tuple[int, float] | None = None  # samples of the last timed step, and its seconds

    def learn_probe(self, plan: Plan, seconds: float) -> None:
        """Learn from the duration of a probe: its steps, their compilation, the evaluation."""
        self._probe = plan.effective_batch_size, seconds

    def learn_time(self, measured: Measurement) -> None:
        """Learn from the time of a step."""
        if measured.step_s:
            self._step = measured.plan.effective_batch_size, measured.median_step_s

    def probe_s(self, plan: Plan, soak_steps: int) -> float:
        """The limit of a probe: more than a loss over all pairs could need, judged by the last probe.

        A probe has at least two steps, so it has more time than it needs for each further one.
        """
        size, seconds = self._probe or (1, 0.0)
        steps_s = _PROBE_STEPS * seconds * (plan.effective_batch_size / size) ** 2
        return self.probe_timeout_s * (1 + soak_steps / _SOAK_STEPS_A_TIMEOUT) + steps_s * (1 + soak_steps)

    def steps_s(self, plan: Plan, steps: int, budget_s: float = 0.0) -> float:
        """The limit of a call that takes this many steps, or as many as take `budget_s`.

        An earlier probe shows how long compiling takes. A loss over all pairs may grow with the square of the number of
        samples.
        """
        if self._probe is None and self._step is None:
            return self.probe_timeout_s + HANG_FACTOR * budget_s
        size, probe_s = self._probe or (1, 0.0)
        probe_s *= max(1.0, plan.effective_batch_size / size) ** 2
        size, step_s = self._step or (plan.effective_batch_size, probe_s / _PROBE_STEPS)
        step_s *= max(1.0, plan.effective_batch_size / size) ** 2
        return max(HANG_LEAST_S, HANG_FACTOR * (budget_s + probe_s + steps * step_s))
