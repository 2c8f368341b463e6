"""Trials that failed, as sentences: which, of what, and in whose words. What blew up or did not fit is a finding of the
search; what the task raised, or what ended its process, is something to mend.
"""

from __future__ import annotations

from collections import defaultdict

from ...core.units import format_lr
from ..history import History
from ..trials import ERRORS, Trial

_SAID = {"raised": "the task raised or exited", "crashed": "the worker or its checkpoint was lost"}
# Characters of a message. Assumed: an exception's own line is shorter, and a traceback's start says nothing.
_MOST = 300
# Different messages that are shown; the rest are counted. Assumed.
_SHOWN = 3


def failed_trials(history: History) -> tuple[str, ...]:
    """A sentence for each message that trials failed with, the most frequent first; none where none failed so."""
    kinds: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in history.trials:
        if trial.state == "failed" and trial.outcome in ERRORS:
            kinds[trial.outcome, headline(trial.message)].append(trial)
    ranked = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    said = []
    for (outcome, message), failed in ranked[:_SHOWN]:
        config = failed[0].config
        at = f"batch {config.plan.effective_batch_size} at {format_lr(config.lr)}"
        which = f"the trial of {at}" if len(failed) == 1 else f"{len(failed)} trials, the first of {at},"
        said.append(f"{which} failed, out of {len(history.trials)}: {_SAID[outcome]}: {message}")
    rest = sum(len(failed) for _, failed in ranked[_SHOWN:])
    if rest:
        said.append(f"{rest} more trial{'s' if rest > 1 else ''} failed with other messages")
    return tuple(said)


def headline(message: str | None) -> str:
    """The first line of a message that says something, cut where it is endless."""
    line = next((line.strip() for line in (message or "").splitlines() if line.strip()), "no message")
    return line if len(line) <= _MOST else f"{line[:_MOST]}..."
