"""What a run tells whoever watches it: a stream of small facts. Drawing them is elsewhere (render/)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["start", "memory", "profile", "range test", "search", "confirmation", "report", "bench"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Something has begun or was found.

    Attributes:
        stage: of the run.
        text: one line for a person.
        predicted_s: how long what has just begun should take; None for a finding, or where nobody knows.
        piece: the trial that it is about, where several may be under way at once.
    """

    stage: Stage
    text: str
    predicted_s: float | None = None
    piece: int | None = None


Listener = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """The listener of a run that nobody watches."""
