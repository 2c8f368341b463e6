"""Where a search looks: batch sizes around the profile, and learning rates around a few hints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..core.facts import TaskFacts
from ..core.plan import LEAST_LR, MOST_LR, Config
from .trials import MIN_STEPS, StepTimes, total_steps

Number = TypeVar("Number", int, float)

# The best learning rate is a power of the batch size, with this exponent. Measured on six tables of two tasks (96 cells
# of batch and rate, 5 seeds each): 0.60-0.82 for SGD and 0.27-0.40 for AdamW; 0.5 is the safest single one.
LR_EXPONENT = 0.5

# Decades of learning rate on either side of the hints. Assumed: with hints that are a decade apart, the space has five
# decades.
LR_DECADES = 2.0

# Batch sizes start at `FEWEST_SAMPLES`, or at the baseline's size if that is smaller, where the knee is well above it.
# A space of fewer than `FEWEST_SIZES` sizes is no search. Both assumed; the measured tables have their knees at 128 and
# above, where the first says nothing.
FEWEST_SAMPLES = 8
FEWEST_SIZES = 3

# Learning rates that differ by less than this factor are one configuration. Assumed: far inside the narrowest basin
# measured
# (0.4 of a decade within one point of accuracy).
SAME_LR = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be tried.

    Attributes:
        effective_batch_sizes: in rising order.
        lr_low, lr_high: bounds of the learning rate *at the reference batch*; at another batch they move with it.
        reference_batch: the effective batch size at the knee of the throughput curve.
        lrs: the only learning rates to propose, in rising order; empty for any between the bounds.
    """

    effective_batch_sizes: tuple[int, ...]
    lr_low: float
    lr_high: float
    reference_batch: int
    lrs: tuple[float, ...] = ()

    def lr_at(self, batch: int, scaled_lr: float) -> float:
        """The learning rate at `batch` for one at the reference batch, or the closest of those allowed."""
        lr = scaled_lr * scale(self.reference_batch, batch)
        return closest(self.lrs, lr) if self.lrs else lr

    def scaled_lr(self, config: Config) -> float:
        """A configuration's learning rate, scaled to the reference batch."""
        return config.lr * scale(config.plan.effective_batch_size, self.reference_batch)

    def nearest(self, batch: int) -> int:
        """The batch size of the space that is closest to `batch`, as a ratio."""
        return closest(self.effective_batch_sizes, batch)


def space_for(
    facts: TaskFacts,
    times: StepTimes,
    *,
    max_batch: int,
    max_micro_batch: int,
    horizon_s: float,
    baseline: Config,
    lr_hint: float | None = None,
    lr_diverged: float | None = None,
    earlier: Sequence[Config] = (),
) -> Space:
    """The space around a profile and the hints about the learning rate. It has at least one batch size.

    Batch sizes are the powers of two, times the number of ranks, in [knee / 8, 4 knee]. Measured: the best one at equal
    time was within [knee / 4, 2 knee] on eight of eight tables. They start at `FEWEST_SAMPLES`, where that cuts nothing
    off the measured range, and end at an eighth of the training data (assumed: fewer than eight steps an epoch are
    hardly a stochastic method). The range always reaches to the baseline's own size: the user trains with it, and a
    knee far above it says something about the device and not about the data (NOTES.md, 2026-11-23).

    Of these sizes, the space has those that fit and take at least `MIN_STEPS` steps in the horizon. If they are fewer
    than `FEWEST_SIZES`, half and twice the baseline's size are added if they can be run. A task that takes no power of
    two gets the baseline's own size, doubled and halved.

    Args:
        facts, times: the task and its throughput profile.
        max_batch, max_micro_batch: the most samples that fit in one forward and backward pass, and in one micro-batch
            of a step that accumulates.
        horizon_s: seconds of training of one full trial.
        baseline: its learning rate is a hint, and its batch size is the last resort if no power of two fits.
        lr_hint: the range test's suggestion at the knee; None without one.
        lr_diverged: the rate at which the range test at the knee diverged; None if it did not. It counts only together
            with `lr_hint`.
        earlier: the choices of earlier runs. Their rates lie in the space.
    """
    ranks = facts.baseline.plan.ranks
    knee, batch = ranks * times.knee_batch_size, baseline.plan.effective_batch_size
    most = math.inf if facts.train_size is None else facts.train_size / 8
    own = ranks * 2 ** max(0, round(math.log2(batch / ranks)))
    at_most = max(most, batch)  # the user's own batch is never too large for the data
    low = min(max(knee / 8, min(FEWEST_SAMPLES, knee / 4)), own)
    high = max(min(4 * knee, most), min(own, at_most))

    def can_run(size: int) -> bool:
        plan = times.plan_for(size, max_batch, facts.precision, max_micro_batch)
        return plan is not None and total_steps(plan, times, horizon_s) >= MIN_STEPS

    exponents = range(1 + math.floor(math.log2(max(high, ranks) / ranks)))
    sizes = {size for exponent in exponents if low <= (size := ranks * 2**exponent) <= high and can_run(size)}
    if len(sizes) < FEWEST_SIZES:
        sizes |= {size for size in (own // 2, own, 2 * own) if ranks <= size <= at_most and can_run(size)}
    if not sizes:
        powers = [2**exponent for exponent in range(math.ceil(high).bit_length())]
        near = {batch * power for power in powers} | {batch // power for power in powers if batch % power == 0}
        sizes = {size for size in near if min(low, batch) <= size <= max(high, batch) and can_run(size)}
    hints = [baseline.lr * scale(batch, knee)] + ([lr_hint] if lr_hint else [])
    lr_low, lr_high = min(hints) / 10**LR_DECADES, max(hints) * 10**LR_DECADES
    # If the loss never fell, the test may not have trained at all: a bad batch at a far too low rate may have ended it.
    # A bound that is too high costs trials that diverge on their first rung; one that is too low costs the best rates.
    if lr_diverged is not None and lr_hint is not None:
        # The rates of the user and of the test's own suggestion always stay inside.
        lr_high = max(min(lr_high, lr_diverged), 2 * max(hints))
    rates = [config.lr * scale(config.plan.effective_batch_size, knee) for config in earlier]
    lr_low, lr_high = min([lr_low, *rates]), max([lr_high, *rates])
    return Space(
        effective_batch_sizes=tuple(sorted(sizes)) or (batch,), lr_low=lr_low, lr_high=lr_high, reference_batch=knee
    )


def rounded_lr(lr: float) -> float:
    """The learning rate to three digits, so that the printed rate is the one that ran; at least the lowest possible
    rate, at most the highest.
    """
    return float(f"{min(max(lr, LEAST_LR), MOST_LR):.3g}")


def closest(values: Sequence[Number], to: float) -> Number:
    """The one of `values` whose ratio to `to` is closest to 1. There is at least one, and all are above zero."""
    return min(values, key=lambda value: abs(math.log(value / to)))


def scale(batch: int, target_batch: int) -> float:
    """The factor on a learning rate when the batch size changes from `batch` to `target_batch`."""
    return float((target_batch / batch) ** LR_EXPONENT)


def same_config(one: Config, other: Config) -> bool:
    """Whether two configurations are too close for training to show a difference."""
    close = abs(math.log(one.lr / other.lr)) <= math.log(SAME_LR)
    return one.plan.effective_batch_size == other.plan.effective_batch_size and close
