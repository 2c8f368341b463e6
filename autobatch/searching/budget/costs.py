"""What work costs by the profile: the horizon, and the modelled seconds of a segment and of a trial."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.plan import Plan
from ...core.units import format_duration
from ...errors import BudgetTooShort
from ..trials import DEFAULT_LADDER, MIN_STEPS, Ladder, StepTimes, Trial, optimizer_step_s, total_steps
from .advice import enough_s, give_at_least, training_enough_s

RUNGS = 3  # evaluations of a full trial, as `Ladder` has them by default

# The number of full trials that a budget is divided into. Measured: at 16 the search leaves under half of the regret
# that it leaves at 8,
# and from there to 32 little is gained, while a longer trial is worth more to whoever trains long.
EQUIVALENTS = 16
# The number of full trials that follow one another on the clock when several are trained at once. Assumed: the segments
# of one trial and its fresh seeds follow one another, and the last trials should profit from the first ones.
IN_A_ROW = 8
# Full trials of the shortest race, for which a short budget is enough: the baseline, one other, and its fresh seed.
LEAST_EQUIVALENTS = 3


def horizon_s(
    remaining_s: float,
    train_time_s: float | None,
    *,
    eval_s: float,
    baseline_step_s: float,
    least_s: float = 0.0,
    rung_s: float = 0.0,
    rungs: int = RUNGS,
    repeats: float = 1.0,
    spent_s: float = 0.0,
    at_once: int = 1,
) -> float:
    """Seconds of training in one full trial: the user's training time, or a 16th of what remains if that is less.

    With several workers it is an eighth of what remains, so that two or more workers train 16 trials or more. If such a
    trial would have fewer than `MIN_STEPS` steps of the baseline, it has these, and the race has fewer trials.

    Args:
        remaining_s: seconds that may be planned into (`Ledger.available_s`).
        train_time_s: how long the user trains; None if unknown.
        eval_s: seconds of one evaluation; a full trial pays for one at each rung.
        baseline_step_s: seconds of one optimizer step of the baseline.
        least_s: seconds of training before which the task has no score.
        rung_s: seconds that a trial trains for at least, where beginning it costs much, if fewer trials leave them.
        rungs: the number of rungs in a full trial.
        repeats: times that a full trial trains its own length; see `Ladder.repeats`.
        spent_s: seconds that everything before took; for the message only.
        at_once: trials that are trained at the same time.

    Raises:
        BudgetTooShort: not even `LEAST_EQUIVALENTS` trials of `MIN_STEPS` steps fit; the message says which budget
            would do.
    """
    steps_s = MIN_STEPS * baseline_step_s
    extra_s = rungs * eval_s
    if train_time_s is not None and train_time_s < steps_s:
        raise BudgetTooShort(
            f"a training of {format_duration(train_time_s)} is fewer than {MIN_STEPS} steps of the baseline. "
            f"{give_at_least(training_enough_s(steps_s), 'a training time of ')}"
        )
    if train_time_s is not None and train_time_s < least_s:
        raise BudgetTooShort(
            f"a training of {format_duration(train_time_s)} is over before the first score, which the baseline took "
            f"{format_duration(least_s)} to. {give_at_least(training_enough_s(least_s), 'a training time of ')}"
        )
    in_a_row = EQUIVALENTS if at_once == 1 else IN_A_ROW
    affordable_s = (remaining_s / in_a_row - extra_s) / repeats
    least_s = max(steps_s, least_s)
    for wanted_s in (max(least_s, rung_s), least_s):
        if affordable_s < wanted_s and remaining_s >= LEAST_EQUIVALENTS * (repeats * wanted_s + extra_s):
            affordable_s = wanted_s
    if affordable_s < least_s:
        needed_s = enough_s(in_a_row * (repeats * least_s + extra_s), spent_s)
        of = f"at least {MIN_STEPS} baseline steps, evaluation included"
        if least_s > steps_s:
            of = f"the {format_duration(least_s)} that the baseline took to its first score"
        raise BudgetTooShort(
            f"a comparison takes {LEAST_EQUIVALENTS} trials of {of}; "
            f"{format_duration(max(0.0, remaining_s))} of the budget remain. {give_at_least(needed_s)}"
        )
    return affordable_s if train_time_s is None else min(train_time_s, affordable_s)


def ladder_for(
    remaining_s: float,
    train_time_s: float | None,
    *,
    eval_s: float,
    rung_s: float,
    resumes: bool,
    at_once: int = 1,
    ladder: Ladder = DEFAULT_LADDER,
) -> Ladder:
    """The rungs of which each trains for `rung_s` at the horizon that they leave; at least the last one.

    Where beginning a rung costs much, or trains again what was trained, three of them would leave no time to train in.

    Args:
        remaining_s, train_time_s, eval_s, at_once: as `horizon_s` takes them.
        rung_s, resumes: as `TaskFacts` says them.
        ladder: all that there may be.
    """
    in_a_row = EQUIVALENTS if at_once == 1 else IN_A_ROW
    while rung_s and len(ladder.shares) > 1:
        most_s = (remaining_s / in_a_row - len(ladder.shares) * eval_s) / ladder.repeats(resumes=resumes)
        horizon_s = most_s if train_time_s is None else min(train_time_s, most_s)
        if ladder.shares[0] * horizon_s >= rung_s:
            break
        ladder = Ladder(shares=ladder.shares[1:])
    return ladder


def least_budget_s(baseline_step_s: float, *, eval_s: float, spent_s: float, rungs: int = RUNGS) -> float:
    """Seconds of a budget that pays for a whole race of the shortest trials; see `horizon_s`."""
    return enough_s(EQUIVALENTS * (MIN_STEPS * baseline_step_s + rungs * eval_s), spent_s)


def worth_step_s(remaining_s: float, train_time_s: float | None) -> float:
    """Seconds of the longest step that a full trial in what remains takes often enough, if nothing else cost time."""
    return min(remaining_s / IN_A_ROW, math.inf if train_time_s is None else train_time_s) / MIN_STEPS


def longest_evaluation_s(remaining_s: float, rungs: int = RUNGS) -> float:
    """Seconds of an evaluation that is too long for any budget with this much left, see `horizon_s`."""
    return remaining_s / (LEAST_EQUIVALENTS * rungs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Modelled seconds of every piece of work of a race.

    Attributes:
        times: the throughput profile.
        ladder: the rungs of a trial.
        horizon_s: seconds of training of a full trial.
        eval_s: seconds of one evaluation. Checkpoints are not modelled; the ledger counts their time.
        resumes: False where each segment begins from nothing, and trains again what those before it had trained.
    """

    times: StepTimes
    ladder: Ladder
    horizon_s: float
    eval_s: float
    resumes: bool = True

    @property
    def full_trial_s(self) -> float:
        """A trial through all its rungs."""
        repeats = self.ladder.repeats(resumes=self.resumes)
        return repeats * self.horizon_s + len(self.ladder.shares) * self.eval_s

    @property
    def confirmation_s(self) -> float:
        """A trial without rungs, trained and evaluated in one segment."""
        return self.horizon_s + self.eval_s

    def segment_s(self, trial: Trial, until_step: int) -> float:
        """Training `trial` from where it stands to `until_step`, with its evaluation."""
        steps = until_step - (trial.steps_done if self.resumes else 0)
        return self.steps_s(trial.config.plan, steps) + self.eval_s

    def steps_s(self, plan: Plan, steps: int) -> float:
        """So many optimizer steps of `plan`."""
        return steps * optimizer_step_s(plan, self.times)

    def finish_s(self, trial: Trial) -> float:
        """Training `trial` from where it stands to its end, rung by rung."""
        rungs_left = len(self.ladder.shares) - len(trial.scores)
        again = 0 if self.resumes else sum(self._until(trial)[len(trial.scores) : -1])
        again_s = self.steps_s(trial.config.plan, again)
        return self.segment_s(trial, trial.total_steps) + again_s + (rungs_left - 1) * self.eval_s

    def _until(self, trial: Trial) -> list[int]:
        return [self.ladder.until(level, trial.total_steps) for level in range(len(self.ladder.shares))]

    def total_steps(self, plan: Plan) -> int:
        """Optimizer steps of a full trial of `plan`."""
        return total_steps(plan, self.times, self.horizon_s)
