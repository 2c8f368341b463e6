"""What training takes over what the profile said: which batch sizes are given another time, and which are not."""

from __future__ import annotations

import json
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.json_reader import Reader
from autobatch.errors import ReportError
from autobatch.searching.budget.timing_correction import LEAST_TRAIN_S, CorrectedTimes, Paces

SECONDS = st.floats(0.01, 1e4)
RUNGS = st.lists(st.tuples(st.sampled_from([16, 32, 64]), SECONDS, SECONDS), max_size=12)


def after(segments: list[tuple[int, float, float]]) -> Paces:
    paces = Paces()
    for batch, profiled_s, measured_s in segments:
        paces = paces.with_segment(profiled_s, measured_s).with_steps(batch, profiled_s, measured_s)
    return paces


@given(RUNGS)
def test_paces_come_back_from_a_file_to_the_last_bit(segments: list[tuple[int, float, float]]) -> None:
    paces = after(segments)
    assert Paces.from_json(Reader(json.loads(json.dumps(paces.to_json())), "paces")) == paces


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([[16, 0.0]], "a batch size and a ratio, both above 0"),
        ([[16.5, 1.0]], "a batch size and a ratio, both above 0"),
        ([[16]], "a batch size and a ratio, both above 0"),
        ({}, "'steps' of paces is list"),
    ],
)
def test_paces_that_are_none_are_told(steps: object, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        Paces.from_json(Reader({**Paces().to_json(), "steps": steps}, "paces"))


@given(RUNGS, st.floats(0.1, 10))
def test_a_machine_that_is_slower_for_all_sizes_is_slower_for_none(
    segments: list[tuple[int, float, float]], slowdown: float
) -> None:
    """Where all segments are long enough to count, before and after."""
    long = [(batch, 10 + profiled_s, 10 + measured_s) for batch, profiled_s, measured_s in segments]
    slower = after([(batch, profiled_s, slowdown * measured_s) for batch, profiled_s, measured_s in long])
    assert slower.off_by(16) == pytest.approx(after(long).off_by(16))


@pytest.mark.parametrize("off", [0.5, 0.8, 1.1, 3.0])
def test_the_size_that_is_off_is_found_and_by_how_much_beside_the_baseline(off: float) -> None:
    paces = after([(batch, 10.0, 12.0 * (off if batch == 64 else 1.0)) for batch in (16, 64, 16, 32) * 4])
    assert paces.off_by(16) == {64: pytest.approx(off)}
    assert paces.off_by(64) == {16: pytest.approx(1 / off), 32: pytest.approx(1 / off)}
    assert paces.off_by(128) == {}  # nothing is known of it
    assert after([(64, 10.0, 10.0 * off)] * 9).off_by(64) == {}


def test_a_size_within_a_twentieth_is_left_alone() -> None:
    assert after([(batch, 10.0, 10.0 * (1.04 if batch == 64 else 1.0)) for batch in (16, 64) * 6]).off_by(16) == {}


@pytest.mark.parametrize("at", range(1, 12))
@pytest.mark.parametrize("reference", [16, 32, 64])
def test_a_machine_that_becomes_slower_makes_no_size_slower(at: int, reference: int) -> None:
    """Sizes tried late are not to be taken for slow ones: here 16 is tried before, 64 after, and 32 all along."""
    segments = [(batch, 10.0, 10.0) for batch in (16, 32) * 6][:at] + [(batch, 10.0, 20.0) for batch in (32, 64) * 6]
    assert after(segments).off_by(reference) == {}


@pytest.mark.parametrize("at", range(12))
@pytest.mark.parametrize("reference", [16, 32, 64])
def test_one_disturbed_segment_makes_no_size_slow(at: int, reference: int) -> None:
    """However quiet the others were."""
    segments = [(batch, 10.0, 25.0 if n == at else 10.0) for n, batch in enumerate((16, 32, 16, 64, 32, 64) * 2)]
    assert after(segments).off_by(reference) == {}


def test_a_restless_machine_seldom_passes_for_a_wrong_profile() -> None:
    """Rungs that take up to twice their time by chance alone, 32 in all: looked at after each, hardly a size is off."""
    wrong = 0
    for seed in range(100):
        chance, paces, is_wrong = random.Random(seed), Paces(), False
        for _ in range(32):
            paces = paces.with_steps(chance.choice((16, 32, 64, 128)), 10.0, 10.0 * chance.uniform(1.0, 2.0))
            is_wrong |= bool(paces.off_by(32))
        wrong += is_wrong
    assert wrong <= 12


def test_on_a_restless_machine_a_size_that_is_off_by_half_is_found() -> None:
    found = []
    for seed in range(50):
        chance, paces = random.Random(seed), Paces()
        for _ in range(32):
            batch = chance.choice((16, 32, 64, 128))
            paces = paces.with_steps(batch, 10.0, 10.0 * chance.uniform(1.0, 1.3) * (1.5 if batch == 64 else 1.0))
        found.append(paces.off_by(32).get(64))
    ratios = [off for off in found if off is not None]
    assert len(ratios) >= 40
    assert fmean(ratios) == pytest.approx(1.5, abs=0.1)


def test_short_segments_tell_nothing_of_a_size() -> None:
    short = 0.9 * LEAST_TRAIN_S
    assert after([(16, short / 3, short)] * 9 + [(32, short, short)] * 9).steps == ()


def test_corrected_times_change_the_steps_alone() -> None:
    class Flat:
        knee_batch_size = 32

        def step_s(self, batch_size: int) -> float:
            return 0.5

        def plan_for(self, *asked: object) -> None:
            return None

    times = CorrectedTimes(Flat(), {64: 1.5})
    assert (times.step_s(64), times.step_s(32), times.knee_batch_size) == (0.75, 0.5, 32)
    assert times.plan_for(64, 64, "fp32", 64) is None
