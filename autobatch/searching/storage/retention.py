"""Which checkpoints of a race are still needed; all others go, so that the disk of a long run is bounded."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.plan import Config
from ...core.runner import Runner
from ..history import History
from ..trials import Trial


def needed_checkpoints(history: History, *, keep: int, tests: bool, is_over: bool = False) -> dict[int, int]:
    """The step of the one checkpoint that each trial still needs, by its number; trials that need none are left out.

    Those that may go on need theirs, at step 0 none yet. Of the complete ones the best `keep` do, and until the race is
    over those that may be scored on the test data.

    Args:
        history: of the race.
        keep: so many of the complete trials keep theirs for good.
        tests: there is test data, on which the baseline and the finalist's first fresh run are scored.
        is_over: nothing will go on, or be scored.
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
    """The checkpoints that a race has left on the disk.

    Args:
        runner: writes and deletes them.
        keep: so many of the best complete trials keep theirs when the race is over.
    """

    def __init__(self, runner: Runner, keep: int) -> None:
        self._runner, self._keep = runner, keep
        self._steps: dict[int, int] = {}  # of those that are there, by trial

    def expect(self, trial: int) -> None:
        """Note that a trial is about to leave one."""
        self._steps.setdefault(trial, 0)

    def suspect(self, trials: Iterable[int]) -> None:
        """Take it that these trials have left any: nobody knows what a kill has left."""
        self._steps = dict.fromkeys(trials, -1)

    def tidy(self, history: History, *, is_over: bool) -> None:
        """Delete those that nothing will need.

        After the result is in the record: until then the segment may have to be run again.
        """
        tests = self._runner.facts().has_test_data
        needed = needed_checkpoints(history, keep=self._keep, tests=tests, is_over=is_over)
        for number in self._steps.keys() - needed.keys():
            self._runner.forget(number)
        for number, step in needed.items():
            if step != self._steps.get(number):
                self._runner.forget(number, before=step)
        self._steps = needed
