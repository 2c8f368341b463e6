"""Whether a step really ran, although the user's code may have caught the error that ended it.

"Skip the batch that does not fit" is a habit in long trainings, where it does no harm. In a measurement, a skipped step
needs little memory and no time, so its size would seem the largest and the fastest. But a skipped step leaves no
gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Usual:
    """Which parameters get a gradient in steps on a few samples, by their positions.

    Attributes:
        always: those of all steps; none if a task trains its parts in turn, or skips steps.
        ever: those of at least one step.
    """

    always: frozenset[int]
    ever: frozenset[int]

    @classmethod
    def of(cls, steps: Sequence[frozenset[int]]) -> Usual:
        """The summary of the parameters that got a gradient in each step."""
        return cls(always=frozenset.intersection(*steps), ever=frozenset.union(*steps))


_Mark = tuple[int, int]  # the gradient's tensor, and how often it was written to


class GradientWatch:
    """Follows the parts of a step, and knows whether each micro-batch left gradients.

    Attributes:
        missed: the number of optimizer steps so far in which a micro-batch left none.
        taken: the number of optimizer steps so far.
        left: the positions of the parameters that got a gradient from each micro-batch of the last step; only inside
            `exactly`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.missed = self.taken = 0
        self.left: frozenset[int] = frozenset()
        self._is_exact = False
        self._model = model
        self._marks: dict[int, _Mark] = {}
        self._is_first = self._is_missed = False

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Inside, look at all parameters after each micro-batch, instead of stopping at one with a gradient."""
        before, self._is_exact = self._is_exact, True
        try:
            yield
        finally:
            self._is_exact = before

    def begin(self) -> None:
        """To be called when a step begins."""
        self._marks = self._marked() if self._is_exact else {}
        self._is_first, self._is_missed = True, False

    def see(self) -> None:
        """To be called after the backward pass of a micro-batch."""
        if not self._is_exact:
            self._is_missed = self._is_missed or not self.has_gradients
            return
        marks = self._marked()
        given = frozenset(at for at, mark in marks.items() if self._marks.get(at) != mark)
        self.left = given if self._is_first else self.left & given
        self._marks, self._is_first = marks, False
        self._is_missed = self._is_missed or not given

    def end(self) -> None:
        """To be called when the step ends."""
        self.taken += 1
        self.missed += self._is_missed

    @property
    def has_gradients(self) -> bool:
        """Whether any gradient exists now."""
        return any(parameter.grad is not None for parameter in self._model.parameters())

    def _marked(self) -> dict[int, _Mark]:
        gradients = ((at, parameter.grad) for at, parameter in enumerate(self._model.parameters()))
        return {at: _mark(gradient) for at, gradient in gradients if gradient is not None}


def _mark(gradient: Tensor) -> _Mark:
    return id(gradient), gradient._version
