"""Every second of a run is charged to something, once."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.errors import SettingError
from autobatch.searching.budget.ledger import REPORT_MOST_S, Ledger, report_reserve_s
from autobatch.simulated.sim import VirtualClock

SECONDS = st.floats(0, 1e4, allow_nan=False)
KINDS = ("probing", "training", "evaluation", "other")

# A tree of work: each node is (kind, seconds before its children, children, seconds after).
WORK: st.SearchStrategy[Any] = st.recursive(
    st.tuples(st.sampled_from(KINDS), SECONDS, st.just([]), SECONDS),
    lambda inner: st.tuples(st.sampled_from(KINDS), SECONDS, st.lists(inner, max_size=3), SECONDS),
    max_leaves=8,
)


def do(work: tuple[str, float, list[object], float], ledger: Ledger, clock: VirtualClock) -> None:
    kind, before_s, children, after_s = work
    with ledger.charge(kind):
        clock.advance(before_s)
        for child in children:
            do(child, ledger, clock)  # type: ignore[arg-type]  # hypothesis has no type for a recursive strategy
        clock.advance(after_s)


@given(st.lists(WORK, max_size=4), SECONDS, SECONDS)
def test_the_entries_add_up_to_the_elapsed_time_exactly(work: list[object], began_s: float, idle_s: float) -> None:
    clock = VirtualClock(now_s=began_s)
    ledger = Ledger(1e6, clock, started_s=began_s / 3)
    for piece in work:
        do(piece, ledger, clock)  # type: ignore[arg-type]
        clock.advance(idle_s)
    assert sum(ledger.entries().values()) == ledger.elapsed_s
    assert all(seconds >= 0 for seconds in ledger.entries().values())
    assert ledger.elapsed_s == pytest.approx(clock.now_s - began_s / 3, abs=1e-5)


@given(st.lists(WORK, min_size=1, max_size=4), SECONDS)
def test_a_transfer_moves_time_and_makes_none(work: list[object], moved_s: float) -> None:
    clock = VirtualClock()
    ledger = Ledger(1e6, clock)
    for piece in work:
        do(piece, ledger, clock)  # type: ignore[arg-type]
    had = ledger.entries().get("training", 0.0)
    ledger.transfer("training", "checkpoints", moved_s)
    assert sum(ledger.entries().values()) == ledger.elapsed_s
    assert ledger.entries().get("training", 0.0) == pytest.approx(max(0.0, had - moved_s), abs=1e-5)


def test_time_inside_a_nested_charge_is_not_counted_twice() -> None:
    clock = VirtualClock()
    ledger = Ledger(60, clock)
    with ledger.charge("training"):
        clock.advance(3)
        with ledger.charge("evaluation"):
            clock.advance(2)
        clock.advance(1)
    clock.advance(0.5)
    assert ledger.entries() == {"training": 4.0, "evaluation": 2.0, "other": 0.5}


def test_a_charge_that_is_still_open_counts_already() -> None:
    clock = VirtualClock()
    ledger = Ledger(60, clock)
    with ledger.charge("probing"):
        clock.advance(2)
        assert ledger.entries()["probing"] == 2.0


def test_work_that_raises_is_charged() -> None:
    clock = VirtualClock()
    ledger = Ledger(60, clock)

    def fail() -> None:
        with ledger.charge("training"):
            clock.advance(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    clock.advance(1)
    assert ledger.entries() == {"training": 2.0, "other": 1.0}


def test_the_time_before_the_ledger_is_start_up() -> None:
    clock = VirtualClock(now_s=10)
    ledger = Ledger(60, clock, started_s=7)
    assert ledger.entries() == {"start-up": 3.0, "other": 0.0}
    assert ledger.remaining_s == 57


@given(st.floats(0.01, 1e6), st.floats(0, 2e6))
def test_what_fits_ends_before_the_report_is_due(budget_s: float, predicted_s: float) -> None:
    ledger = Ledger(budget_s, VirtualClock())
    assert ledger.fits(predicted_s) == (predicted_s <= ledger.available_s)
    assert ledger.available_s == pytest.approx(budget_s - report_reserve_s(budget_s))
    assert 0 < report_reserve_s(budget_s) <= REPORT_MOST_S


def test_nothing_fits_once_the_budget_is_spent() -> None:
    clock = VirtualClock()
    ledger = Ledger(10, clock)
    clock.advance(11)
    assert ledger.remaining_s == 0
    assert not ledger.fits(0.001)


def test_the_ledger_is_plain_data() -> None:
    clock = VirtualClock()
    ledger = Ledger(10, clock)
    with ledger.charge("report"):
        clock.advance(4)
    assert json.loads(json.dumps(ledger.to_json())) == {
        "budget_s": 10,
        "elapsed_s": 4.0,
        "entries": {"report": 4.0, "other": 0.0},
    }


@pytest.mark.parametrize("budget_s", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_is_positive_and_finite(budget_s: float) -> None:
    with pytest.raises(SettingError, match="a finite number of seconds above zero"):
        Ledger(budget_s, VirtualClock())


def test_a_run_cannot_have_started_after_now() -> None:
    with pytest.raises(ValueError, match="after now"):
        Ledger(10, VirtualClock(), started_s=1)


@pytest.mark.parametrize(("asked_s", "kept_s"), [(0.0, 1.0), (0.5, 1.0), (3.0, 3.0), (1e3, 10.0)])
def test_what_the_end_was_seen_to_take_is_kept_back(asked_s: float, kept_s: float) -> None:
    ledger = Ledger(200.0, VirtualClock())
    ledger.keep_back(asked_s)
    assert ledger.available_s == 200.0 - kept_s
    ledger.keep_back(0.0)  # once seen it may come again
    assert ledger.available_s == 200.0 - kept_s
