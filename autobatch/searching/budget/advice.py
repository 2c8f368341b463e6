"""How much time to advise when a budget is too short. Every "at least" is written here, and following it is enough."""

from __future__ import annotations

import math

from .ledger import REPORT_MOST_S, REPORT_SHARE

# The share of the budget, after start-up, that each stage before the race may use. Assumed: the race is what the budget
# is
# for, and a profile of 5.5 s was as good as one of 11 (measuring/profiling.py).
MEMORY_SHARE = 0.05
PROFILE_SHARE = 0.05
SWEEP_SHARE = 0.03

# A factor on the predicted work. Measured: of six runs whose budget followed an advice with a factor of 1.01, three
# were refused again, for up to 1.13 times as much. Their machine's steps were timed a second time.
_MARGIN = 1.25


def enough_s(work_s: float, spent_s: float) -> float:
    """Seconds of a budget that leaves this much work to a race on this machine.

    Args:
        work_s: seconds of the race.
        spent_s: seconds that everything before the race took. That budget may have been shorter; the stages take their
            share of a longer one too.
    """
    before_report_s = (_MARGIN * work_s + spent_s) / (1 - MEMORY_SHARE - PROFILE_SHARE - SWEEP_SHARE)
    return min(before_report_s / (1 - REPORT_SHARE), before_report_s + REPORT_MOST_S)


def training_enough_s(steps_s: float) -> float:
    """Seconds of a training time for steps that took `steps_s` when they were timed."""
    return _MARGIN * steps_s


def typed(seconds: float) -> str:
    """A duration as it is typed after --budget, rounded up: `45s`, `4m05s`, `1h10m`."""
    for unit_s, below_s in ((1, 120), (5, 1200), (60, 7200), (600, math.inf)):
        whole = math.ceil(seconds / unit_s) * unit_s
        if whole < below_s:
            break
    hours, rest = divmod(max(1, whole), 3600)
    minutes, left = divmod(rest, 60)
    if not hours:
        return f"{minutes}m{left:02d}s" if minutes and left else f"{minutes}m" if minutes else f"{left}s"
    return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"


def give_at_least(seconds: float, what: str = "") -> str:
    """The advice as a sentence, without its full stop."""
    return f"Give {what}at least {typed(seconds)}"
