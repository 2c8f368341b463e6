"""What a race has seen, asked in every way that a decision asks it."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.plan import Direction
from autobatch.searching.history import MOST_FAILED_SEEDS

from ..helpers.histories import history
from .verdict.test_confirmation import config, confirmed, searched, trial


def test_a_race_that_has_not_begun_has_nothing_to_say() -> None:
    seen = history([])
    assert seen.baseline is None
    assert [*seen.baseline_scores, *seen.full_length, *seen.racing, *seen.confirmations] == []
    assert seen.best == -math.inf
    assert not seen.broken


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_scores_are_sorted_by_what_they_are_for(direction: Direction, sign: int) -> None:
    trials = confirmed(searched(sign * 0.5, sign * 0.9, sign * 0.6), config(1), sign * 0.8, None)
    seen = history(confirmed(trials, config(0), sign * 0.4), direction)
    assert seen.baseline == trials[0]
    assert seen.baseline_scores == (sign * 0.5, sign * 0.4)  # as they are
    assert seen.full_length == (0.9, 0.6)  # turned so that higher is better
    assert seen.best == 0.9
    assert seen.fresh_scores(config(1)) == (sign * 0.8,)
    assert seen.has_failed_again(config(1))
    assert not seen.has_failed_again(config(0))
    assert [one.number for one in seen.racing] == [0, 1, 2]
    assert [one.number for one in seen.confirmations] == [3, 4, 5]
    assert seen.final(trials[1]) == seen.last(trials[1]) == 0.9


def test_a_configuration_is_broken_by_its_own_fault_or_by_failing_again_and_again() -> None:
    trials = searched(0.5, 0.9, 0.6)

    def hung(times: int) -> frozenset[object]:
        fresh = [trial(3 + n, config(1), "confirmation", None, "timeout") for n in range(times)]
        return history([*trials, *fresh]).broken

    assert history(confirmed(trials, config(1), None)).broken == {config(1)}
    assert hung(MOST_FAILED_SEEDS - 1) == frozenset()
    assert hung(MOST_FAILED_SEEDS) == {config(1)}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
def test_an_update_changes_one_trial_and_no_history_that_was_handed_out(
    scores: list[float], data: st.DataObject
) -> None:
    before = history(searched(0.5, *scores))
    number = data.draw(st.integers(0, len(before.trials)))
    known = before.trials[number] if number < len(before.trials) else trial(number, config(number), "search", 0.1)
    changed = replace(known, seconds=1.0)
    assert before.best == max(scores)
    after = before.updated(changed)
    assert after.trials[number] == changed
    assert after.trials[:number] + after.trials[number + 1 :] == before.trials[:number] + before.trials[number + 1 :]
    assert before == history(searched(0.5, *scores))
    with pytest.raises(FrozenInstanceError):
        before.trials = ()  # type: ignore[misc]
