"""Asynchronous successive halving: which paused trials continue."""

from __future__ import annotations

import math

from ..history import History
from ..trials import Trial


def promotable(history: History) -> list[Trial]:
    """The paused trials that asynchronous successive halving would resume, the highest rung first, then the best.

    A trial continues if it ranks within the top 1 / eta of all that finished its rung and of those that failed on the
    way there from the rung before (Li et al. 2020, arXiv 1810.05934). No judgement is final: a paused trial may enter
    the top later.
    """
    chosen = []
    for level in reversed(range(len(history.ladder.shares) - 1)):
        finished = sorted(
            (trial for trial in history.racing if len(trial.scores) > level),
            key=lambda trial: -history.oriented(trial.scores[level][1]),
        )
        failed = sum(trial.state == "failed" and len(trial.scores) == level for trial in history.racing)
        places = math.floor((len(finished) + failed) / history.ladder.eta(level))
        chosen += [t for t in finished[:places] if t.state == "paused" and len(t.scores) == level + 1]
    return chosen


def paused_best_first(history: History) -> list[Trial]:
    """The paused trials, those on the highest rung first, and on each rung the best first.

    A baseline that was set aside before its first score comes last.
    """
    paused = [trial for trial in history.trials if trial.state == "paused"]
    latest = {trial.number: history.last(trial) if trial.scores else 0.0 for trial in paused}
    return sorted(paused, key=lambda trial: (-len(trial.scores), -latest[trial.number]))
