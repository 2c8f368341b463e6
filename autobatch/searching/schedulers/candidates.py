"""The configurations that a search may choose from: within the space, within memory, and while new ones make sense."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.plan import Config
from ..history import History
from ..limits import MemoryLimits
from ..space import Space, rounded_lr

# The number of failed trials in a row after which nothing new is tried: the configurations are then not the cause.
# Assumed.
MOST_FAILURES = 10


@dataclass(slots=True, kw_only=True)
class Candidates:
    """What may be tried in a race, by what is known of memory now.

    Attributes:
        space: where a search looks.
        limits: those of the race; they become tighter when a training runs out of memory.
        seed: of the run; all choices depend on it.
        most_trials: the most configurations to try; None for no such limit.
        is_exhausted: a search has nothing new to propose. The record of the race keeps it.
    """

    space: Space
    limits: MemoryLimits
    seed: int = 0
    most_trials: int | None = None
    is_exhausted: bool = False

    @property
    def runnable(self) -> Space | None:
        """The space with the batch sizes that can be run; None if there are none."""
        sizes = tuple(size for size in self.space.effective_batch_sizes if self.limits.plan_for(size) is not None)
        return replace(self.space, effective_batch_sizes=sizes) if sizes else None

    def config(self, batch: int, lr: float) -> Config:
        """The configuration of an effective batch size, which can be run, at this learning rate."""
        plan = self.limits.plan_for(batch)
        assert plan is not None  # only sizes that can be run are chosen
        return Config(plan=plan, lr=rounded_lr(lr))

    def are_wanted(self, history: History) -> bool:
        """Whether anything new should be tried: not if there are enough trials, nor after failures alone."""
        recent = [trial.state for trial in history.trials[-MOST_FAILURES:]]
        failing = len(recent) == MOST_FAILURES and set(recent) == {"failed"}
        return not failing and self.has_room(history)

    def has_room(self, history: History) -> bool:
        """Whether fewer configurations were tried than the most that are wanted."""
        return self.most_trials is None or len(history.trials) < self.most_trials
