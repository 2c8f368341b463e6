"""Several runners as one: what is found once holds for all, times are those of all at once, like is kept with like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from autobatch.core.facts import DeviceInfo, MemoryLimit, TaskFacts
from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.devices.environment import available_cores
from autobatch.engines import group
from autobatch.engines.group import open_workers, other_devices
from autobatch.engines.pool import Pool, check_workers
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.errors import DeviceError, SettingError, TaskError
from autobatch.render.content import report_document
from autobatch.render.markdown import to_markdown
from autobatch.runs.run_folder import RunFolder, RunState
from autobatch.runs.settings import TuneSettings
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.crew import Alone, Several
from autobatch.simulated.sim import SimRunner, VirtualClock, sim_facts
from autobatch.tuning.pipeline import _Tune

from ..cli.test_cli import QUICK, refused
from ..cli.test_resume_cli import autobatch_cli, task
from ..helpers.contracts import RunnerContract
from ..helpers.processes import on_two_cores

__all__ = ["task"]  # a fixture

MIB = 1 << 20
CARD = DeviceInfo(name="Card", kind="cuda", index=0, memory_bytes=8192 * MIB)


@dataclass(slots=True, kw_only=True)
class Carded(SimRunner):
    """A simulated runner on a device that says what it is."""

    info: DeviceInfo = CARD
    factor: float = 1.0
    free_bytes: int = 8192 * MIB
    learned: list[TaskFacts] = field(default_factory=list)
    is_lost: bool = False
    is_closed: bool = False

    def device(self) -> DeviceInfo:
        return self.info

    def learn(self, facts: TaskFacts) -> None:
        self.learned.append(facts)

    def memory(self) -> MemoryLimit:
        return MemoryLimit(capacity_bytes=self.free_bytes, budget_bytes=self.free_bytes, source="made up")

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        if self.is_lost:
            raise DeviceError("GPU is lost")
        measured = SimRunner.time(self, plan, budget_s=budget_s)
        return replace(measured, step_s=tuple(self.factor * seconds for seconds in measured.step_s))

    def close(self) -> None:
        self.is_closed = True


def cards(**of_each: list[Any]) -> list[Carded]:
    count = len(next(iter(of_each.values())))
    return [Carded(**{name: values[index] for name, values in of_each.items()}) for index in range(count)]


class TestContract(RunnerContract):
    """A pool is a runner."""

    @pytest.fixture
    def runner(self) -> Pool:
        return Pool([SimRunner(), SimRunner()])


def test_times_are_of_the_slowest_and_a_difference_is_told() -> None:
    runners = cards(factor=[1.0, 1.3, 1.01])
    with closing(Pool(runners)) as pool:
        measured = pool.time(Plan(batch_size=64), budget_s=1.0)
        alone = SimRunner().time(Plan(batch_size=64), budget_s=1.0)
        assert measured.median_step_s == pytest.approx(1.3 * alone.median_step_s)
        assert measured.remarks == ("of 3 workers the slowest took 30% longer than the fastest",)
    with closing(Pool(cards(factor=[1.0, 1.01]))) as pool:
        assert pool.time(Plan(batch_size=64), budget_s=1.0).remarks == ()
    assert all(runner.is_closed for runner in runners)


def test_a_worker_that_cannot_time_a_size_speaks_for_all() -> None:
    class Full(Carded):
        def time(
            self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
        ) -> Measurement:
            return Measurement(plan=plan, outcome="oom", message="full")

    with closing(Pool([Carded(), Full()])) as pool:
        assert pool.time(Plan(batch_size=64), budget_s=1.0).outcome == "oom"


def test_the_one_with_the_least_memory_says_what_fits() -> None:
    runners = cards(free_bytes=[8192 * MIB, 4608 * MIB, 6144 * MIB])
    with closing(Pool(runners)) as pool:
        assert pool.memory().budget_bytes == 4608 * MIB
        pool.probe(Plan(batch_size=8))
    assert [len(runner.probes) for runner in runners] == [0, 1, 0]
    assert [len(runner.learned) for runner in runners] == [0, 1, 1]  # found once


def test_devices_of_another_kind_than_the_first_are_left_out_and_told() -> None:
    other = replace(CARD, name="Small card")
    runners = cards(info=[CARD, other, replace(CARD, index=2), replace(CARD, memory_bytes=1), replace(CARD, index=4)])
    with closing(Pool(runners[:1], lambda first: runners[1:], most=2)) as pool:
        assert pool.size == 2
        assert pool.device() == CARD
        assert isinstance(pool.crew(), Several)
        assert [runner.is_closed for runner in runners] == [False, True, False, True, True]
    assert all(runner.is_closed for runner in runners)
    assert pool.remarks == (
        "Small card was left out: trials are compared on devices of one kind, here Card",
        "Card was left out: trials are compared on devices of one kind, here Card",
    )


@pytest.mark.parametrize("error", [DeviceError("no room\nfor it"), RuntimeError("no room"), TaskError("no room")])
def test_a_device_that_cannot_be_opened_is_left_out_and_told(error: Exception) -> None:
    class Full(Carded):
        def device(self) -> DeviceInfo:
            raise error

    with closing(Pool([Carded()], lambda first: [Full(), Carded()])) as pool:
        assert pool.size == 2
        assert pool.remarks == ("a device was left out: no room",)


def test_a_device_that_is_nearly_full_does_not_make_the_batch_small_for_all() -> None:
    runners = cards(free_bytes=[8192 * MIB, 1024 * MIB, 5000 * MIB])
    with closing(Pool(runners)) as pool:
        assert pool.memory().budget_bytes == 5000 * MIB
        assert pool.size == 2
        assert pool.remarks == ("a device was left out: 1 GiB are free on it, and 8 GiB on another",)


def test_a_device_that_is_lost_before_the_race_is_left_out() -> None:
    with closing(Pool(cards(is_lost=[False, True]))) as pool:
        assert pool.time(Plan(batch_size=64), budget_s=1.0).outcome == "ok"
        assert pool.size == 1
        assert pool.remarks == ("a device was left out: GPU is lost",)
        assert isinstance(pool.crew(), Alone)
    with closing(Pool(cards(is_lost=[True, True]))) as pool, pytest.raises(DeviceError, match="GPU is lost"):
        pool.time(Plan(batch_size=64), budget_s=1.0)


def test_the_first_of_all_may_be_lost_before_the_race_too() -> None:
    class Gone(Carded):
        def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
            raise DeviceError("GPU is lost")

    with closing(Pool([Gone(), Carded()])) as pool:
        assert pool.probe(Plan(batch_size=64)).outcome == "ok"
        assert (pool.size, pool.remarks) == (1, ("a device was left out: GPU is lost",))
    with closing(Pool([Gone()])) as pool, pytest.raises(DeviceError, match="GPU is lost"):
        pool.probe(Plan(batch_size=64))


def test_a_first_that_is_lost_in_the_check_is_left_out_and_so_is_one_that_cannot_be_told() -> None:
    class Gone(Carded):
        def facts(self) -> TaskFacts:
            raise DeviceError("GPU is lost")

    class Deaf(Carded):
        def learn(self, facts: TaskFacts) -> None:
            raise DeviceError("Ray found no place")

    last = Carded()
    with closing(Pool([Gone(), Carded(), Deaf(), last])) as pool:
        assert pool.facts().name == "simulated"
        assert pool.size == 2
        assert pool.remarks == ("a device was left out: GPU is lost", "a device was left out: Ray found no place")
        assert len(last.learned) == 1
    with closing(Pool([Gone(), Gone()])) as pool, pytest.raises(DeviceError, match="GPU is lost"):
        pool.facts()


class Scored(Carded):
    """Counts what it is asked for on the test data; its worker dies then, or when it trains."""

    asked = 0
    dies: str = "never"

    def advance(self, segment: TrainSegment) -> SegmentResult:
        if self.dies == "in training":
            return SegmentResult(segment=segment, outcome="crashed", message="ECC error", seconds=0.01)
        return SimRunner.advance(self, segment)

    def test_score(self, segment: TrainSegment) -> float | None:
        self.asked += 1
        return SimRunner.test_score(self, segment) if self.dies == "never" else None


def scored(*dies: str, **facts: object) -> list[Scored]:
    runners = [Scored(known=sim_facts(has_test_data=True, **facts)) for _ in dies]
    for runner, when in zip(runners, dies, strict=True):
        runner.dies = when
    return runners


def last(trial: int = 0, step: int = 10) -> TrainSegment:
    config = Config(plan=Plan(batch_size=8), lr=1e-3)
    return TrainSegment(
        trial=trial, config=config, seed=0, start_step=0, until_step=step, total_steps=step, eval_batch_size=8
    )


def test_a_worker_that_the_crew_gave_up_is_asked_for_no_test_score() -> None:
    runners = scored("in training", "never")
    with closing(Pool(runners)) as pool:
        crew = pool.crew()
        for trial in range(12):
            while crew.has_idle:
                crew.submit(last(trial))
            crew.next()
        while crew.busy:
            crew.next()
        assert crew.size == 1
        assert pool.test_score(last()) is not None
        assert [runner.asked for runner in runners] == [0, 1]
        assert pool.remarks == ()


WHY = "no score on the test data (it died, or memory or the time ran out)"


@pytest.mark.parametrize(
    ("dies", "asked", "remarks"),
    [
        (["in the test", "never"], [1, 1], (f"a worker gave trial 3 {WHY}: another one did",)),
        (["in the test"] * 3, [1, 1, 0], (f"a worker gave trial 3 {WHY}: nor did another one",)),
        (["in the test"], [1], (f"a worker gave trial 3 {WHY}: there is no other",)),
        (["never"] * 2, [1, 0], ()),
    ],
)
def test_a_test_score_that_a_worker_does_not_give_is_asked_of_another_and_told(
    dies: list[str], asked: list[int], remarks: tuple[str, ...]
) -> None:
    runners = scored(*dies)
    with closing(Pool(runners)) as pool:
        assert (pool.test_score(last(3)) is None) == ("never" not in dies)
    assert [runner.asked for runner in runners] == asked
    assert pool.remarks == remarks


def test_a_task_without_test_data_is_asked_once() -> None:
    runners = [Carded(), Carded()]
    with closing(Pool(runners)) as pool:
        assert pool.test_score(last()) is None
        assert pool.remarks == ()


def test_what_a_pool_left_out_is_in_the_report(tmp_path: Path) -> None:
    """Devices of another kind, one that is lost in mid-race, and a test score that a worker did not give."""
    clock, kept = VirtualClock(), dict[int, set[int]]()
    runners = scored("in the test", "never")
    for runner in runners:
        runner.clock, runner.kept = clock, kept
    small = Carded(info=replace(CARD, name="Small card"))
    settings = TuneSettings(name="simulated", max_trials=3)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=settings)
    pool = Pool(runners[:1], lambda first: [small, runners[1]])
    with closing(pool), RunFolder.made(tmp_path / "run", "simulated") as folder:
        report = _Tune(pool, Ledger(600.0, clock=clock), lambda _: None, folder, state).run()
    assert "Small card was left out: trials are compared on devices of one kind, here Card" in report.warnings
    assert any("no score on the test data" in warning for warning in report.warnings)
    assert any("another one did" in warning for warning in report.warnings)
    assert "2 workers each trained a trial at the same time" in report.why
    assert report.test_baseline is not None
    page = to_markdown(report_document(report))
    assert "Small card was left out" in page


class Shown(Carded):
    """As a worker's runner, it tells which devices there are."""

    def device_names(self) -> list[str]:
        return ["cuda:0", "cuda:1", "cuda:2", "cpu"]


