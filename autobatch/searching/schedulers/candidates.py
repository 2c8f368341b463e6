"""The configurations that a search may choose from: within the space, within memory, and as long as it makes sense."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.plan import Config
from ..history import History
from ..limits import MemoryLimits
from ..space import Space, rounded_lr

# Failed trials in a row after which nothing new is tried: the fault is then not in the configurations. Assumed.
MOST_FAILURES = 10


@dataclass(slots=True, kw_only=True)
class Candidates:
    """What may be tried in a race, as memory is known by now.

    Attributes:
        space: where a search looks.
        limits: the race's own; they become tighter where a training runs out of memory.
        seed: of the run, on which all choices depend.
        most_trials: configurations to try at most; None for no such limit.
        is_exhausted: a search has found that nothing new is left. It is kept in the record of the race.
    """

    space: Space
    limits: MemoryLimits
    seed: int = 0
    most_trials: int | None = None
    is_exhausted: bool = False

    @property
    def runnable(self) -> Space | None:
        """The space with the batch sizes that can be run; None where there are none."""
        sizes = tuple(size for size in self.space.effective_batch_sizes if self.limits.plan_for(size) is not None)
        return replace(self.space, effective_batch_sizes=sizes) if sizes else None

    def config(self, batch: int, lr: float) -> Config:
        """The configuration of an effective batch size that can be run, at this learning rate."""
        plan = self.limits.plan_for(batch)
        assert plan is not None  # only sizes that can be run are chosen
        return Config(plan=plan, lr=rounded_lr(lr))

    def are_wanted(self, history: History) -> bool:
        """Whether anything new is to be tried: not after as many as were wanted, nor after failures alone."""
        recent = [trial.state for trial in history.trials[-MOST_FAILURES:]]
        failing = len(recent) == MOST_FAILURES and set(recent) == {"failed"}
        return not failing and self.has_room(history)

    def has_room(self, history: History) -> bool:
        """Whether fewer configurations were tried than are wanted at most."""
        return self.most_trials is None or len(history.trials) < self.most_trials
