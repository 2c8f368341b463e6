"""Asynchronous successive halving with any Optuna sampler: it promotes a trial that ranks high, or starts a new one."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from ...core.plan import Config
from ..history import History
from ..space import SAME_LR, Space, same_config
from .base import Budget, Resume, Scheduler, Start, proposal
from .candidates import Candidates
from .freeze_thaw import untried
from .optuna_sampler import propose
from .promotion import paused_best_first, promotable

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

# The space counts as exhausted after this many proposals in a row that were tried before. Assumed.
MOST_REPEATS = 8


class Halving(Scheduler):
    """Resumes the trial that ranks among the best at its rung, starts a new one, or finishes the paused ones.

    Args:
        candidates: what may be tried.
        sampler: proposes new configurations; by default TPE, seeded by the run's seed and the number of trials.
    """

    def __init__(self, candidates: Candidates, sampler: BaseSampler | None = None) -> None:
        self._candidates, self._sampler = candidates, sampler

    def suggest(self, history: History, budget: Budget) -> Start | Resume | None:
        for trial in filter(budget.can_finish, promotable(history)):
            return Resume(trial=trial.number)
        if budget.may_start and (config := self._new(history)) is not None:
            return proposal(config, history)
        for trial in filter(budget.can_finish, paused_best_first(history)):
            return Resume(trial=trial.number)
        return None

    def _new(self, history: History) -> Config | None:
        """A configuration that was not tried before; None if there is none."""
        ours = self._candidates
        space = ours.runnable
        if ours.is_exhausted or space is None or not ours.are_wanted(history):
            return None
        tried = {trial.config for trial in history.trials}
        under_way = [trial.config for trial in history.trials if trial.state == "running"]
        for repeat in range(MOST_REPEATS):
            seed = ours.seed * MOST_REPEATS + repeat
            config = ours.config(*propose(history, space, seed=seed, sampler=self._sampler))
            if config not in tried and not any(same_config(config, other) for other in under_way):
                return config
        left = self._left(history, space)
        ours.is_exhausted = not left
        return min(left, key=partial(_distance, config), default=None)

    def _left(self, history: History, space: Space) -> list[Config]:
        """What was not tried: all cells of a grid, or otherwise points that are far enough from everything that was
        tried.
        """
        ours = self._candidates
        if not space.lrs:
            return [ours.config(*point) for point in untried(history, space, ours.seed)]
        low, high = space.lr_low / SAME_LR, space.lr_high * SAME_LR
        cells = (ours.config(size, lr) for size in space.effective_batch_sizes for lr in space.lrs)
        tried = {trial.config for trial in history.trials}
        return [cell for cell in cells if low <= space.scaled_lr(cell) <= high and cell not in tried]


def _distance(one: Config, other: Config) -> float:
    """The distance between two configurations: doublings of the batch and e-folds of the learning rate, which matter
    about equally.
    """
    doublings = math.log2(one.plan.effective_batch_size / other.plan.effective_batch_size)
    return math.hypot(doublings, math.log(one.lr / other.lr))
