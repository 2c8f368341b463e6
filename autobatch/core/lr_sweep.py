"""How a learning-rate range test proceeds and when it ends, the same for every runner. Only numbers: nothing is
trained.

It ends at a step without a finite loss, or where the smoothed loss has blown up. One batch says little: the raw loss of
a flat curve with the noise of a squared error (the mean of 4 to 16 draws of chi-squared) exceeds four times its lowest
within 100 steps nearly always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

SMOOTHING = 0.9  # assumed: the weight of the past; the average spans about ten steps, a tenth of a sweep of 100

# A loss has blown up when it is this many times its lowest, both smoothed. torch-lr-finder compares the same and stops
# at 5 (diverge_th). This figure is assumed.
BLOW_UP = 4.0

# The loss must also have risen by this many median changes between two steps. Noise makes such changes in any unit,
# while a multiple says nothing of a loss near zero or below. Simulated with 1,000 flat losses of 100 steps each. Of
# squared errors 4 % "blow up" at batch 1, .4 % at 2 and none from 4 up; of log-normal ones (sigma 1.5) 38, 16, 8 and 2
# % at batch 1, 2, 4 and 8. Without this condition they are 40, 6, .7 and 0 %, and 77, 49, 23 and 5 %. A loss at batch 4
# that jumps to thirty times its level is noticed after 0 to 5 steps; with 6 in place of 5, more jumps to ten times are
# missed.
CLEAR_RISE = 5.0

LOOK_BACK_STEPS = round(1 / (1 - SMOOTHING))  # how many steps the smoothed loss averages over
SETTLED_STEPS = 5  # an average over fewer is too noisy to compare with: with 3, twice as many blow up at batch 1

_LEAST_CHANGE = 1e-3  # assumed: a smaller change, as a share of the first losses, is rounding


def smooth(losses: Sequence[float]) -> tuple[float, ...]:
    """The exponential moving average of `losses`, corrected for its start at zero.

    The average after step i is divided by 1 - SMOOTHING ** (i + 1), as Adam does for its moments (Kingma and Ba 2015).
    """
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**step))
    return tuple(smoothed)


def start_of(losses: Sequence[float]) -> float:
    """The level at the start: the median of the first tenth of the losses, and of at least three. There must be one."""
    return median(losses[: max(3, len(losses) // 10)])


def noise_of(losses: Sequence[float]) -> float:
    """The noise: the median change of the loss from one step to the next, and never less than rounding.

    There must be two losses.
    """
    change = median(abs(after - before) for before, after in pairwise(losses))
    return max(change, _LEAST_CHANGE * abs(start_of(losses)))


def blew_up(losses: Sequence[float]) -> bool:
    """Whether the smoothed loss at the last of these steps is far above its lowest. All losses are finite.

    It is if it rose by `BLOW_UP` - 1 times the lowest and by `CLEAR_RISE` times the noise. The noise is that before the
    last averaged steps, because a loss that has blown up changes by more.
    """
    if len(losses) <= SETTLED_STEPS:
        return False
    *before, now = smooth(losses)[SETTLED_STEPS - 1 :]
    lowest = min(before)
    rise = now - lowest
    if rise <= (BLOW_UP - 1) * abs(lowest):
        return False
    return rise > CLEAR_RISE * noise_of(losses[: max(LOOK_BACK_STEPS, len(losses) - LOOK_BACK_STEPS)])


def drive(
    loss_at: Callable[[float], float | None], *, lowest: float, highest: float, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Take the steps of a range test: the rates, rising geometrically, the loss at each, and whether it ended early.

    Args:
        loss_at: takes one optimizer step at a rate. Returns the loss before the step, or None if training gave up. A
            loss that is not finite ends the test and is left out of the losses; one that has blown up ends it and is
            included.
        lowest, highest: the rates of the first and the last step.
        steps: the number of steps, at least two.
    """
    ratio = (highest / lowest) ** (1 / (steps - 1))
    lrs: list[float] = []
    losses: list[float] = []
    for index in range(steps):
        lr = lowest * ratio**index
        loss = loss_at(lr)
        if loss is None or not math.isfinite(loss):
            return tuple(lrs), tuple(losses), True
        lrs.append(lr)
        losses.append(loss)
        if blew_up(losses):
            return tuple(lrs), tuple(losses), True
    return tuple(lrs), tuple(losses), False
