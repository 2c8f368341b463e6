"""The progress of a run, as a stream of small events for whoever watches. render/ draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["start", "memory", "profile", "range test", "search", "confirmation", "report", "bench"]

# began   something is under way from now on
# found   it has a result
# failed  it ended without one
# note    none of these: something that the user should know
Kind = Literal["began", "found", "failed", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a race stands.

    Attributes:
        score: the best by now: of trials that were trained to the end, else the best at the furthest rung.
        noise: the standard deviation of such a score between seeds; None where nothing tells it yet.
        share: of a full training that `score` stands for.
        batch_size, lr: of that trial, the batch of an optimizer step.
        is_baseline: whether it is the baseline's.
        baseline: the baseline's own score at the end; None before that.
        rungs: how many trials stand at each rung, the lowest first, as pairs of its share and the count.
        failed: how many have failed.
        peak_bytes: of a training step at the largest batch that was found; None where nobody counts it.
        limit_bytes: what it may use; None where it is not known.
    """

    score: float
    noise: float | None
    share: float
    batch_size: int
    lr: float
    is_baseline: bool
    baseline: float | None
    rungs: tuple[tuple[float, int], ...]
    failed: int
    peak_bytes: float | None = None
    limit_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Something that began, ended with a result, or failed.

    Attributes:
        stage: of the run.
        kind: what kind of event it is.
        text: one line for a person; nothing is to be read from it.
        key: what it is about, the same in each event about that: "trial 3", "batch 128". Several may be under way at
            once. None where it is about the stage as a whole.
        predicted_s: how long what has just begun should take; None for every other kind, or where nobody knows.
        standing: how the race stands; None outside of one, and before anything has a score.
    """

    stage: Stage
    kind: Kind
    text: str
    key: str | None = None
    predicted_s: float | None = None
    standing: Standing | None = None


Listener = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """The listener of a run that nobody watches."""
