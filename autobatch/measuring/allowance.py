"""How far to look for the largest batch, so that time is left for what comes after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.measurement import Measurement

# The number of steps to try a size and to make it the answer: two to explore, four of a final probe, and an evaluation
# (usually a third of a step) and a short batch each. Assumed.
_STEPS_A_SIZE = 8
_WORTH_A_PROBE = 1.5  # a size must be this many times the largest so far to be worth scarce time. Assumed.
# A size whose steps take at most this share of the time is always tried. Assumed.
_CHEAP_SHARE = 0.01
# The most times the knee to try. The race goes up to four times (`space_for`), and one step at each of two sizes only
# roughly shows where the knee is. Assumed.
_KNEES = 8
_FAR_APART = 2  # the ratio of two sizes whose step times show a slope. Assumed.


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The time that finding the largest batch may take, judged by the steps that its probes have timed.

    Attributes:
        left_s: seconds that are left for it. A size whose probe would take longer is not tried. The start-up in the
            first probe counts little: every answer takes a second probe.
        worth_s: the longest step that makes a size useful, in seconds.
        time_s: seconds for everything.
    """

    left_s: Callable[[], float]
    worth_s: float
    time_s: float

    def most(self, probes: Sequence[Measurement]) -> float:
        """The largest size to try after these probes; infinite if none of them timed a step.

        Above the largest timed size, a step is assumed to grow in proportion to the batch. That is the most it can grow
        if a part of it takes the same time at all sizes.
        """
        timed = sorted(((p.plan.batch_size, p.step_s[-1], p.seconds) for p in probes if p.step_s), key=lambda t: t[0])
        if not timed or not timed[-1][1]:
            return float("inf")
        size, step_s, probe_s = timed[-1]

        def reaches(seconds: float) -> float:
            return size * (1 + (seconds - probe_s) / (_STEPS_A_SIZE * step_s))

        cheap_s = _CHEAP_SHARE * self.time_s
        left_s = self.left_s() if len(probes) > 1 else max(self.left_s(), probe_s + cheap_s)
        cheap = size * cheap_s / (_STEPS_A_SIZE * step_s)
        useful = min(size * self.worth_s / step_s, _KNEES * _knee([(size, step_s) for size, step_s, _ in timed]))
        most = min(reaches(left_s), max(useful, cheap))
        return most if most >= _WORTH_A_PROBE * size else size


def _knee(steps: Sequence[tuple[int, float]]) -> float:
    """The size with 80 % of the highest samples/s, on the line through two sizes; infinite if they show none."""
    size, step_s = steps[-1]
    below = next(((other, seconds) for other, seconds in reversed(steps) if _FAR_APART * other <= size), None)
    if below is None or step_s <= below[1]:
        return float("inf")
    slope = (step_s - below[1]) / (size - below[0])
    fixed = step_s - slope * size
    return max(4 * fixed / slope, below[0])
