"""How much of a race's time is kept for fresh seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .budget.account import Account
from .history import History
from .trials import Trial
from .verdict.confirmation import MOST_SEEDS, is_close, leads_clearly

# Below this many full trials, only one is reserved for confirmation. Assumed: otherwise less than half is left for the
# search.
FEW_EQUIVALENTS = 6

# If the lead is close, two more fresh seeds, one for each side, are reserved for each so many full trials that a worker
# has time for. Measured with 8 (where one more brings nothing), 16 and 32 full trials (benchmarks/NOTES.md).
TRIALS_A_PAIR = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """The full trials that are reserved for fresh seeds.

    Attributes:
        account: the time of the race.
        usual: full trials for the finalist, unless the time or the lead says otherwise.
    """

    account: Account
    usual: int

    def of_finalist(self, history: History) -> int:
        """Full trials for the finalist: one if the time is short or the lead is beyond doubt.

        Several workers train the usual number at once, so a second one takes no longer.
        """
        if self.account.crew.size > 1:
            return self.usual
        few = self.account.equivalents < FEW_EQUIVALENTS or leads_clearly(history)
        return 1 if few else self.usual

    def rounds(self, history: History) -> tuple[int, ...]:
        """Full trials by rounds: first those of the finalist; then, if the lead is close, more for both sides."""
        first = self.of_finalist(history)
        if not is_close(history):
            return (first,)
        pairs = int(self.account.equivalents / max(1, self.account.crew.size) / TRIALS_A_PAIR)
        return first, min(MOST_SEEDS, 2 * pairs)

    def after_s(self, trial: Trial, history: History) -> float:
        """Modelled seconds on the clock that a trial of the search leaves for the finalist's fresh seeds."""
        if not trial.is_challenger:
            return 0.0
        waves = math.ceil(self.rounds(history)[0] / max(1, self.account.crew.size))
        return waves * self.account.costs.confirmation_s
