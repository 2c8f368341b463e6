"""Several segments at once: the same promises as one after the other, more work in the time, and devices that go."""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections import Counter
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.plan import Config, Plan
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.errors import DeviceError, DeviceLost, TaskError
from autobatch.searching.crew import Alone, Several
from autobatch.searching.schedulers.freeze_thaw import choose
from autobatch.searching.schedulers.observations import observations
from autobatch.searching.schedulers.surrogate import fit
from autobatch.searching.search import Event, Kept, Space, StudyRecord, Trial
from autobatch.simulated.sim import Landscape, SimRunner, VirtualClock, sim_facts

from ..helpers.histories import history
from ..helpers.processes import PATIENCE_S
from ..helpers.sim_crew import SimCrew
from .schedulers.test_surrogate import ends, seen
from .test_search import Run, in_one_go, race, sampled


def raced(size: int, runner: SimRunner | None = None, **changes: Any) -> Run:
    """A race on `size` simulated workers."""
    runner = runner or SimRunner()
    return race(runner, crew=SimCrew(runner, runner.clock, size), **changes)


# The race


@settings(max_examples=20)
@given(
    size=st.integers(1, 9),
    budget_s=st.floats(30, 300),
    slowdown=st.floats(0.7, 3),
    per_sample_s=st.floats(1e-6, 5e-5),
    seed=st.integers(0, 9),
)
def test_many_workers_keep_the_promises_of_one(
    size: int, budget_s: float, slowdown: float, per_sample_s: float, seed: int
) -> None:
    runner = SimRunner(slowdown=slowdown, step_s=lambda batch: 0.002 + per_sample_s * batch)
    under_way: set[int] = set()
    most = 0

    def watch(event: Event) -> None:
        nonlocal most
        if event.trial is not None:
            (under_way.add if event.kind == "segment started" else under_way.discard)(event.trial.number)
            most = max(most, len(under_way))

    settings = sampled() | {"most_trials": 14 * size, "seed": seed}
    run = raced(size, runner, budget_s=budget_s, on_event=watch, **settings)
    assert run.ledger.elapsed_s <= budget_s
    trials = run.result.trials
    assert trials[0].role == "baseline"
    assert trials[0].state == "complete"
    assert not under_way
    assert 1 <= most <= size
    assert all(trial.state in ("complete", "dropped", "failed") for trial in trials)
    tried = [trial.config for trial in trials if trial.role != "confirmation"]
    assert len(set(tried)) == len(tried)
    segments = Counter((segment.trial, segment.until_step) for segment in runner.segments)
    assert set(segments.values()) == {1}


@pytest.mark.parametrize("sampler", ["tpe", "freeze-thaw"])
def test_one_of_several_is_the_race_of_one(sampler: str) -> None:
    alone, of_one = race(sampler=sampler, most_trials=8), raced(1, sampler=sampler, most_trials=8)
    assert alone.result == of_one.result
    assert alone.ledger.entries() == of_one.ledger.entries()


@pytest.mark.parametrize("sampler", ["tpe", "freeze-thaw"])
def test_two_workers_do_nearly_twice_the_work_in_the_same_time(sampler: str) -> None:
    one, two = race(sampler=sampler, budget_s=40.0), raced(2, sampler=sampler, budget_s=40.0)
    work = [sum(trial.predicted_s for trial in run.result.trials) for run in (one, two)]
    assert work[1] > 1.7 * work[0]
    assert not two.result.chose_baseline


def test_the_reserved_fresh_seeds_are_trained_at_once_and_waited_for() -> None:
    begun: list[tuple[str, int]] = []

    def watch(event: Event) -> None:
        if event.trial is not None and event.trial.role == "confirmation":
            begun.append((event.kind, event.trial.number))

    run = raced(2, on_event=watch, **sampled())
    first = [kind for kind, _ in itertools.takewhile(lambda told: told[0] == "segment started", begun)]
    assert len(first) == 2
    assert run.result.score is not None


@pytest.mark.parametrize("size", [2, 4])
def test_several_workers_have_the_time_for_a_second_round_of_fresh_seeds(size: int) -> None:
    baseline = Config(plan=Plan(batch_size=128), lr=2e-3)
    runner = SimRunner(known=sim_facts(baseline=baseline), landscape=Landscape(noise=0.01))
    settings = sampled() | {"most_trials": None}
    result = raced(size, runner, budget_s=90.0, train_time_s=4.0, seed=1, **settings).result
    again = [trial.config for trial in result.trials if trial.role == "confirmation"]
    assert again[:2] == [result.finalist] * 2
    assert baseline in again[2:]


def test_warm_starts_do_not_wait_for_the_baseline() -> None:
    runner = SimRunner()
    raced(3, runner, **sampled())
    assert [segment.trial for segment in runner.segments[:3]] == [0, 1, 2]


