"""One search first, then another."""

from __future__ import annotations

from ..history import History
from .base import Budget, Resume, Scheduler, Start
from .candidates import Candidates
from .freeze_thaw import FreezeThaw
from .halving import Halving

# Full trials' worth of modelled time after which "auto" changes from freeze-thaw to TPE with successive halving. The
# time of a decision by the surrogate grows with the cube of the number of scores. After 8 and 16 full trials
# freeze-thaw has less regret than TPE on the six tables that it was tuned on, and about as much on five others; after
# 32 neither is ahead (docs/search-results.md). A change after 8 was better than both on the six, and worse than both on
# the five (benchmarks/NOTES.md).
THAWS = 32.0


class Switch(Scheduler):
    """Changes from one search to another when the race has spent the time of a number of full trials.

    Args:
        first, then: the two searches.
        after: the number of full trials.
    """

    def __init__(self, first: Scheduler, then: Scheduler, after: float) -> None:
        self._first, self._then, self._after = first, then, after

    def suggest(self, history: History, budget: Budget) -> Start | Resume | None:
        search = self._then if budget.has_spent(self._after) else self._first
        return search.suggest(history, budget)


def auto(candidates: Candidates) -> Switch:
    """Freeze-thaw, then TPE with successive halving once the surrogate would be slow."""
    return Switch(FreezeThaw(candidates), Halving(candidates), THAWS)
