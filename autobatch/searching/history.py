"""What a race has seen: its trials, and the questions that every decision asks about them.

The race passes one frozen value to everything that decides. So there is one place that knows which trial is the
baseline, which scores come from fresh seeds, and which of two scores is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..core.plan import Config, Direction
from .trials import DEFAULT_LADDER, ERRORS, Ladder, Trial, oriented

# If this many trials ended in errors on one rung, and none got past it, the task is at fault. Assumed.
MOST_ERRORS = 10

# A configuration is not tried again after this many failures under fresh seeds in a row. Assumed: a hang may be the
# machine's fault.
MOST_FAILED_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class History:
    """The trials of a race, in the order of their numbers.

    Attributes:
        trials: all that were started, including confirmations.
        direction: whether a higher or a lower score is better.
        ladder: the rungs of the trials.
    """

    trials: tuple[Trial, ...] = ()
    direction: Direction
    ladder: Ladder = DEFAULT_LADDER

    def updated(self, trial: Trial) -> History:
        """The history with this trial, which replaces an earlier state of it."""
        number = trial.number
        return replace(self, trials=(*self.trials[:number], trial, *self.trials[number + 1 :]))

    # Scores, with their sign turned so that higher is better

    def oriented(self, score: float) -> float:
        """A score, or a difference of two, with its sign turned so that higher is better."""
        return oriented(score, self.direction)

    def last(self, trial: Trial) -> float:
        """The oriented score at the highest rung that a trial has reached. The trial must have a score."""
        return self.oriented(trial.scores[-1][1])

    def final(self, trial: Trial) -> float | None:
        """The oriented score at the end of the schedule; None if the trial did not get there."""
        return None if trial.final_score is None else self.oriented(trial.final_score)

    # Trials by their role

    @cached_property
    def racing(self) -> tuple[Trial, ...]:
        """The trials of the search and the baseline: all but those under fresh seeds."""
        return tuple(trial for trial in self.trials if trial.role != "confirmation")

    @cached_property
    def confirmations(self) -> tuple[Trial, ...]:
        """The trials under fresh seeds."""
        return tuple(trial for trial in self.trials if trial.role == "confirmation")

    @cached_property
    def baseline(self) -> Trial | None:
        """The baseline's own run; None before it begins."""
        return next((trial for trial in self.trials if trial.role == "baseline"), None)

    @cached_property
    def baseline_scores(self) -> tuple[float, ...]:
        """The baseline's full-length scores: first that of its own run, then those under fresh seeds."""
        config = self.baseline.config if self.baseline else None
        of_baseline = (t for t in self.trials if t.config == config and not t.is_challenger)
        return tuple(score for trial in of_baseline if (score := trial.final_score) is not None)

    @cached_property
    def stuck(self) -> tuple[Trial, ...]:
        """At least `MOST_ERRORS` trials that ended in errors on one rung that no trial ever got past; else none.

        A race learns nothing if no configuration gets past a rung.
        """
        rivals = [trial for trial in self.trials if trial.is_challenger]
        furthest = max((len(trial.scores) for trial in rivals), default=0)
        ended = [t for t in rivals if t.state == "failed" and t.outcome in ERRORS and len(t.scores) == furthest]
        return tuple(ended) if len(ended) >= MOST_ERRORS else ()

    # Full-length scores of the search

    @cached_property
    def full_length(self) -> tuple[float, ...]:
        """The oriented full-length scores of the search, one for each configuration but the baseline."""
        return tuple(s for t in self.trials if t.is_challenger and (s := self.final(t)) is not None)

    @property
    def best(self) -> float:
        """The best of `full_length`; minus infinity if there is none."""
        return max(self.full_length, default=-math.inf)

    # Fresh seeds

    def fresh_scores(self, config: Config) -> tuple[float, ...]:
        """The scores of a configuration under fresh seeds."""
        scores = (trial.final_score for trial in self.confirmations if trial.config == config)
        return tuple(score for score in scores if score is not None)

    def has_failed_again(self, config: Config) -> bool:
        """Whether a configuration failed under a fresh seed, for any reason."""
        return any(trial.config == config and trial.state == "failed" for trial in self.confirmations)

    @cached_property
    def broken(self) -> frozenset[Config]:
        """Configurations that failed under a fresh seed by their own fault, or under several for any reason."""
        runs = self.confirmations
        return frozenset(t.config for t in runs if _is_its_own_fault(t) or _keeps_failing(t.config, runs))


def _is_its_own_fault(trial: Trial) -> bool:
    """Whether the configuration is at fault. It is not if the time of the run was over."""
    return trial.state == "failed" and trial.outcome != "timeout"


def _keeps_failing(config: Config, fresh_runs: Sequence[Trial]) -> bool:
    """Whether the last `MOST_FAILED_SEEDS` fresh seeds of a configuration all failed, for any reason."""
    last = [other.state for other in fresh_runs if other.config == config][-MOST_FAILED_SEEDS:]
    return last == ["failed"] * MOST_FAILED_SEEDS
