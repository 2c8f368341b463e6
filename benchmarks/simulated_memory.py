"""The 42 simulated cases: six shapes of peak memory over the batch size, seven limits each, on a card of 24 GiB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from autobatch.simulated.sim import draw

GIB = 1 << 30
MIB = 1 << 20
CAPACITY = 24 * GIB
STATIC = 2 * GIB  # parameters, gradients and optimizer state
LIMITS = (7, 100, 1000, 1337, 5000, 50_000, 131_072)
CEILING = 1 << 22  # the size of the data set, far above every limit: no search is helped by it

Shape = Callable[[int], int]


def affine(limit: int) -> Shape:
    """A fixed part, and the same for every sample."""
    return lambda batch: STATIC + (CAPACITY - STATIC) * batch // limit


def maximum_of_lines(limit: int) -> Shape:
    """Flat while the optimizer step dominates, then the backward pass."""
    line = affine(limit)
    return lambda batch: max(3 * STATIC + (line(batch) - STATIC) * 3 // 100, line(batch))


def quadratic(limit: int) -> Shape:
    """A loss over all pairs: nearly flat at first, all of the growth at the end."""
    return lambda batch: STATIC + (CAPACITY - STATIC) * (batch * limit + 9 * batch * batch) // (10 * limit * limit)


def stepped(limit: int) -> Shape:
    """Forty large tensors, each rounded up to 2 MiB, and a workspace of 8 % of the card from 55 % of the limit on."""

    def peak(batch: int) -> int:
        tensor = (CAPACITY - STATIC) * 92 * batch // (40 * 100 * limit)
        rounded = -(-tensor // (2 * MIB)) * 2 * MIB
        return STATIC + 40 * rounded + (CAPACITY * 8 // 100 if 100 * batch >= 55 * limit else 0)

    return peak


def noisy(limit: int) -> Shape:
    """Affine with 1 % of noise that belongs to the batch size: the same at every run of it."""
    line = affine(limit)
    return lambda batch: int(line(batch) * (1 + 0.01 * (2 * _noise(limit, batch) - 1)))


@cache
def _noise(limit: int, batch: int) -> float:
    return draw("noise", limit, batch).random()


def not_monotone(limit: int) -> Shape:
    """Affine with 4 % more for odd multiples of an eighth of the limit: an algorithm that comes and goes."""
    line = affine(limit)
    return lambda batch: line(batch) * (104 if (8 * batch // limit) % 2 else 100) // 100


SHAPES: dict[str, Callable[[int], Shape]] = {
    "affine": affine,
    "maximum of lines": maximum_of_lines,
    "quadratic": quadratic,
    "stepped": stepped,
    "noisy by 1 %": noisy,
    "not monotone": not_monotone,
}
MONOTONE = ("affine", "maximum of lines", "quadratic", "stepped")
CASES = [(shape, limit) for shape in SHAPES for limit in LIMITS]


@cache
def largest_safe(shape: str, limit: int, budget: int) -> int:
    """The truth: the largest batch such that it and every smaller one stay within the budget."""
    peak, truth = SHAPES[shape](limit), 0
    while peak(truth + 1) <= budget:
        truth += 1
    return truth


# returned  a batch size, or that there is none
# failed    it raised; the message is kept
# timeout   it had to be ended
Ending = Literal["returned", "failed", "timeout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one search did in one case.

    Attributes:
        truth: the largest batch such that it and every smaller one fit on the card.
        truth_in_budget: the same within what the search was told to use; `truth` where it was told nothing.
        found: what was returned; None where nothing was.
        ran: a step of the size that was returned ran.
        fits: its peak is within the capacity of the card.
        probes: sizes tried, repeats counted; None where only steps are known.
        ooms, steps: steps that were refused, and that ran.
        seconds: of the search, without imports.
    """

    search: str
    shape: str
    limit: int
    truth: int
    truth_in_budget: int
    ending: Ending
    found: int | None
    ran: bool
    fits: bool
    ooms: int
    steps: int
    seconds: float
    probes: int | None = None
    message: str | None = None
