"""One search first and then another: each where it is the better one."""

from __future__ import annotations

from ..history import History
from .base import Budget, Resume, Scheduler, Start
from .candidates import Candidates
from .freeze_thaw import FreezeThaw
from .halving import Halving

# Full trials' worth of modelled time after which "auto" goes over from freeze-thaw to TPE with successive halving. What
# the surrogate takes for a decision grows with the cube of the rungs. After 8 and 16 freeze-thaw leaves less than TPE
# on the six tables that it was tuned on, about as much on five others; after 32 neither is ahead
# (docs/search-results.md). Going over after 8 was better than both on the six, and worse than both on the five
# (benchmarks/NOTES.md).
THAWS = 32.0


class Switch(Scheduler):
    """Goes over from one search to another when the race has spent the time of so many full trials.

    Args:
        first, then: the two searches.
        after: full trials.
    """

    def __init__(self, first: Scheduler, then: Scheduler, after: float) -> None:
        self._first, self._then, self._after = first, then, after

    def suggest(self, history: History, budget: Budget) -> Start | Resume | None:
        search = self._then if budget.has_spent(self._after) else self._first
        return search.suggest(history, budget)


def auto(candidates: Candidates) -> Switch:
    """Freeze-thaw, and TPE with successive halving once the surrogate has become slow."""
    return Switch(FreezeThaw(candidates), Halving(candidates), THAWS)
