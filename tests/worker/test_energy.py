"""Energy by whole ticks of a counter, or by sampled power."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.worker.energy import energy_of


@dataclass
class Card:
    """A card that draws `power_w` while it works, and shows what it has used only every `tick_s`."""

    power_w: float = 300.0
    tick_s: float = 0.1
    offset_s: float = 0.03
    step_s: float = 0.007
    has_counter: bool = True
    moves: bool = True
    now_s: float = 0.0
    calls: int = 0

    def joules(self) -> float | None:
        if not self.has_counter:
            return None
        shown_at = (self.now_s + self.offset_s) // self.tick_s * self.tick_s - self.offset_s
        return 1e6 + (self.power_w * shown_at if self.moves else 0.0)

    def watts(self) -> float | None:
        return None

    def synchronize(self) -> None:
        return None

    def work(self) -> None:
        self.calls += 1
        self.now_s += self.step_s

    def clock(self) -> float:
        return self.now_s


@settings(max_examples=80, deadline=None)
@given(
    tick_s=st.floats(0.001, 0.15),
    offset_s=st.floats(0, 0.15),
    step_s=st.floats(1e-3, 0.4),
    power_w=st.floats(5, 700),
)
def test_whatever_the_tick_a_step_has_its_power_times_its_time(
    tick_s: float, offset_s: float, step_s: float, power_w: float
) -> None:
    card = Card(power_w=power_w, tick_s=tick_s, offset_s=offset_s, step_s=step_s)
    found = energy_of(card.work, card, call_s=step_s, budget_s=10.0, clock=card.clock)
    assert found is not None
    assert found.joules == pytest.approx(power_w * step_s, rel=0.1)
    assert found.watts == pytest.approx(power_w, rel=0.1)


def test_reading_before_and_after_would_be_off_where_whole_ticks_are_not() -> None:
    card = Card()
    before = card.joules()
    for _ in range(20):  # 0.14 s, in which one tick falls
        card.work()
    after = card.joules()
    assert before is not None
    assert after is not None
    assert (after - before) / 20 == pytest.approx(300 * 0.005)  # 29 % too little
    found = energy_of(card.work, card, call_s=0.007, budget_s=2.0, clock=card.clock)
    assert found is not None
    assert found.joules == pytest.approx(300 * 0.007, rel=0.01)


@pytest.mark.parametrize(
    ("card", "budget_s"),
    [
        (Card(moves=False), 10.0),  # a counter that stands still
        (Card(has_counter=False), 10.0),  # neither a counter nor power
        (Card(), 0.4),  # no time for ten ticks
    ],
)
def test_what_cannot_be_known_is_none(card: Card, budget_s: float) -> None:
    assert energy_of(card.work, card, call_s=card.step_s, budget_s=budget_s, clock=card.clock) is None


def test_too_short_a_budget_costs_nothing() -> None:
    card = Card()
    energy_of(card.work, card, call_s=card.step_s, budget_s=0.1, clock=card.clock)
    assert card.calls == 0


@dataclass
class Sampled(Card):
    has_counter: bool = False

    def watts(self) -> float | None:
        return self.power_w


def test_without_a_counter_the_power_is_sampled_beside_the_work() -> None:
    import time

    card = Sampled(power_w=50.0)
    found = energy_of(lambda: time.sleep(0.01), card, call_s=0.01, budget_s=0.5)
    assert found is not None
    assert found.watts == 50.0
    assert found.joules >= 50.0 * 0.01