def test_a_race_of_several_goes_on_from_its_record_and_runs_no_finished_segment_again(tmp_path: Path) -> None:
    """Cut off with three segments in flight, as a kill does; their results are lost, and nothing else."""
    runner = SimRunner()
    finished: list[tuple[int, int]] = []

    class Killed(BaseException):
        pass

    def watch(event: Event) -> None:
        if event.kind == "segment finished" and event.trial is not None:
            finished.append((event.trial.number, event.trial.steps_done))
            if len(finished) == 9:
                raise Killed

    record = StudyRecord(tmp_path / "journal", "task", "maximize")
    with pytest.raises(Killed):
        raced(3, runner, record=record, on_event=watch, **sampled())
    kept = StudyRecord(tmp_path / "journal", "task", "maximize").kept()
    assert isinstance(kept, Kept)
    in_flight = [trial.number for trial in kept.trials if trial.state == "running"]
    assert len(in_flight) == 2  # the third had ended

    again = SimRunner(kept=runner.kept, clock=VirtualClock(runner.clock.now_s + 1000.0))
    record = StudyRecord(tmp_path / "journal", "task", "maximize")
    run = raced(3, again, record=record, kept=kept, **sampled())
    assert {segment.trial for segment in again.segments[:2]} == set(in_flight)
    assert not {(segment.trial, segment.until_step) for segment in again.segments} & set(finished)
    assert run.ledger.elapsed_s <= 60.0
    assert run.result.trials[0].state == "complete"
    assert [trial.number for trial in run.result.trials] == list(range(len(run.result.trials)))


# What is under way is believed


def test_a_believed_score_changes_no_mean_and_makes_its_place_surer() -> None:
    known = fit(seen(8))
    places, near = ends((5.0, -6.0), (8.0, -4.0), (6.0, -8.0)), ends((6.5, -5.0))
    believing = known.believing(near)
    mean, deviation = known.predict(np.concatenate([places, near]))
    believed_mean, believed_deviation = believing.predict(np.concatenate([places, near]))
    assert believed_mean == pytest.approx(mean, abs=1e-9)
    assert (believed_deviation <= deviation + 1e-9).all()
    assert (believed_deviation[:, -1] < 0.8 * deviation[:, -1]).all()


def test_believing_is_what_a_fit_to_the_predicted_scores_would_be() -> None:
    """By the definition of the posterior: with the kernel known, variances depend on the places alone."""
    known = fit(seen(10))
    one, two = ends((6.0, -6.5)), ends((7.0, -5.5))
    at = ends((5.0, -5.0), (6.2, -6.0), (9.0, -8.0))
    for mine, theirs in zip(
        known.believing(one).believing(two).predict(at),
        known.believing(np.concatenate([one, two])).predict(at),
        strict=True,
    ):
        assert mine == pytest.approx(theirs, abs=1e-8)


def _trial(number: int, batch: int, lr: float, *scores: float) -> Trial:
    state: Any = "complete" if len(scores) == 3 else "paused"
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=batch), lr=lr),
        seed=number,
        total_steps=1000,
        role="baseline" if number == 0 else "search",
        origin="made up",
        state=state,
        scores=tuple(zip((125, 500, 1000), scores, strict=False)),
    )


def test_what_is_under_way_promises_less_than_it_did() -> None:
    """So that the next worker rather goes on with another trial, or looks elsewhere."""
    space = Space(effective_batch_sizes=(32, 64, 128, 256), lr_low=1e-5, lr_high=1.0, reference_batch=64)
    trials = [
        _trial(0, 32, 1e-3, 0.5, 0.6, 0.7),
        _trial(1, 64, 1e-2, 0.6, 0.75, 0.8),
        _trial(2, 256, 1e-1, 0.3),
        _trial(3, 128, 1e-4, 0.4),
        _trial(4, 128, 2e-2, 0.61),
        _trial(5, 128, 1.8e-2, 0.60),
    ]

    def resumed(trials: list[Trial]) -> object:
        resumable = [trial for trial in trials if trial.state == "paused"]
        return choose(history(trials), space, resumable=resumable, may_start=False, seed=0)

    best = resumed(trials)
    assert isinstance(best, Trial)
    seen = observations(history(trials), space.reference_batch)
    known = fit(seen)
    over = np.array([(o.batch, o.rate, 0.0) for o in seen if o.share == 1.0])
    place = np.array([(math.log2(best.config.plan.batch_size), math.log(space.scaled_lr(best.config)), 0.0)])
    halfway = np.array([(*place[0, :2], math.log2(0.5))])
    before = known.expected_improvement(place, over)[0]
    after = known.believing(halfway).expected_improvement(place, over)[0]
    assert 0 < after < 0.9 * before
    under_way = [replace(trial, state="running") if trial is best else trial for trial in trials]
    other = resumed(under_way)
    assert isinstance(other, Trial)
    assert {best.number, other.number} == {4, 5}


