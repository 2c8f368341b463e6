"""How far the search for the largest batch goes where what comes after it needs the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.measuring.memory import MaxBatch
from autobatch.runs.run_folder import RunFolder, RunState
from autobatch.runs.settings import TuneSettings
from autobatch.searching.budget.ledger import Ledger
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tuning.pipeline import _Tune


def largest(
    step_s: Callable[[int], float],
    budget_s: float,
    folder: Path,
    *,
    own: int = 32,
    start_s: float = 0.0,
    train_time_s: float | None = None,
    capacity_bytes: int = 64 << 30,
) -> tuple[MaxBatch, float, SimRunner]:
    """The answer of the stage in `tune`, its share of the budget, and the runner that it asked."""

    class Starting(SimRunner):
        """A process is started for each probe, and opens the task."""

        def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
            self.clock.advance(start_s)
            return SimRunner.probe(self, plan, final=final)

    runner = Starting(
        known=sim_facts(baseline=Config(plan=Plan(batch_size=own), lr=1e-3), train_size=1 << 20),
        step_s=step_s,
        capacity_bytes=capacity_bytes,
        peak_bytes=lambda batch: (100 << 10) * batch,
    )
    settings = TuneSettings(name="t", budget_s=budget_s, train_time_s=train_time_s)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=settings)
    with RunFolder.made(folder, "t") as made:
        tune = _Tune(runner, Ledger(budget_s, clock=runner.clock), lambda _: None, made, state)
        found = tune.largest_batch(runner.facts())
    return found, runner.clock.now_s / budget_s, runner


@pytest.mark.parametrize("budget_s", [40.0, 60.0, 600.0])
@pytest.mark.parametrize("sample_s", [0.001, 0.01, 0.1])
def test_slow_steps_take_a_share_of_the_budget_and_no_more(sample_s: float, budget_s: float, tmp_path: Path) -> None:
    """An eighth of the data would be 131072 samples: 13 steps of half an hour each at 0.1 s a sample."""
    found, share, _ = largest(lambda batch: sample_s * (1 + batch), budget_s, tmp_path)
    own_s = 9 * sample_s * 33 / budget_s  # the baseline's own batch is tried whatever it takes
    assert share < 0.06 + own_s
    assert found.limited_by == "time"
    assert found >= 32


@given(
    fixed_ms=st.floats(0.1, 100),
    sample_ms=st.floats(0.001, 50),
    budget_s=st.floats(30, 3600),
    start_s=st.floats(0, 1),
    own=st.sampled_from([1, 16, 128]),
)
def test_whatever_a_step_costs_the_stage_leaves_the_time_to_the_race(
    fixed_ms: float,
    sample_ms: float,
    budget_s: float,
    start_s: float,
    own: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def step_s(batch: int) -> float:
        return (fixed_ms + sample_ms * batch) / 1000

    found, share, runner = largest(step_s, budget_s, tmp_path_factory.mktemp("t"), own=own, start_s=start_s)
    starts_s = 4 * start_s  # a probe, the answer, and one that ended what was left
    assert share * budget_s < 0.065 * budget_s + starts_s + 9 * step_s(own) + 6 * step_s(2)
    assert found >= own
    assert [plan.batch_size for plan in runner.probes].count(int(found)) <= 2


def test_sizes_that_the_race_can_use_are_reached_where_a_step_is_quick(tmp_path: Path) -> None:
    found, share, runner = largest(lambda batch: 1e-3 + 1e-6 * batch, 600.0, tmp_path)  # a knee of 4000
    assert found >= 4 * 4000
    assert share < 0.01
    assert len(runner.probes) <= 5


def test_it_goes_no_further_than_a_few_times_the_knee_where_that_costs_time(tmp_path: Path) -> None:
    found, _, _ = largest(lambda batch: 5e-3 + 2e-3 * batch, 3600.0, tmp_path, own=4)  # a knee of 10
    assert 4 * 10 <= found <= 4000
    assert found.limited_by == "time"


def test_no_step_is_longer_than_a_short_training_can_use(tmp_path: Path) -> None:
    found, _, _ = largest(lambda batch: 1e-2 * batch, 36_000.0, tmp_path, own=4, train_time_s=60.0)
    assert found <= 36_000 / 100 / 5 / 1e-2 + 1


def test_memory_is_still_found_where_there_is_time(tmp_path: Path) -> None:
    found, _, _ = largest(lambda batch: 1e-5 * batch, 600.0, tmp_path, capacity_bytes=1 << 30)
    assert found.limited_by == "memory"
    assert found == int(0.95 * (1 << 30)) // (100 << 10)
    assert found.has_no_room_above


def test_an_answer_that_time_ended_is_told_as_one(tmp_path: Path) -> None:
    found, _, _ = largest(lambda batch: 0.05 * batch, 60.0, tmp_path, own=4)
    assert found.to_json()["limited_by"] == "time"
    assert not found.has_no_room_above
    assert found.why_not_proved is not None
