"""How far a search for the largest batch goes that is to leave the time to what comes after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.measurement import Measurement

# Steps that it takes to try a size and to have it as the answer: two to explore and four of a verdict, with an
# evaluation (a third of a step as a rule) and a short batch each. Assumed.
_STEPS_A_SIZE = 8
_WORTH_A_PROBE = 1.5  # times the largest so far: for less no time is taken once there is little of it. Assumed.
# A size whose steps take no more than this share of the time is tried whatever it is good for. Assumed.
_CHEAP_SHARE = 0.01
# Times the knee: the race reaches to four (`space_for`), and one step at each of two sizes says no more than roughly
# where it is. Assumed.
_KNEES = 8
_FAR_APART = 2  # times: sizes whose step times tell a slope. Assumed.


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a search may take, by the steps that its probes have timed.

    Attributes:
        left_s: seconds that it has left by now; a size whose probe would outlast them is left out. The first probe's
            start-up counts for little: an answer takes a second one in any case.
        worth_s: seconds that a step may take for its size to be of use.
        time_s: seconds that there are for everything.
    """

    left_s: Callable[[], float]
    worth_s: float
    time_s: float

    def most(self, probes: Sequence[Measurement]) -> float:
        """The largest size to try after these probes; infinite where none of them timed a step.

        A step is taken to grow in proportion to the batch from the largest timed one on, which is the most that it
        does where a part of it is the same for all sizes.
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
    """The size with 80 % of the highest samples/s, on the line through two sizes; infinite where they tell none."""
    size, step_s = steps[-1]
    below = next(((other, seconds) for other, seconds in reversed(steps) if _FAR_APART * other <= size), None)
    if below is None or step_s <= below[1]:
        return float("inf")
    slope = (step_s - below[1]) / (size - below[0])
    fixed = step_s - slope * size
    return max(4 * fixed / slope, below[0])