# Runners in threads


class Watched(SimRunner):
    """Waits until as many others are training, so that segments are known to be under way at once."""

    barrier: threading.Barrier
    lost_at: int = 1 << 30

    def advance(self, segment: TrainSegment) -> SegmentResult:
        if len(self.segments) >= self.lost_at:
            raise DeviceError("GPU is lost")
        self.barrier.wait(timeout=PATIENCE_S)
        return SimRunner.advance(self, segment)


def watched(count: int, *lost_at: int) -> list[Watched]:
    """Runners that share one folder of checkpoints; the first lose their device after so many segments."""
    barrier, kept = threading.Barrier(count), dict[int, set[int]]()
    runners = [Watched(kept=kept) for _ in range(count)]
    for runner, segments in zip(runners, lost_at, strict=False):
        runner.lost_at = segments
    for runner in runners:
        runner.barrier = barrier
    return runners


@pytest.fixture
def segments() -> list[TrainSegment]:
    config = Config(plan=Plan(batch_size=8), lr=1e-3)
    return [
        TrainSegment(trial=n, config=config, seed=n, start_step=0, until_step=10, total_steps=10, eval_batch_size=8)
        for n in range(6)
    ]


def test_segments_are_trained_at_once_and_given_back_as_they_end(segments: list[TrainSegment]) -> None:
    with closing(Several(watched(2))) as crew:
        for segment in segments[:2]:
            assert crew.has_idle
            crew.submit(segment)
        assert not crew.has_idle
        ended = [crew.next() for _ in range(2)]
    assert {segment.trial for segment, _ in ended} == {0, 1}
    assert all(done.result().segment == segment for segment, done in ended)


def test_a_device_that_is_lost_gives_its_segment_back_and_gets_no_more(segments: list[TrainSegment]) -> None:
    runners = watched(2, 0)
    runners[1].barrier = threading.Barrier(1)
    with closing(Several(runners)) as crew:
        crew.submit(segments[0])
        segment, done = crew.next()
        assert segment == segments[0]
        assert isinstance(done.exception(), DeviceError)
        assert crew.size == 1
        assert crew.remarks == ("a device was lost while trial 0 trained on it: GPU is lost",)
        crew.submit(segments[0])
        assert crew.next()[1].result().outcome == "ok"
    assert [segment.trial for segment in runners[1].segments] == [0]


def test_the_last_device_that_is_lost_is_told_as_that(segments: list[TrainSegment]) -> None:
    with closing(Several(watched(1, 0))) as crew:
        crew.submit(segments[0])
        with pytest.raises(DeviceError, match="GPU is lost"):
            crew.next()[1].result()


class Broken(SimRunner):
    """Crashes in every segment."""

    def advance(self, segment: TrainSegment) -> SegmentResult:
        self.segments.append(segment)
        return SegmentResult(segment=segment, outcome="crashed", message="ECC error", seconds=0.01)


def test_a_worker_that_keeps_crashing_gets_no_more_trials(segments: list[TrainSegment]) -> None:
    broken, sound = Broken(), SimRunner()
    with closing(Several([broken, sound])) as crew:
        for segment in segments:
            crew.submit(segment)
            crew.submit(segment)
            crew.next()
            crew.next()
            if crew.size == 1:
                break
        assert crew.remarks == ("a worker got no more trials after 4 crashes in a row: ECC error",)
        crew.submit(segments[-1])
        assert crew.next()[1].result().outcome == "ok"
    with closing(Several([Broken()])) as crew:  # there is no other
        for segment in segments:
            crew.submit(segment)
            crew.next()
        assert crew.size == 1


class Raising(SimRunner):
    """The task raises an error in every segment, as where a card computes nonsense."""

    def advance(self, segment: TrainSegment) -> SegmentResult:
        raise TaskError("RuntimeError: CUBLAS_STATUS_EXECUTION_FAILED\nin model.py")


def turns(crew: Several, segments: list[TrainSegment], times: int) -> None:
    """As many segments on each of two workers, in turns: who has failed is idle last."""
    for turn in range(times):
        for _ in range(crew.size):
            crew.submit(segments[turn % len(segments)])
        while crew.busy:
            crew.next()


def test_a_worker_on_which_alone_the_task_keeps_raising_gets_no_more_trials(segments: list[TrainSegment]) -> None:
    with closing(Several([Raising(), SimRunner()])) as crew:
        turns(crew, segments, 3)
        assert crew.size == 2
        turns(crew, segments, 2)
        assert crew.size == 1
        (remark,) = crew.remarks
        assert re.fullmatch(
            r"a worker got no more trials after [45] crashes in a row: RuntimeError: CUBLAS_STATUS_\w+", remark
        )


