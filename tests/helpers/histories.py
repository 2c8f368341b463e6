"""Histories of races, made of trials that a test has made up."""

from __future__ import annotations

from collections.abc import Iterable

from autobatch.core.plan import Direction
from autobatch.searching.history import History
from autobatch.searching.trials import DEFAULT_LADDER, Ladder, Trial


def history(trials: Iterable[Trial], direction: Direction = "maximize", ladder: Ladder = DEFAULT_LADDER) -> History:
    """What a race has seen that consists of these trials."""
    return History(trials=tuple(trials), direction=direction, ladder=ladder)
