"""A recording says again what was measured, on a machine that has no such device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.facts import MemoryLimit
from autobatch.core.plan import Plan
from autobatch.core.runner import Prober
from autobatch.errors import DoesNotFit, ReportError
from autobatch.measuring.memory import MaxBatch, find_max_batch_size
from autobatch.simulated.recording import Recorder, Recording, ReplayProber
from autobatch.simulated.replay import ReplayRunner
from autobatch.simulated.sim import SimRunner, sim_facts

TABLE = Path(__file__).parents[1] / "recordings" / "made_table.json"


def search(prober: Prober, **options: Any) -> MaxBatch:
    size = prober.facts().train_size
    assert size is not None
    return find_max_batch_size(prober, Plan(batch_size=1), ceiling=size, ceiling_is="dataset", **options)


def recorded(runner: SimRunner, **options: Any) -> tuple[MaxBatch, Recording]:
    recorder = Recorder(runner)
    found = search(recorder, **options)
    recording = recorder.recording({"device": "a formula"})
    assert recording is not None
    return found, recording


@given(st.integers(0, 400), st.integers(1, 40), st.sampled_from([0.0, 0.05]), st.booleans())
def test_a_replayed_search_is_the_search_that_was_recorded(
    fixed: int, slope: int, headroom: float, reads_peak: bool
) -> None:
    runner = SimRunner(peak_bytes=lambda batch: (fixed + slope * batch) << 20, headroom=headroom, reads_peak=reads_peak)
    found, recording = recorded(runner, prove=True)
    again = search(ReplayProber(recording, sim_facts()), prove=True)
    assert again == found
    assert again.to_json() == found.to_json()


def test_a_file_keeps_all_of_it(tmp_path: Path) -> None:
    _, recording = recorded(SimRunner())
    recording.save(tmp_path / "probes.json")
    assert Recording.load(tmp_path / "probes.json") == recording


def test_between_two_sizes_that_ran_the_peak_is_on_their_line_and_beyond_a_refusal_nothing_runs() -> None:
    runner = SimRunner(peak_bytes=lambda batch: (100 + batch) << 20, capacity_bytes=1000 << 20, headroom=0.0)
    recorder = Recorder(runner)
    recorder.facts()
    recorder.memory()
    for size in (100, 300, 2000):
        recorder.probe(Plan(batch_size=size))
    recording = recorder.recording({})
    assert recording is not None
    replay = ReplayProber(recording, sim_facts())
    between = replay.probe(Plan(batch_size=150))
    assert (between.outcome, between.peak_bytes) == ("ok", 250 << 20)
    assert replay.probe(Plan(batch_size=2001)).outcome == "oom"
    for unknown in (50, 1000):
        with pytest.raises(ReportError, match=rf"has no answer for a batch of {unknown}; it has \[100, 300, 2000\]"):
            replay.probe(Plan(batch_size=unknown))
    with pytest.raises(ReportError, match="no probe of such a plan"):
        replay.probe(Plan(batch_size=100, precision="bf16"))


def test_a_search_that_finds_nothing_is_recorded_too() -> None:
    recorder = Recorder(SimRunner(peak_bytes=lambda batch: 1 << 60))
    with pytest.raises(DoesNotFit) as first:
        search(recorder)
    recording = recorder.recording({})
    assert recording is not None
    with pytest.raises(DoesNotFit) as again:
        search(ReplayProber(recording, sim_facts()))
    assert str(again.value) == str(first.value)


def test_a_table_of_trials_takes_its_memory_from_a_recording() -> None:
    _, recording = recorded(SimRunner())
    runner = ReplayRunner.load(TABLE)
    runner.recording = recording
    assert runner.memory() == recording.limit
    first = recording.probes[0].measurement
    assert runner.probe(first.plan).peak_bytes == first.peak_bytes
    assert runner.clock() == first.seconds


def test_nothing_is_recorded_before_there_is_a_limit() -> None:
    assert Recorder(SimRunner()).recording({}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [], "is a JSON object; found list"),
        (lambda found: found | {"schema": 9}, "of schema 1; found 9"),
        (lambda found: found | {"limit": {}}, "'limit' of .* has no 'capacity_bytes'"),
        (lambda found: found | {"probes": [{}]}, "a probe of .* has no 'plan'"),
        (lambda found: {"schema": 1}, "has no 'limit'"),
        (
            lambda found: (
                found | {"probes": [found["probes"][0] | {"plan": found["probes"][0]["plan"] | {"batch_size": 0}}]}
            ),
            "'plan' of a probe of .* cannot be: .* at least 1; got 0",
        ),
    ],
)
def test_what_is_no_recording_is_refused_with_what_is_wrong(change: Any, message: str, tmp_path: Path) -> None:
    _, recording = recorded(SimRunner())
    file = tmp_path / "probes.json"
    file.write_text(json.dumps(change(recording.to_json())))
    with pytest.raises(ReportError, match=message):
        Recording.load(file)
    file.write_text("{")
    with pytest.raises(ReportError, match="a recording is a readable JSON file"):
        Recording.load(file)


def test_the_limit_is_the_recorded_one() -> None:
    limit = MemoryLimit(capacity_bytes=10, budget_bytes=9, source="a card")
    recording = Recording(task="t", train_size=None, limit=limit, probes=())
    prober = ReplayProber(recording, sim_facts())
    assert prober.memory() == limit
    assert (prober.facts().name, prober.facts().train_size) == ("t", None)
