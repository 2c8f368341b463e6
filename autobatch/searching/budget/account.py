"""The time of a race: what it may spend and has spent by the model, and what the clock still allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ...core.segment import SegmentResult
from ..crew import Crew
from ..trials import StepTimes, Trial, optimizer_step_s
from .costs import Costs
from .ledger import Ledger
from .timing_correction import CorrectedTimes, Paces


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInFlight:
    """A segment of a training that is under way.

    Attributes:
        until_step: where it ends.
        modelled_s: what it takes by the profile.
        began_s: when it began, by the ledger.
        attempt: which one it is, from 1 up.
        is_cut_short: its limit is the time that is left, which is too short to tell a hang by.
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
        paces: what finished segments took over what the profile gave for them.
        profile: the step times as they were measured; those of `costs` are corrected.
        under_way: the segments being trained, by trial.
    """

    ledger: Ledger
    costs: Costs
    crew: Crew
    profile: StepTimes
    allotment_s: float = 0.0
    spent_s: float = 0.0
    paces: Paces = field(default_factory=Paces)
    under_way: dict[int, SegmentInFlight] = field(default_factory=dict)

    def begin(self, trial: int, in_flight: SegmentInFlight) -> None:
        """Note that a segment of this trial is under way from now on."""
        self.under_way[trial] = replace(in_flight, began_s=self.ledger.elapsed_s)

    def learn(self, trial: Trial, in_flight: SegmentInFlight, result: SegmentResult, reference: int) -> None:
        """Note what a segment took over what the profile gave for it.

        Args:
            trial: as it stood before.
            segment: that has ended well.
            result: what it came to.
            reference: batch size of the baseline, see `correct_times`.
        """
        # A process warms up in its first segment: that of the very first counts for a while, those of others never.
        if self.paces.first is None or not result.is_first:
            self.paces = self.paces.with_segment(in_flight.modelled_s, result.seconds)
        if not result.is_first:
            plan = trial.config.plan
            profiled_s = (in_flight.until_step - trial.steps_done) * optimizer_step_s(plan, self.profile)
            self.paces = self.paces.with_steps(plan.batch_size, profiled_s, result.train_s)
            self.correct_times(reference)

    def correct_times(self, reference: int) -> None:
        """Give the batch sizes that the profile is wrong about their own time in trials to come.

        Else a trial at such a size would be compared after more training than others, or less. A trial that has begun
        keeps its steps: its schedule was drawn over them.

        Args:
            reference: batch size of the baseline; T is what a training takes at that size.
        """
        self.costs = replace(self.costs, times=CorrectedTimes(self.profile, self.paces.off_by(reference)))

    @property
    def equivalents(self) -> float:
        """Full trials that the time pays for, spent or left, as far as is known by now."""
        workers = max(1, self.crew.size)  # one that was lost may be there again for a resumed run
        on_clock_s = self.spent_s + workers * self.ledger.available_s / self.paces.correction
        return min(self.allotment_s, on_clock_s) / self.costs.full_trial_s

    def left_s(self, *rounds: int) -> float:
        """Modelled seconds of work that may still be begun, with so many confirmations kept for the end in each round,
        none of which begins before the last is over.

        Of the allotment; of all workers' time on the clock; and of one worker's, since the segments of one trial follow
        one another.
        """
        kept_s, size = sum(rounds) * self.costs.confirmation_s, self.crew.size
        begun_s = sum(in_flight.modelled_s for in_flight in self.under_way.values())
        on_clock_s = self.ledger.available_s / self.paces.slowest_correction
        now_s = self.ledger.elapsed_s
        to_do_s = sum(
            max(0.0, in_flight.modelled_s - (now_s - in_flight.began_s) / self.paces.slowest_correction)
            for in_flight in self.under_way.values()
        )
        waves = sum(math.ceil(seeds / size) if size else seeds for seeds in rounds)
        return min(
            self.allotment_s - self.spent_s - begun_s - kept_s,
            size * on_clock_s - to_do_s - kept_s,
            on_clock_s - waves * self.costs.confirmation_s,
        )

    def fits(self, modelled_s: float) -> bool:
        """Whether the clock has time for a piece of work at the latest pace."""
        return self.ledger.fits(modelled_s * self.paces.slowest_correction)

    def allot_what_is_left(self, least_s: float | None = None) -> bool:
        """Whether the clock pays for more than the model did, by `least_s` or a full trial; it is then allotted.

        This happens after trials that failed early, and where training is faster than the profile said.
        """
        on_clock_s = self.crew.size * self.ledger.available_s / self.paces.correction
        if self.spent_s + on_clock_s - self.allotment_s < (self.costs.full_trial_s if least_s is None else least_s):
            return False
        self.allotment_s = self.spent_s + on_clock_s
        return True
