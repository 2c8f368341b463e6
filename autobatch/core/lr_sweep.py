"""How a learning-rate range test is driven and when it ends, for every runner alike: numbers only, nothing is trained.

It ends where a step tells no finite loss, or where the smoothed loss has blown up. A single batch says little: the raw
loss of a flat curve whose noise is that of a squared error (the mean of 4 to 16 draws of chi-squared) exceeds four
times its lowest within 100 steps nearly always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

SMOOTHING = 0.9  # assumed: weight of the past; the average looks back over about ten steps, a tenth of a sweep of 100

# A loss has blown up when it is this many times its lowest, both of them smoothed, as in torch-lr-finder, which stops
# at 5 (diverge_th). The figure is assumed.
BLOW_UP = 4.0

# It must also have risen by so many median changes between two steps, which are what noise does, whatever the loss is
# measured in: near zero, or below, a multiple says nothing. Simulated, 1,000 flat losses of 100 steps each. Of squared
# errors 4 % "blow up" at batch 1, .4 % at 2 and none from 4 up; of log-normal ones (sigma 1.5) 38, 16, 8 and 2 % at
# batch 1, 2, 4 and 8. Without it 40, 6, .7 and 0 %, and 77, 49, 23 and 5 %. A loss at batch 4 that jumps to thirty
# times where it was is found after 0 to 5 steps; with 6 in place of 5, more of those that jump to ten times are missed.
CLEAR_RISE = 5.0

LOOK_BACK_STEPS = round(1 / (1 - SMOOTHING))  # what the smoothed loss is the average of
SETTLED_STEPS = 5  # an average over fewer losses is no level to compare with: with 3, twice as many at batch 1 blow up

_LEAST_CHANGE = 1e-3  # assumed: a smaller change, as a share of the first losses, is rounding


def smooth(losses: Sequence[float]) -> tuple[float, ...]:
    """The exponential moving average of `losses`, with the bias towards its start at zero corrected.

    The average after step i, divided by 1 - SMOOTHING ** (i + 1), as Adam does for its moments (Kingma and Ba 2015).
    """
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**step))
    return tuple(smoothed)


def start_of(losses: Sequence[float]) -> float:
    """Where the losses begin: the median of their first tenth, at least of three. Only where there is one."""
    return median(losses[: max(3, len(losses) // 10)])


def noise_of(losses: Sequence[float]) -> float:
    """What a loss changes by from one step to the next: the median over all steps, and never less than rounding.

    Only where there are two losses.
    """
    change = median(abs(after - before) for before, after in pairwise(losses))
    return max(change, _LEAST_CHANGE * abs(start_of(losses)))


def blew_up(losses: Sequence[float]) -> bool:
    """Whether the loss, smoothed, is far above its lowest at the last of these steps, all of them finite.

    By `BLOW_UP` - 1 times the lowest, and by `CLEAR_RISE` times the noise of the steps before those that are averaged:
    once it has blown up, it changes by more.
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
    """Take the steps of a range test: its rates, rising geometrically, the loss at each, and whether it ended early.

    Args:
        loss_at: takes one optimizer step at a rate; the loss before it, or None where training gave up. A loss that is
            not finite ends the test and is not told; one that has blown up ends it and is.
        lowest, highest: rates of the first and the last step.
        steps: how many, at least two.
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
