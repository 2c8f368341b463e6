"""What is told of a race while it goes on: the best by now, where its trials stand, what failed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from autobatch.core.plan import Config, Plan
from autobatch.core.progress import Standing
from autobatch.searching.history import History
from autobatch.searching.search import Event
from autobatch.searching.standing import standing_of
from autobatch.simulated.sim import SimRunner
from tests.helpers.reports import CHOSEN, YOURS, trial

from .test_search import race


def history(*trials: Any, direction: Any = "maximize") -> History:
    return History(trials=trials, direction=direction)


def test_before_anything_has_a_score_nothing_stands() -> None:
    assert standing_of(history()) is None
    assert standing_of(history(trial(0, YOURS, "baseline", (), state="running"))) is None


@pytest.mark.parametrize(("direction", "best"), [("maximize", 0.975), ("minimize", 0.951)])
def test_the_best_is_the_best_of_those_that_were_trained_to_the_end(direction: Any, best: float) -> None:
    # A trial that is ahead at an earlier rung does not compare.
    ahead = trial(2, Config(plan=Plan(batch_size=64), lr=0.1), "search", (0.999,))
    behind = trial(3, Config(plan=Plan(batch_size=64), lr=0.2), "search", (0.001,))
    found = standing_of(
        history(
            trial(0, YOURS, "baseline", (0.91, 0.94, 0.951)),
            trial(1, CHOSEN, "search", (0.92, 0.95, 0.975)),
            ahead,
            behind,
            direction=direction,
        )
    )
    assert found is not None
    assert (found.score, found.share, found.baseline) == (best, 1.0, 0.951)
    assert found.is_baseline == (direction == "minimize")
    assert found.rungs == ((0.125, 2), (1.0, 2))


def test_before_the_end_of_any_the_furthest_are_compared() -> None:
    lr = [Config(plan=Plan(batch_size=64), lr=0.1 * (number + 1)) for number in range(3)]
    first = trial(0, lr[0], "search", (0.5, 0.6))
    found = standing_of(history(first, trial(1, lr[1], "search", (0.9,)), trial(2, lr[2], "search", ())))
    assert found is not None
    assert (found.score, found.share, found.noise, found.baseline) == (0.6, 0.5, None, None)


def test_fresh_seeds_tell_the_noise() -> None:
    seeds = [trial(2 + i, CHOSEN, "confirmation", (0.9, 0.95, 0.97 + i / 100)) for i in range(3)]
    found = standing_of(
        history(
            trial(0, YOURS, "baseline", (0.9, 0.94, 0.951)), trial(1, CHOSEN, "search", (0.92, 0.95, 0.975)), *seeds
        )
    )
    assert found is not None
    assert found.noise == pytest.approx(0.01, rel=0.6)
    assert found.score == 0.975  # of the search: a fresh seed is no trial of it


def test_a_race_tells_how_it_stands_with_each_event_and_is_not_changed_by_that() -> None:
    seen: list[Event] = []
    told = race(SimRunner(), budget_s=60.0, on_event=seen.append)
    silent = race(SimRunner(), budget_s=60.0)
    assert told.result.trials == silent.result.trials
    standings = [event.standing for event in seen]
    assert standings[0] is None
    later = [standing for standing in standings[2:] if isinstance(standing, Standing)]
    assert len(later) == len(standings) - 2
    assert all(sum(count for _, count in one.rungs) <= len(told.result.trials) for one in later)
    assert later[-1].noise is not None
    assert later[-1].baseline == told.result.history.baseline_scores[0]
    assert dataclasses.replace(later[-1], noise=None) == dataclasses.replace(later[-1], noise=None)
