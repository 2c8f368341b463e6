"""Scores on test data, which no choice uses: one for the winner and one for the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.runner import Runner
from ..errors import CheckpointError, TaskError
from .budget.account import Account
from .history import History
from .trials import Trial, last_segment
from .verdict.confirmation import judge


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalTest:
    """The evaluation on test data at the end of a race.

    Attributes:
        runner: has the test data.
        account: the time of the race.
        eval_batch_size: samples per batch.
    """

    runner: Runner
    account: Account
    eval_batch_size: int

    @property
    def takes_s(self) -> float:
        """Modelled seconds of both scores, which no trial may use; 0 without test data.

        The test data is assumed to take no longer than the validation data.
        """
        return 2 * self.account.costs.eval_s if self.runner.facts().has_test_data else 0.0

    def scores(self, history: History) -> tuple[tuple[float | None, float | None], list[str]]:
        """The scores of the chosen configuration and of the baseline, and a note on each score that failed."""
        if not self.runner.facts().has_test_data:
            return (None, None), []
        verdict = judge(history)
        runs = [next((t for t in history.trials if t.role == "baseline" and t.state == "complete"), None)]
        if verdict.finalist_wins:
            fresh = (t for t in history.confirmations if t.config == verdict.finalist and t.state == "complete")
            runs.insert(0, next(fresh, None))
        notes: list[str] = []
        scores = [self._score(trial, notes) for trial in runs]
        return (scores[0], scores[-1]), notes

    def _score(self, trial: Trial | None, notes: list[str]) -> float | None:
        if trial is None or not self.account.fits(self.account.costs.eval_s):
            return None
        with self.account.ledger.charge("evaluation"):
            try:
                return self.runner.test_score(last_segment(trial, self.eval_batch_size))
            except (TaskError, CheckpointError) as error:  # the result is valid without it
                notes.append(f"there is no score on the test data: {error}")
                return None
