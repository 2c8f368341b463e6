"""How long a call may take before it is taken to hang: generous, and by what steps of the task have taken so far."""

from __future__ import annotations

from ...core.measurement import Measurement
from ...core.plan import Plan
from ...core.segment import HANG_FACTOR, HANG_LEAST_S

# Assumed: no few steps, their compilation and the reading of their samples take longer.
PROBE_TIMEOUT_S = 600.0
_SOAK_STEPS_A_TIMEOUT = 100  # assumed: so many steps on real batches may take as long again, whatever came before
_PROBE_STEPS = 2  # at least


def limit(own_s: float | None, left_s: float | None) -> tuple[float | None, bool]:
    """Seconds that a call has, None for no limit; and whether to outlast them is to hang.

    Args:
        own_s: the call's own limit.
        left_s: of the time for everything, which to outlast is no fault of the call.
    """
    if own_s is not None and (left_s is None or own_s <= left_s):
        return own_s, True
    return left_s, False


class Patience:
    """Seconds after which a call hangs.

    Args:
        probe_timeout_s: for a probe, whatever came before, and for a call of which nothing is known.
    """

    def __init__(self, probe_timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self.probe_timeout_s = probe_timeout_s
        self._probe: tuple[int, float] | None = None  # samples of the last one, and its seconds
        self._step: tuple[int, float] | None = None  # samples of the last one that was timed, and its seconds

    def learn_probe(self, plan: Plan, seconds: float) -> None:
        """What a probe took: its steps, their compilation, the evaluation."""
        self._probe = plan.effective_batch_size, seconds

    def learn_time(self, measured: Measurement) -> None:
        """What a step was found to take."""
        if measured.step_s:
            self._step = measured.plan.effective_batch_size, measured.median_step_s

    def probe_s(self, plan: Plan, soak_steps: int) -> float:
        """For a probe: more than a loss over all pairs could need, by the last one.

        A probe has two steps at least, so each further one has more time than it needs.
        """
        size, seconds = self._probe or (1, 0.0)
        steps_s = _PROBE_STEPS * seconds * (plan.effective_batch_size / size) ** 2
        return self.probe_timeout_s * (1 + soak_steps / _SOAK_STEPS_A_TIMEOUT) + steps_s * (1 + soak_steps)

    def steps_s(self, plan: Plan, steps: int, budget_s: float = 0.0) -> float:
        """For a call that takes so many steps, or as many as take `budget_s`.

        A probe before it says what compiling takes, and a loss over all pairs may take the square of what it took of
        fewer samples.
        """
        if self._probe is None and self._step is None:
            return self.probe_timeout_s + HANG_FACTOR * budget_s
        size, probe_s = self._probe or (1, 0.0)
        probe_s *= max(1.0, plan.effective_batch_size / size) ** 2
        size, step_s = self._step or (plan.effective_batch_size, probe_s / _PROBE_STEPS)
        step_s *= max(1.0, plan.effective_batch_size / size) ** 2
        return max(HANG_LEAST_S, HANG_FACTOR * (budget_s + probe_s + steps * step_s))
