"""What a race has seen: its trials, and the questions that every decision asks of them.

The race passes one frozen value to everything that decides. So it is written only once which trial is the baseline,
which scores come from fresh seeds, and which of two scores is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..core.plan import Config, Direction
from .trials import DEFAULT_LADDER, ERRORS, Ladder, Trial, oriented

# So many trials that errors ended on one rung, which none has got past, and the fault is in the task. Assumed.
MOST_ERRORS = 10

# A configuration that failed under so many fresh seeds in a row is tried no more. Assumed: a hang may be the machine's.
MOST_FAILED_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class History:
    """The trials of a race, in the order of their numbers.

    Attributes:
        trials: all that were started, confirmations among them.
        direction: of the scores.
        ladder: the rungs that the trials climb.
    """

    trials: tuple[Trial, ...] = ()
    direction: Direction
    ladder: Ladder = DEFAULT_LADDER

    def updated(self, trial: Trial) -> History:
        """The history with this trial in the place of the one of its number, or behind the last one."""
        number = trial.number
        return replace(self, trials=(*self.trials[:number], trial, *self.trials[number + 1 :]))

    # Scores, turned so that higher is better

    def oriented(self, score: float) -> float:
        """A score, or a difference of two, with its sign turned so that higher is better."""
        return oriented(score, self.direction)

    def last(self, trial: Trial) -> float:
        """The oriented score at the highest rung that a trial has reached; it has one."""
        return self.oriented(trial.scores[-1][1])

    def final(self, trial: Trial) -> float | None:
        """The oriented score at the end of the schedule; None for a trial that did not get there."""
        return None if trial.final_score is None else self.oriented(trial.final_score)

    # Trials by what they are for

    @cached_property
    def racing(self) -> tuple[Trial, ...]:
        """The trials of the search and the baseline: all but the fresh seeds."""
        return tuple(trial for trial in self.trials if trial.role != "confirmation")

    @cached_property
    def confirmations(self) -> tuple[Trial, ...]:
        """The trials under fresh seeds."""
        return tuple(trial for trial in self.trials if trial.role == "confirmation")

    @cached_property
    def baseline(self) -> Trial | None:
        """The baseline's own run; None before it has begun."""
        return next((trial for trial in self.trials if trial.role == "baseline"), None)

    @cached_property
    def baseline_scores(self) -> tuple[float, ...]:
        """The baseline's full-length scores: that of its own run, then those under fresh seeds."""
        config = self.baseline.config if self.baseline else None
        of_baseline = (t for t in self.trials if t.config == config and not t.is_challenger)
        return tuple(score for trial in of_baseline if (score := trial.final_score) is not None)

    @cached_property
    def stuck(self) -> tuple[Trial, ...]:
        """The trials that errors ended on one rung, where they are `MOST_ERRORS` and none ever got past it; else none.

        What was tried must get past a rung for anything to be learned from it, whatever the configuration.
        """
        rivals = [trial for trial in self.trials if trial.is_challenger]
        furthest = max((len(trial.scores) for trial in rivals), default=0)
        ended = [t for t in rivals if t.state == "failed" and t.outcome in ERRORS and len(t.scores) == furthest]
        return tuple(ended) if len(ended) >= MOST_ERRORS else ()

    # What came to the end in the search

    @cached_property
    def full_length(self) -> tuple[float, ...]:
        """The oriented full-length score that each configuration but the baseline was judged by in the search."""
        return tuple(s for t in self.trials if t.is_challenger and (s := self.final(t)) is not None)

    @property
    def best(self) -> float:
        """The best of them; minus infinity where there is none."""
        return max(self.full_length, default=-math.inf)

    # Fresh seeds

    def fresh_scores(self, config: Config) -> tuple[float, ...]:
        """The scores of a configuration under fresh seeds."""
        found = (trial.final_score for trial in self.confirmations if trial.config == config)
        return tuple(score for score in found if score is not None)

    def has_failed_again(self, config: Config) -> bool:
        """Whether a configuration failed under a fresh seed, for whatever reason."""
        return any(trial.config == config and trial.state == "failed" for trial in self.confirmations)

    @cached_property
    def broken(self) -> frozenset[Config]:
        """Configurations that failed under a fresh seed by their own fault, or failed under several for any reason."""
        runs = self.confirmations
        return frozenset(t.config for t in runs if _is_its_own_fault(t) or _keeps_failing(t.config, runs))


def _is_its_own_fault(trial: Trial) -> bool:
    """A trial that ran out of the run's time says nothing against its configuration."""
    return trial.state == "failed" and trial.outcome != "timeout"


def _keeps_failing(config: Config, fresh_runs: Sequence[Trial]) -> bool:
    """Whether the last `MOST_FAILED_SEEDS` fresh seeds of a configuration all failed, for whatever reasons."""
    last = [other.state for other in fresh_runs if other.config == config][-MOST_FAILED_SEEDS:]
    return last == ["failed"] * MOST_FAILED_SEEDS
