"""The time of a race: the modelled seconds it may spend and has spent, and what the clock still allows."""

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
        until_step: the step at which it ends.
        modelled_s: seconds that it takes by the profile.
        began_s: when it began, by the ledger.
        attempt: the number of this attempt, from 1 up.
        is_cut_short: its time limit is the time that is left, which is too short to recognise a hang.
    """

    until_step: int
    modelled_s: float
    began_s: float = 0.0
    attempt: int = 1
    is_cut_short: bool = False


@dataclass(slots=True, kw_only=True)
class Account:
    """The time of a race: modelled seconds, which decide, and the clock, which ends it.

    Attributes:
        ledger, costs, crew: those of the race.
        allotment_s, spent_s: modelled seconds that the race may spend, and has spent.
        paces: measured over modelled seconds of the finished segments.
        profile: the step times as they were measured. Those of `costs` are corrected.
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
        """Record that a segment of this trial is under way."""
        self.under_way[trial] = replace(in_flight, began_s=self.ledger.elapsed_s)

    def learn(self, trial: Trial, in_flight: SegmentInFlight, result: SegmentResult, reference: int) -> None:
        """Learn from the time that a segment took, compared with what the profile predicted.

        Args:
            trial: the trial before the segment.
            in_flight: the segment, which has ended well.
            result: its result.
            reference: the batch size of the baseline, see `correct_times`.
        """
        # The first segment of a process includes its warm-up. That of the very first process counts for a while,
        # because nothing else is known; those of the others never count.
        if self.paces.first is None or not result.is_first:
            self.paces = self.paces.with_segment(in_flight.modelled_s, result.seconds)
        if not result.is_first:
            plan = trial.config.plan
            profiled_s = (in_flight.until_step - trial.steps_done) * optimizer_step_s(plan, self.profile)
            self.paces = self.paces.with_steps(plan.batch_size, profiled_s, result.train_s)
            self.correct_times(reference)

    def correct_times(self, reference: int) -> None:
        """Correct the step times of batch sizes that the profile is wrong about, for the trials to come.

        Otherwise, a trial at such a size would be compared after more training than the others, or after less. A trial
        that has begun keeps its number of steps: its schedule was built for them.

        Args:
            reference: the batch size of the baseline. T is the time of a training at that size.
        """
        self.costs = replace(self.costs, times=CorrectedTimes(self.profile, self.paces.off_by(reference)))

    @property
    def equivalents(self) -> float:
        """Full trials that the time pays for, spent or left, by what is known now."""
        workers = max(1, self.crew.size)  # a worker that was lost may be back when the run is resumed
        on_clock_s = self.spent_s + workers * self.ledger.available_s / self.paces.correction
        return min(self.allotment_s, on_clock_s) / self.costs.full_trial_s

    def left_s(self, *rounds: int) -> float:
        """Modelled seconds of work that may still begin, after what is kept for fresh seeds.

        The smallest of three: what is left of the allotment, the time of all workers on the clock, and that of one
        worker, since the segments of one trial follow one another.

        Args:
            rounds: how many confirmations to keep time for. Each round begins when the last one is over.
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
        """Whether the clock has time for a piece of work, at the latest pace."""
        return self.ledger.fits(modelled_s * self.paces.slowest_correction)

    def allot_what_is_left(self, least_s: float | None = None) -> bool:
        """Add to the allotment what the clock pays for beyond it, if that is `least_s` or a full trial. True if it did.

        This happens after trials that failed early, and when training is faster than the profile predicted.
        """
        on_clock_s = self.crew.size * self.ledger.available_s / self.paces.correction
        if self.spent_s + on_clock_s - self.allotment_s < (self.costs.full_trial_s if least_s is None else least_s):
            return False
        self.allotment_s = self.spent_s + on_clock_s
        return True