@pytest.mark.parametrize(
    ("device", "workers", "others"),
    [
        ("auto", None, ["cuda:0", "cuda:2"]),
        ("cuda", None, ["cuda:0", "cuda:2"]),
        ("auto", 2, ["cuda:0", "cuda:2"]),  # of which the pool keeps as many as are asked for
        ("auto", 1, []),
        ("cuda:1", None, []),
        ("cuda:1", 1, []),
    ],
)
def test_each_gpu_has_a_worker_unless_one_is_named(device: str, workers: int | None, others: list[str]) -> None:
    first = cast(RemoteRunner, Shown(info=replace(CARD, index=1)))
    assert other_devices(first, RunnerSpec(device=device, workers=workers)) == others


@pytest.mark.parametrize(
    ("device", "workers", "message"),
    [
        ("auto", 4, "a worker needs its own GPU, and this machine has 3; got --workers 4: take --workers 3"),
        (
            "cuda:1",
            2,
            "a worker needs its own device, and --device cuda:1 has 1; got --workers 2",
        ),
    ],
)
def test_more_workers_than_devices_are_refused(device: str, workers: int, message: str) -> None:
    first = cast(RemoteRunner, Shown(info=replace(CARD, index=1)))
    with pytest.raises(SettingError, match=message):
        other_devices(first, RunnerSpec(device=device, workers=workers))


