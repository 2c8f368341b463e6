"""The words for results that are data: how a run of a plan ended, and what limited the largest batch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from .units import format_size

# Outcomes of a measurement or a segment. The others are words already: "ok", "crashed", "diverged".
OUTCOMES: Mapping[str, str] = {
    "over_limit": "over the limit",
    "oom": "out of memory",
    "nonfinite": "loss is not a number",
    "timeout": "out of time",
    "raised": "the task raised",
}

_ERRORS: Mapping[str, str] = {
    "raised": "the task raised or exited",
    "crashed": "the worker or its checkpoint was lost",
}

_LIMITS: Mapping[str, str] = {
    "memory": "batch {batch} is the largest that fits{room}",
    "dataset": "batch {batch} fits, and the data is too small for a larger one to be worth trying",
    "ceiling": "batch {batch} fits, and no larger one was to be tried",
    "task": "batch {batch} is the largest that the task takes",
    "time": "batch {batch} fits; larger ones would have taken more of the budget than they are worth",
}


def outcome_text(outcome: str) -> str:
    """An outcome in words."""
    return OUTCOMES.get(outcome, outcome)


def error_sentence(outcome: str) -> str:
    """The cause of a segment's error, for an outcome in `searching.trials.ERRORS`."""
    return _ERRORS[outcome]


def limit_sentence(limited_by: str, batch: str, budget_bytes: float | None) -> str:
    """Why no larger batch is the answer, as a sentence without a full stop.

    Args:
        limited_by: `MaxBatch.limited_by`. A word from a file that is not known here is used as it is.
        batch: the batch size as text.
        budget_bytes: the memory that a step may use; None if unknown.
    """
    room = "" if budget_bytes is None else f" in {format_size(budget_bytes)}"
    return _LIMITS.get(limited_by, "batch {batch} fits; {limited_by}").format(
        batch=batch, room=room, limited_by=limited_by
    )


def no_proof_sentence(limited_by: str, batch: int, crashed_at: int | None) -> str:
    """Why nothing proves that the next larger size fails, as a sentence without a full stop.

    Args:
        limited_by: `MaxBatch.limited_by`.
        batch: the largest batch size.
        crashed_at: the larger size at which the worker crashed last; None if it did not.
    """
    if limited_by != "memory":
        return f"the batch is limited by the {limited_by}, and no size above {batch} was to be tried"
    if crashed_at is not None:
        return f"the worker crashed at {crashed_at}, and the cause may be something else than memory"
    return "the next size did not fit among others in one process; it was not run again in a fresh one"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: "; did you mean tpe?", or nothing if no known word is close."""
    close = difflib.get_close_matches(word.lower(), [*known], 1)
    return f"; did you mean {close[0]}?" if close else ""