def test_a_task_that_raises_everywhere_costs_no_worker(segments: list[TrainSegment]) -> None:
    with closing(Several([Raising(), Raising(), SimRunner()])) as crew:
        turns(crew, segments, 8)
        assert (crew.size, crew.remarks) == (3, ())


def test_what_crashed_is_tried_again_elsewhere(segments: list[TrainSegment]) -> None:
    broken, sound = Broken(), SimRunner()
    with closing(Several([broken, sound])) as crew:
        outcomes = []
        for _ in range(2):
            crew.submit(segments[0])
            outcomes.append(crew.next()[1].result().outcome)
    assert outcomes == ["crashed", "ok"]


def test_after_the_end_nothing_is_begun(segments: list[TrainSegment]) -> None:
    runner = SimRunner()
    crew = Several([runner])
    crew._is_closed = True  # as where a thread comes to it only then
    crew.submit(segments[0])
    assert crew.next()[1].result().message == "the run was ended"
    assert not runner.segments
    crew.close()


class Fading(SimRunner):
    """Loses its device after a number of segments."""

    segments_left: int = 1 << 30

    def advance(self, segment: TrainSegment) -> SegmentResult:
        self.segments_left -= 1
        if self.segments_left < 0:
            raise DeviceError("GPU is lost")
        return SimRunner.advance(self, segment)


def test_a_race_goes_on_with_the_devices_that_are_left() -> None:
    kept: dict[int, set[int]] = {}
    clock = VirtualClock()
    fading, lasting = Fading(kept=kept, clock=clock), SimRunner(kept=kept, clock=clock)
    fading.segments_left = 4
    with closing(Several([fading, lasting])) as crew:
        run = race(lasting, crew=crew, **sampled())
    assert any("a device was lost while trial" in reason for reason in run.result.why)
    assert run.result.trials[0].state == "complete"
    assert not run.result.interrupted
    assert crew.size == 1
    assert len(fading.segments) == 4
    assert not any(trial.outcome == "crashed" for trial in run.result.trials)


@pytest.mark.parametrize("several", [False, True])
def test_without_any_device_a_race_ends_with_what_it_has(several: bool) -> None:
    runner = Fading(known=sim_facts(has_test_data=True))
    runner.segments_left = 7
    crew = Several([runner]) if several else Alone(runner)
    run = race(runner, crew=crew, **sampled())
    assert run.result.interrupted
    assert run.result.chose_baseline
    assert "ended early, as no device was left to train on: GPU is lost" in run.result.why
    assert not any("by the user" in reason for reason in run.result.why)


def test_without_a_baseline_a_lost_device_is_an_error() -> None:
    runner = Fading()
    runner.segments_left = 1
    with pytest.raises(DeviceLost, match=r"no device was left .* trained to the end: GPU is lost"):
        race(runner, **sampled())


class FadingCrew(SimCrew):
    """Of two workers one loses its device in the first segment under a fresh seed."""

    is_whole: bool = True

    @property
    def size(self) -> int:
        return 2 if self.is_whole else 1

    def next(self) -> tuple[TrainSegment, Future[SegmentResult]]:
        segment, done = SimCrew.next(self)
        if self.is_whole and in_one_go(segment):  # under a fresh seed
            self.is_whole = False
            lost: Future[SegmentResult] = Future()
            lost.set_exception(DeviceError("GPU is lost"))
            return segment, lost
        return segment, done


@pytest.mark.parametrize("budget_s", [40.0, 60.0, 90.0])
def test_a_device_that_is_lost_under_a_fresh_seed_says_nothing_against_the_finalist(budget_s: float) -> None:
    runner = SimRunner(known=sim_facts(baseline=Config(plan=Plan(batch_size=32), lr=1e-5)))
    crew = FadingCrew(runner, runner.clock, 2)
    run = race(runner, crew=crew, budget_s=budget_s, **sampled())
    assert not crew.is_whole
    assert run.ledger.elapsed_s <= budget_s
    assert not any("gave way" in reason for reason in run.result.why)
    assert not any(t.state == "failed" and t.role == "confirmation" for t in run.result.trials)
    assert not run.result.chose_baseline  # the other seed has spoken


def test_a_baseline_that_waits_is_never_dropped_for_others() -> None:
    """With many workers more trials may wait than are kept, all of them better than a poor baseline."""
    runner = SimRunner(known=sim_facts(baseline=Config(plan=Plan(batch_size=32), lr=1e-5)))
    run = raced(12, runner, most_paused=1, sampler=optuna.samplers.RandomSampler(seed=0), most_trials=40)
    assert run.result.trials[0].state == "complete"
