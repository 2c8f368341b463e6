"""Which checkpoints of a race are still needed; all others go, so that the disk of a long run is bounded."""

from __future__ import annotations

from ..core.plan import Config
from .history import History
from .trials import Trial


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