def test_workers_share_a_processor_and_are_no_more_than_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "available_cores", lambda: 3)
    first = cast(RemoteRunner, Shown(info=DeviceInfo(name="Processor", kind="cpu")))
    assert other_devices(first, RunnerSpec(device="auto", workers=3)) == ["cpu", "cpu"]
    assert other_devices(first, RunnerSpec(device="auto", workers=None)) == []
    with pytest.raises(SettingError, match="a worker needs its own core, and this machine has 3; got --workers 4"):
        other_devices(first, RunnerSpec(device="cpu", workers=4))


def test_a_cluster_without_what_a_worker_needs_says_what_to_change() -> None:
    check_workers(2, 2, unit="GPU", where="the cluster")
    with pytest.raises(SettingError, match=r"a worker needs its own GPU, and the cluster has 0; .*: see --device"):
        check_workers(1, 0, unit="GPU", where="the cluster")


def test_workers_and_ranks_are_one_or_the_other() -> None:
    with pytest.raises(SettingError, match="got --workers 2 and --nproc 2: leave one of them out"):
        open_workers(RunnerSpec(nproc=2, workers=2))


# For real


@on_two_cores
@pytest.mark.usefixtures("ready_python", "steady_steps")
def test_two_workers_train_at_the_same_time_on_one_processor(task: Path, tmp_path: Path) -> None:
    done = autobatch_cli(
        *("tune", "model.py", *QUICK, "--workers", 2, "--json"),
        cwd=tmp_path,
        OMP_NUM_THREADS="2",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"]["threads"] == 1
    assert "2 workers each trained a trial at the same time" in report["why"]
    assert {trial["state"] for trial in report["trials"]} <= {"complete", "dropped", "failed"}
    assert report["trials"][0]["state"] == "complete"
    assert not list(tmp_path.glob(".autobatch/model/*/checkpoints"))


@pytest.mark.usefixtures("ready_python")
def test_more_workers_than_cores_are_refused_at_the_command_line(task: Path, tmp_path: Path) -> None:
    told = refused(autobatch_cli("tune", "model.py", "--workers", 999, "--device", "cpu", cwd=tmp_path))
    assert f"a worker needs its own core, and this machine has {available_cores()}; got --workers 999" in told


@pytest.mark.usefixtures("ready_python")
def test_workers_with_nproc_are_refused_at_the_command_line(task: Path, tmp_path: Path) -> None:
    told = refused(autobatch_cli("tune", "model.py", "--workers", 2, "--nproc", 2, cwd=tmp_path))
    assert "got --workers 2 and --nproc 2: leave one of them out" in told
