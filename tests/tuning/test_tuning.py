"""What `tune` asks of the stages between the search for the largest batch and the race."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.errors import TaskError
from autobatch.runs.run_folder import RunFolder, RunState
from autobatch.runs.settings import Earlier, TuneSettings
from autobatch.searching.budget.ledger import Ledger
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tuning.pipeline import _Tune

from ..helpers.reports import CHOSEN, example


class Keeps(SimRunner):
    """A task whose gradients take memory of their own where they are kept."""

    gradients = 400 << 20

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        everything = self.capacity_bytes
        if plan.accumulation_steps > 1:
            self.capacity_bytes -= self.gradients
        try:
            return super().probe(plan, final=final)
        finally:
            self.capacity_bytes = everything


def micro_batch(tmp_path: Path, runner: SimRunner) -> tuple[int, int, list[str]]:
    """(largest batch, largest micro-batch, what was said) of a run."""
    said: list[str] = []
    ledger = Ledger(600.0, clock=runner.clock)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="t"))
    with RunFolder.made(tmp_path, "t") as folder:
        tune = _Tune(runner, ledger, lambda progress: said.append(progress.text), folder, state)
    largest = tune.largest_batch(runner.facts())
    found = tune.largest_micro_batch(largest)
    return int(largest), found, said


@pytest.mark.parametrize(
    ("peak_mib", "expected"),
    [
        (lambda batch: 8 * batch, (121, 64)),
        (lambda batch: 15 * batch, (64, 32)),  # 64 need 960 MiB; 592 are left beside the gradients
    ],
)
def test_an_accumulated_batch_is_one_that_fits_beside_gradients(
    peak_mib: Any, expected: tuple[int, int], tmp_path: Path
) -> None:
    runner = Keeps(peak_bytes=lambda batch: peak_mib(batch) << 20, capacity_bytes=1 << 30)
    largest, found, said = micro_batch(tmp_path, runner)
    assert (largest, found) == expected
    assert said[-1].startswith(f"accumulating, batch {found}: ok")


@pytest.mark.parametrize(("batch", "expected"), [(39, 39), (40, 32), (200, 32)])
def test_the_micro_batch_of_a_baseline_that_accumulates_is_tried_as_it_is(
    batch: int, expected: int, tmp_path: Path
) -> None:
    own = Config(plan=Plan(batch_size=batch, accumulation_steps=2), lr=1e-3)
    runner = Keeps(known=sim_facts(baseline=own), peak_bytes=lambda size: size * (15 << 20), capacity_bytes=1 << 30)
    assert micro_batch(tmp_path, runner)[1] == expected  # 39 need 585 MiB; 592 are left beside the gradients


def test_what_memory_does_not_limit_or_must_not_be_split_is_not_run_again(tmp_path: Path) -> None:
    ample = SimRunner(capacity_bytes=64 << 30)
    largest, found, _ = micro_batch(tmp_path, ample)
    assert largest == found == 6250
    assert all(plan.accumulation_steps == 1 for plan in ample.probes)
    whole = Keeps(known=sim_facts(accumulates=False), peak_bytes=lambda batch: batch << 20, capacity_bytes=1 << 30)
    assert micro_batch(tmp_path, whole)[1] == 0


def slow(batch: int) -> float:
    return 0.05 * batch


@pytest.mark.parametrize(
    ("runner", "why"),
    [
        (SimRunner(step_s=slow, capacity_bytes=64 << 30), "time"),
        # Memory had no room far above where time ended the search: what lies between is not known.
        (Keeps(step_s=slow, peak_bytes=lambda batch: batch << 20, capacity_bytes=1 << 30), "time"),
        (SimRunner(known=sim_facts(train_size=None), capacity_bytes=64 << 30), "ceiling"),
    ],
)
def test_nothing_is_accumulated_past_a_size_that_nothing_but_time_or_a_ceiling_limits(
    runner: SimRunner, why: str, tmp_path: Path
) -> None:
    ledger = Ledger(600.0, clock=runner.clock)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="t"))
    with RunFolder.made(tmp_path, "t") as folder:
        tune = _Tune(runner, ledger, lambda _: None, folder, state)
    largest = tune.largest_batch(runner.facts())
    assert largest.limited_by == why
    assert tune.largest_micro_batch(largest) == 0


def test_a_short_run_tries_no_batch_past_where_time_ended_the_probes(tmp_path: Path) -> None:
    runner = SimRunner(step_s=lambda batch: 1e-3 + 2e-4 * batch, capacity_bytes=64 << 30)
    ledger = Ledger(25.0, clock=runner.clock)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="simulated"))
    with RunFolder.made(tmp_path, "simulated") as folder:
        report = _Tune(runner, ledger, lambda _: None, folder, state).run()
    assert report.max_batch["limited_by"] == "time"
    assert len(report.trials) > 2
    assert all(trial["accumulation_steps"] == 1 for trial in report.trials)
    assert all(trial["batch_size"] <= report.max_batch["batch_size"] for trial in report.trials)


@dataclass(slots=True, kw_only=True)
class Picky(SimRunner):
    """A task whose loss raises at the sizes that it does not take."""

    takes: Callable[[int], bool]

    def _see(self, plan: Plan) -> None:
        if not self.takes(plan.batch_size):
            raise TaskError(f"a training step at batch size {plan.batch_size} failed: AssertionError")

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self._see(plan)
        return SimRunner.probe(self, plan, final=final)

    def time(self, plan: Plan, **options: Any) -> Measurement:
        self._see(plan)
        return SimRunner.time(self, plan, **options)

    def advance(self, segment: TrainSegment) -> SegmentResult:
        self._see(segment.config.plan)
        return SimRunner.advance(self, segment)


@pytest.mark.parametrize(
    ("own", "takes"),
    [
        (12, lambda size: size % 6 == 0),
        (60, lambda size: size % 5 == 0),
        (32, lambda size: size % 2 == 0),
        (16, lambda size: size >= 16),
        (3, lambda size: size % 3 == 0),
        (24, lambda size: size.bit_count() <= 2 and size > 1),
    ],
)
@pytest.mark.parametrize("capacity_bytes", [64 << 30, 400 << 20])
def test_the_race_proposes_no_size_that_the_task_refuses(
    own: int, takes: Callable[[int], bool], capacity_bytes: int, tmp_path: Path
) -> None:
    known = sim_facts(baseline=Config(plan=Plan(batch_size=own), lr=1e-3), train_size=3000)
    runner = Picky(known=known, takes=takes, capacity_bytes=capacity_bytes)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="simulated"))
    with RunFolder.made(tmp_path, "simulated") as folder:
        report = _Tune(runner, Ledger(60.0, clock=runner.clock), lambda _: None, folder, state).run()
    sizes = {trial["batch_size"] for trial in report.trials}
    assert all(map(takes, sizes))
    assert len({trial["effective_batch_size"] for trial in report.trials}) >= 3


def test_what_an_earlier_run_chose_is_tried_first(tmp_path: Path) -> None:
    runner = SimRunner()
    ledger = Ledger(600.0, clock=runner.clock)
    settings = TuneSettings(name="simulated", earlier=(Earlier.of(example()),), max_trials=3)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=settings)
    with RunFolder.made(tmp_path, "simulated") as folder:
        report = _Tune(runner, ledger, lambda _: None, folder, state).run()
    first = report.trials[1]
    assert (first["role"], first["effective_batch_size"], first["lr"]) == ("warm start", 256, CHOSEN.lr)
    assert first["origin"] == "the answer of the run of 2026-01-02T03:04:05+00:00"
    assert "the answer of the run of 2026-01-02T03:04:05+00:00 is from another task, digits" in report.warnings


@pytest.mark.parametrize(("train_time_s", "is_longer"), [(None, False), (0.5, False), (7200.0, True)])
def test_a_training_that_the_budget_cannot_pay_for_is_extrapolated_to(
    train_time_s: float | None, is_longer: bool, tmp_path: Path
) -> None:
    runner = SimRunner()
    # Without a limit a training of half a second makes hundreds of trials, and each decision looks at all of them.
    settings = TuneSettings(name="simulated", budget_s=300.0, train_time_s=train_time_s, max_trials=24)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=settings)
    with RunFolder.made(tmp_path, "simulated") as folder:
        report = _Tune(runner, Ledger(300.0, clock=runner.clock), lambda _: None, folder, state).run()
    assert (report.long_run is not None) == is_longer
    if report.long_run is not None:
        assert report.long_run["train_time_s"] == 7200.0
        assert report.long_run["horizon_s"] == report.horizon_s
        assert report.long_run["lr"]["lr"] <= report.config.lr
    assert not any("your training takes" in warning for warning in report.warnings)


@pytest.mark.parametrize("later_s", [0.1, 0.4, 1.0, 2.4])
def test_what_is_kept_for_the_end_follows_what_the_end_takes_by_then(
    later_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine becomes busy in mid-race: the search ends earlier, and a seed is begun only if the end still fits."""
    runner = SimRunner()
    ledger = Ledger(200.0, clock=runner.clock)
    held: list[float] = []

    def drawn(throughput: Any) -> None:
        held.append(later_s if runner.segments else 0.1)
        runner.clock.advance(held[-1])

    monkeypatch.setattr("autobatch.render.terminal.rehearse", drawn)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="simulated"))
    with RunFolder.made(tmp_path, "simulated") as folder:
        report = _Tune(runner, ledger, lambda _: None, folder, state).run()
    seeds = [trial for trial in report.trials if trial["role"] == "confirmation"]
    assert seeds
    assert held[:3] == [0.1, 0.1, later_s]
    assert len(held) <= 2 + 10 + len(seeds)
    assert ledger.remaining_s >= 4 * later_s - later_s  # the latest rehearsal is itself of this time


def test_the_horizon_leaves_out_what_is_kept_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    horizons = []
    for takes_s in (0.0, 2.0):
        runner = SimRunner()
        monkeypatch.setattr("autobatch.render.terminal.rehearse", lambda _: runner.clock.advance(takes_s))  # noqa: B023
        state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="simulated"))
        with RunFolder.made(tmp_path / f"{takes_s}", "simulated") as folder:
            tune = _Tune(runner, Ledger(200.0, clock=runner.clock), lambda _: None, folder, state)
            tune.run()
        assert tune.state.results.horizon_s is not None
        horizons.append(tune.state.results.horizon_s)
    # Two rehearsals, and a reserve of four of them in place of one second.
    assert horizons[0] - horizons[1] == pytest.approx((2 * 2.0 + 4 * 2.0 - 1.0) / 16, rel=0.05)
