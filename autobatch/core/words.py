"""The words for what comes back as data: how a run of a plan ended, and what ended the search for the largest batch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from .units import format_size

# Of a measurement and of a segment. What is not here is said as it is: "ok", "crashed", "diverged".
OUTCOMES: Mapping[str, str] = {
    "over_limit": "over the limit",
    "oom": "out of memory",
    "nonfinite": "loss is not a number",
    "timeout": "out of time",
    "raised": "the task raised",
}

_LIMITS: Mapping[str, str] = {
    "memory": "batch {batch} is the largest that fits{room}",
    "dataset": "batch {batch} fits, and the data is too small for a larger one to be worth trying",
    "ceiling": "batch {batch} fits, and no larger one was looked for",
    "task": "batch {batch} is the largest that the task takes",
    "time": "batch {batch} fits; larger ones would have taken more of the budget than they are worth",
}


def outcome_text(outcome: str) -> str:
    """An outcome in words."""
    return OUTCOMES.get(outcome, outcome)


def limit_sentence(limited_by: str, batch: str, budget_bytes: float | None) -> str:
    """Why a batch is the largest that was found, as a sentence without a full stop.

    Args:
        limited_by: as `MaxBatch` says it; another word, from a file, is told as it is.
        batch: the size, as it is to be written.
        budget_bytes: what a step may use; None where nobody says.
    """
    room = "" if budget_bytes is None else f" in {format_size(budget_bytes)}"
    return _LIMITS.get(limited_by, "batch {batch} fits; {limited_by}").format(
        batch=batch, room=room, limited_by=limited_by
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What belongs behind a message about a word that is none of those known: "; did you mean tpe?", or nothing."""
    close = difflib.get_close_matches(word.lower(), [*known], 1)
    return f"; did you mean {close[0]}?" if close else ""
