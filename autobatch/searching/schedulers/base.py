"""What a race asks a search: which trial to train next, a new one or a paused one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ...core.plan import Config
from ..budget.costs import Costs
from ..history import History
from ..trials import Role, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Begin a trial of a configuration.

    Attributes:
        config: what to train.
        origin: the reason, in one sentence.
        role: of the trial.
    """

    config: Config
    origin: str
    role: Role = "search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Train a paused trial to its next rung.

    Attributes:
        trial: its number.
    """

    trial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The time that a search may plan with, in modelled seconds.

    Attributes:
        costs: modelled seconds of each piece of work.
        left_s: for work that may still begin, without what is reserved for the end.
        spent_s: what the race has spent so far.
    """

    costs: Costs
    left_s: float
    spent_s: float = 0.0

    @property
    def may_start(self) -> bool:
        """Whether a new trial could be trained to its end."""
        return self.left_s >= self.costs.full_trial_s

    def can_finish(self, trial: Trial) -> bool:
        """Whether a trial could be trained from its present step to its end."""
        return self.costs.finish_s(trial) <= self.left_s

    def has_spent(self, full_trials: float) -> bool:
        """Whether the race has spent the time of this many full trials."""
        return self.spent_s >= full_trials * self.costs.full_trial_s


class Scheduler(ABC):
    """A way to search.

    It decides by the history, the budget, and its arguments. The race asks it whenever a worker is idle.
    """

    @abstractmethod
    def suggest(self, history: History, budget: Budget) -> Start | Resume | None:
        """What to train next; None if nothing is worth it, or nothing fits that could be finished.

        A trial is started only if `budget.may_start`, and resumed only if `budget.can_finish` it.
        """


def proposal(config: Config, history: History) -> Start:
    """A trial that a search has proposed."""
    return Start(config=config, origin=f"proposed after {len(history.trials)} trials")
