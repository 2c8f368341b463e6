"""What a run tells whoever watches it: a stream of small facts. Drawing them is elsewhere (render/)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["start", "memory", "profile", "range test", "search", "confirmation", "report", "bench"]

# began   something is under way from now on
# found   it gave a result
# failed  it came to its end without one
# note    nothing of these: what the user should know
Kind = Literal["began", "found", "failed", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Something has begun, was found or failed.

    Attributes:
        stage: of the run.
        kind: what kind of event it is.
        text: one line for a person; nothing is to be read from it.
        key: what it is about, the same in each event about that: "trial 3", "batch 128". Several may be under way at
            once. None where it is about the stage as a whole.
        predicted_s: how long what has just begun should take; None for every other kind, or where nobody knows.
    """

    stage: Stage
    kind: Kind
    text: str
    key: str | None = None
    predicted_s: float | None = None


Listener = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """The listener of a run that nobody watches."""
