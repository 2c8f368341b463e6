"""Which checkpoints of a race are still needed. All others are deleted, so that a long run needs a bounded disk."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.plan import Config
from ...core.runner import Runner
from ..history import History
from ..trials import Trial


def needed_checkpoints(history: History, *, keep: int, tests: bool, is_over: bool = False) -> dict[int, int]:
    """By trial number, the step of the one checkpoint that the trial still needs. Trials that need none are left out.

    A trial that may go on needs its checkpoint; one at step 0 has none yet. Of the complete trials, the best `keep`
    need theirs, and until the race is over, those that may be scored on the test data.

    Args:
        history: of the race.
        keep: how many of the best complete trials keep their checkpoints for good.
        tests: whether there is test data, on which the baseline and the finalist's first fresh run are scored.
        is_over: whether the race is over, so that nothing will continue or be scored.
    """
    complete = [(score, trial) for trial in history.trials if (score := history.final(trial)) is not None]
    best = sorted(complete, key=lambda pair: (-pair[0], pair[1].number))[:keep]
    needed = {trial.number: trial.steps_done for _, trial in best}
    if is_over:
        return needed
    tested: dict[tuple[str, Config], Trial] = {}
    for _, trial in complete:
        if tests and trial.role in ("baseline", "confirmation"):
            tested.setdefault((trial.role, trial.config), trial)
    waiting = [trial for trial in history.trials if trial.state in ("running", "paused")]
    return needed | {trial.number: trial.steps_done for trial in (*tested.values(), *waiting)}


class Checkpoints:
    """The checkpoints that a race has on the disk.

    Args:
        runner: writes and deletes them.
        keep: how many of the best complete trials keep their checkpoints when the race is over.
    """

    def __init__(self, runner: Runner, keep: int) -> None:
        self._runner, self._keep = runner, keep
        self._steps: dict[int, int] = {}  # of the checkpoints on the disk, by trial

    def expect(self, trial: int) -> None:
        """Record that a trial is about to write one."""
        self._steps.setdefault(trial, 0)

    def suspect(self, trials: Iterable[int]) -> None:
        """Assume that these trials may have any checkpoints: a killed process may have left some."""
        self._steps = dict.fromkeys(trials, -1)

    def tidy(self, history: History, *, is_over: bool) -> None:
        """Delete the checkpoints that nothing will need.

        Call it after the result is in the record: until then the segment may have to run again.
        """
        tests = self._runner.facts().has_test_data
        needed = needed_checkpoints(history, keep=self._keep, tests=tests, is_over=is_over)
        for number in self._steps.keys() - needed.keys():
            self._runner.forget(number)
        for number, step in needed.items():
            if step != self._steps.get(number):
                self._runner.forget(number, before=step)
        self._steps = needed
