"""The time of a race: what it may spend by the model, what it has spent, and what the clock still pays for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from .costs import Costs
from .crew import Crew
from .ledger import Ledger
from .paces import Paces


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A rung under way: where it ends, its modelled seconds, when it began by the ledger, and which attempt it is.

    Attributes:
        is_cut_short: it may take the time that is left, which is less than what a hang is told by.
    """

    until_step: int
    modelled_s: float
    began_s: float = 0.0
    attempt: int = 1
    is_cut_short: bool = False


@dataclass(slots=True, kw_only=True)
class Account:
    """Modelled seconds, by which a race decides, beside those of the clock, by which it ends.

    Attributes:
        ledger, costs, crew: the race's own.
        allotment_s, spent_s: modelled seconds that the race may spend, and has spent.
        paces: what finished rungs took over what the profile gave for them.
        under_way: the rungs being trained, by trial.
    """

    ledger: Ledger
    costs: Costs
    crew: Crew
    allotment_s: float = 0.0
    spent_s: float = 0.0
    paces: Paces = field(default_factory=Paces)
    under_way: dict[int, Leg] = field(default_factory=dict)

    def begin(self, trial: int, leg: Leg) -> None:
        """Note that a leg of this trial is under way from now on."""
        self.under_way[trial] = replace(leg, began_s=self.ledger.elapsed_s)

    @property
    def equivalents(self) -> float:
        """Full trials that the time pays for, spent or left, as far as is known by now."""
        workers = max(1, self.crew.size)  # one that was lost may be there again for a resumed run
        on_clock_s = self.spent_s + workers * self.ledger.available_s / self.paces.correction
        return min(self.allotment_s, on_clock_s) / self.costs.full_trial_s

    def left_s(self, *rounds: int) -> float:
        """Modelled seconds of work that may still be begun, with so many confirmations kept for the end in each round,
        none of which begins before the last is over.

        Of the allotment; of all workers' time on the clock; and of one worker's, since the rungs of one trial follow
        one another.
        """
        kept_s, size = sum(rounds) * self.costs.confirmation_s, self.crew.size
        begun_s = sum(leg.modelled_s for leg in self.under_way.values())
        on_clock_s = self.ledger.available_s / self.paces.slowest_correction
        now_s = self.ledger.elapsed_s
        to_do_s = sum(
            max(0.0, leg.modelled_s - (now_s - leg.began_s) / self.paces.slowest_correction)
            for leg in self.under_way.values()
        )
        waves = sum(math.ceil(seeds / size) if size else seeds for seeds in rounds)
        return min(
            self.allotment_s - self.spent_s - begun_s - kept_s,
            size * on_clock_s - to_do_s - kept_s,
            on_clock_s - waves * self.costs.confirmation_s,
        )

    def fits(self, modelled_s: float) -> bool:
        """Whether the clock pays for a piece of work at the pace of late."""
        return self.ledger.fits(modelled_s * self.paces.slowest_correction)

    def allot_what_is_left(self, least_s: float | None = None) -> bool:
        """Whether the clock pays for more than the model did, by `least_s` or a full trial; it is then allotted.

        So it is after trials that failed early, and where training is faster than the profile said.
        """
        on_clock_s = self.crew.size * self.ledger.available_s / self.paces.correction
        if self.spent_s + on_clock_s - self.allotment_s < (self.costs.full_trial_s if least_s is None else least_s):
            return False
        self.allotment_s = self.spent_s + on_clock_s
        return True
