"""Trials that failed, as sentences with the configuration and the message.

A trial that diverged or ran out of memory is a result of the search. An error of the task, or a process that ended, is
something to fix.
"""

from __future__ import annotations

from collections import defaultdict

from ...core.units import format_lr
from ...core.words import error_sentence
from ..history import History
from ..trials import ERRORS, Trial

# The most characters of a message. Assumed: the line of an exception is shorter, and the start of a traceback says
# nothing.
_MOST = 300
# The most different messages that are shown. The others are counted. Assumed.
_SHOWN = 3


def failed_trials(history: History) -> tuple[str, ...]:
    """A sentence for each message that trials failed with, the most frequent first; empty if there is none."""
    kinds: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in history.trials:
        if trial.state == "failed" and trial.outcome in ERRORS:
            kinds[trial.outcome, headline(trial.message)].append(trial)
    ranked = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    sentences = []
    for (outcome, message), failed in ranked[:_SHOWN]:
        config = failed[0].config
        at = f"batch {config.plan.effective_batch_size} at {format_lr(config.lr)}"
        which = f"the trial of {at}" if len(failed) == 1 else f"{len(failed)} trials, the first of {at},"
        sentences.append(f"{which} failed, out of {len(history.trials)}: {error_sentence(outcome)}: {message}")
    rest = sum(len(failed) for _, failed in ranked[_SHOWN:])
    if rest:
        sentences.append(f"{rest} more trial{'s' if rest > 1 else ''} failed with other messages")
    return tuple(sentences)


def headline(message: str | None) -> str:
    """The first line of a message that is not empty, cut if it is very long."""
    line = next((line.strip() for line in (message or "").splitlines() if line.strip()), "no message")
    return line if len(line) <= _MOST else f"{line[:_MOST]}..."
