"""Whether a step really ran, where the user's code may have caught the error that ended it.

"Skip the batch that does not fit" is a habit of long trainings, and there it does no harm. In a measurement, a step
that was skipped needs little memory and no time: it would be the largest and the fastest there is. What it cannot do is
leave gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Usual:
    """Which parameters steps on a few samples give a gradient, by their positions.

    Attributes:
        always: all of the steps; none of them where a task trains its parts in turn, or skips steps.
        ever: at least one of the steps.
    """

    always: frozenset[int]
    ever: frozenset[int]

    @classmethod
    def of(cls, steps: Sequence[frozenset[int]]) -> Usual:
        """By the parameters that each step gave a gradient."""
        return cls(always=frozenset.intersection(*steps), ever=frozenset.union(*steps))


_Mark = tuple[int, int]  # which tensor the gradient is, and how often it was written to


class GradientWatch:
    """Told of each part of a step, it knows whether each micro-batch left gradients.

    Attributes:
        missed: the optimizer steps so far of which a micro-batch left none.
        taken: the optimizer steps so far.
        left: the positions of the parameters that each micro-batch of the last step gave a gradient; only `exactly`.
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
        """Meanwhile all parameters are looked at after each micro-batch, and not only until one has a gradient."""
        before, self._is_exact = self._is_exact, True
        try:
            yield
        finally:
            self._is_exact = before

    def begin(self) -> None:
        """A step begins."""
        self._marks = self._marked() if self._is_exact else {}
        self._is_first, self._is_missed = True, False

    def see(self) -> None:
        """A micro-batch has been through the backward pass."""
        if not self._is_exact:
            self._is_missed = self._is_missed or not self.has_gradients
            return
        marks = self._marked()
        given = frozenset(at for at, mark in marks.items() if self._marks.get(at) != mark)
        self.left = given if self._is_first else self.left & given
        self._marks, self._is_first = marks, False
        self._is_missed = self._is_missed or not given

    def end(self) -> None:
        """The step ends."""
        self.taken += 1
        self.missed += self._is_missed

    @property
    def has_gradients(self) -> bool:
        """Whether there is a gradient at the moment."""
        return any(parameter.grad is not None for parameter in self._model.parameters())

    def _marked(self) -> dict[int, _Mark]:
        gradients = ((at, parameter.grad) for at, parameter in enumerate(self._model.parameters()))
        return {at: _mark(gradient) for at, gradient in gradients if gradient is not None}


def _mark(gradient: Tensor) -> _Mark:
    return id(gradient), gradient._version
