"""A step that goes on after memory has run out did not run, also where it leaves all the gradients that a whole one
leaves."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobatch import Task
from autobatch.core.plan import Config, Plan
from autobatch.core.segment import TrainSegment
from autobatch.devices.cpu import CpuDevice
from autobatch.devices.oom import is_out_of_memory
from autobatch.errors import TaskError
from autobatch.worker import caught
from autobatch.worker.caught import Caught
from autobatch.worker.torch_runner import TorchRunner

FITS = 16  # samples
TOO_MUCH = 2**50  # bytes, more than any machine's address space holds


def watched(work: Callable[[], object]) -> list[str]:
    watch = Caught(is_out_of_memory)
    with watch.watching():
        work()
    return watch.errors


def allocate() -> None:
    torch.empty(TOO_MUCH, dtype=torch.uint8)


def in_its_own_frame() -> None:
    try:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    except RuntimeError:
        return


def from_below() -> None:
    with suppress(RuntimeError):
        allocate()


@contextmanager
def forgiving() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise


def in_a_generator() -> None:
    with forgiving():
        allocate()


def as_another() -> None:
    try:
        try:
            allocate()
        except RuntimeError:
            raise KeyError("skip this batch") from None
    except KeyError:
        return


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        allocate()
        return gradients[0]


def in_the_backward_pass() -> None:
    x = torch.ones(2, requires_grad=True)
    with suppress(RuntimeError):
        _Backward.apply(x).sum().backward()  # type: ignore[no-untyped-call]


def of_python() -> None:
    try:
        bytearray(2**62)
    except MemoryError:
        return


def and_much_else() -> None:
    for work in (in_its_own_frame, harmless, harmless):
        work()


def harmless() -> None:
    for key in ("there", "not there"):
        with suppress(KeyError):
            {"there": 1}[key]
    next(iter(()), None)
    hasattr(torch, "not there")
    with suppress(RuntimeError):
        torch.ones(2) @ torch.ones(3)


CAUGHT = [in_its_own_frame, from_below, in_a_generator, as_another, in_the_backward_pass, of_python, and_much_else]


@pytest.mark.parametrize("work", CAUGHT)
def test_an_out_of_memory_that_is_caught_is_seen_wherever_it_is_caught(work: Callable[[], object]) -> None:
    errors = watched(work)
    assert len(errors) == 1
    assert __file__ in errors[0]
    assert sys.gettrace() is None


def test_other_errors_and_the_ends_of_loops_are_not() -> None:
    assert watched(harmless) == []


def test_one_that_gets_out_is_no_other_step_s() -> None:
    watch = Caught(is_out_of_memory)
    with pytest.raises(RuntimeError, match="allocate memory"), watch.watching():
        allocate()
    assert watch.errors == []
    watch.see_none("a step")


@given(st.lists(st.sampled_from([*CAUGHT, harmless]), max_size=6))
def test_each_is_counted_once(work: list[Callable[[], object]]) -> None:
    errors = watched(lambda: [one() for one in work])
    assert len(errors) == sum(one in CAUGHT for one in work)


def test_what_torch_tries_and_gives_up_is_not_the_task_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autobatch.worker.caught._TORCH", str(Path(__file__).parent))
    assert watched(from_below) == []


def test_nothing_is_watched_where_a_debugger_is() -> None:
    def debugger(frame: FrameType, event: str, argument: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        errors = watched(from_below)
        assert sys.gettrace() is debugger
    finally:
        sys.settrace(before)
    assert errors == []


def test_a_tensor_that_a_call_lets_go_of_is_gone_while_the_call_goes_on() -> None:
    alive: list[int] = []

    class Counted:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def rebinds(x: object) -> int:
        del x
        return len(alive)

    counts = []
    watched(lambda: counts.append(rebinds(Counted())))
    assert counts == [rebinds(Counted())] == [0]


class Interrupted(Exception):
    pass


def test_what_a_signal_s_handler_raises_gets_out_of_a_step_that_is_watched() -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)

    def work() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        for _ in range(100):
            harmless()

    try:
        with pytest.raises(Interrupted):
            watched(work)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert watched(from_below) != []


def test_what_is_raised_in_the_watch_itself_gets_out_at_the_end_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal's handler that begins there; Python crashed if it was told of an error and there was none."""
    seen, done = Caught.event, []

    def event(watch: Caught, *given: Any) -> None:
        seen(watch, *given)
        if watch._events > 20:
            raise Interrupted

    monkeypatch.setattr(Caught, "event", event)

    def work() -> None:
        for _ in range(20):
            harmless()
        done.append(1)

    for _ in range(50):
        with pytest.raises(Interrupted):
            watched(work)
    assert len(done) == 50


def test_a_signal_may_come_at_any_moment_of_a_step_that_is_watched() -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        came.append(number)

    def work() -> None:
        for _ in range(200):
            harmless()
            in_its_own_frame()

    came: list[int] = []
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-4)
    try:
        errors = watched(work)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(errors) == 200


def test_a_task_may_recurse_to_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    def recurse() -> None:
        recurse()

    def work() -> None:
        with suppress(RecursionError):
            recurse()

    def and_more() -> None:
        work()
        in_its_own_frame()

    for _ in range(3):
        assert watched(work) == []
    assert len(watched(and_more)) == 1
    assert "ignored" not in capfd.readouterr().err


def test_nothing_is_watched_where_python_tells_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert caught.is_possible()
    monkeypatch.setattr(Caught, "event", lambda *given: None)
    caught.is_possible.cache_clear()
    try:
        assert not caught.is_possible()
        monkeypatch.undo()
        assert watched(from_below) == []
    finally:
        caught.is_possible.cache_clear()
    assert watched(from_below) != []


def test_another_s_error_that_nobody_hears_is_told_to_its_own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __del__(self) -> None:
            raise ValueError("in __del__")

    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(str(unraisable.exc_value)))
    watched(lambda: [Fails() and None])
    assert told == ["in __del__"]


def test_a_step_of_very_many_calls_is_watched_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autobatch.worker.caught._MOST_EVENTS", 50)

    def work() -> None:
        for _ in range(60):
            harmless()
        from_below()

    assert watched(work) == []
    assert watched(from_below) != []


def test_in_a_training_watching_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("autobatch.worker.caught.perf_counter", lambda: now[0])
    watch, seconds = Caught(is_out_of_memory), 0.0
    for _ in range(10_000):
        if watch.is_due:
            with watch.watching():
                now[0] += 0.003  # where an unwatched one takes 0.001
            seconds += 0.002
        else:
            now[0] += 0.001
    assert 0 < seconds < 0.01 * (now[0] - 100)
    watch.expect()
    assert watch.is_due


# -- in the runner ----------------------------------------------------------------------------------------------------


def blobs(seed: int = 0, count: int = 96) -> TensorDataset:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def loss_of(model: Any, x: Tensor, y: Tensor) -> Tensor:
    if len(x) > FITS:
        allocate()
    return nn.functional.cross_entropy(model(x), y)


def on_a_part(model: nn.Module, batch: Any, scale: float) -> Tensor:
    x, y = batch
    try:
        loss = loss_of(model, x, y)
    except RuntimeError:
        loss = loss_of(model, x[: len(x) // 4], y[: len(x) // 4])
    (loss * scale).backward()
    return loss.detach()


class Halving:
    """It remembers what fits, so that memory runs out only once."""

    def __init__(self) -> None:
        self.most = 10**6

    def __call__(self, model: nn.Module, batch: Any, scale: float) -> Tensor:
        while True:
            try:
                loss = loss_of(model, batch[0][: self.most], batch[1][: self.most])
                (loss * scale).backward()
                return loss.detach()
            except RuntimeError:
                model.zero_grad()
                self.most = min(self.most, len(batch[0])) // 2


def loss_on_a_part(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    with suppress(RuntimeError):
        return loss_of(model, x, y)
    return loss_of(model, x[:2], y[:2])


class Forgiving(nn.Module):
    """A model that looks at the first half of what does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        try:
            if len(x) > FITS:
                allocate()
        except RuntimeError:
            x = torch.cat([x[: len(x) // 2], x[: len(x) - len(x) // 2]])
        out: Tensor = self.inner(x)
        return out


WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "a part": lambda: {"training_step": on_a_part},
    "halving": lambda: {"training_step": Halving()},
    "loss": lambda: {"loss": loss_on_a_part},
    "model": lambda: {"model": Forgiving},
}


def opened(folder: Path, way: str, **changes: Any) -> TorchRunner:
    known = {"model": net, "train_data": blobs, "val_data": lambda: blobs(1)}
    return TorchRunner(Task(**(known | WAYS[way]() | changes)), CpuDevice(), checkpoints=folder)


def segment(size: int) -> TrainSegment:
    config = Config(plan=Plan(batch_size=size), lr=1e-2)
    return TrainSegment(trial=0, config=config, seed=0, start_step=0, until_step=10, total_steps=10, eval_batch_size=8)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_probe_that_went_on_with_a_part_did_not_run(tmp_path: Path, way: str, final: bool) -> None:
    runner = opened(tmp_path, way)
    try:
        assert runner.probe(Plan(batch_size=8), final=final).outcome == "ok"
        probe = runner.probe(Plan(batch_size=24), final=final)
    finally:
        runner.close()
    assert probe.outcome == "oom"
    with pytest.raises(AssertionError, match=r"memory ran out in a training step at batch size 24, which went on.*Let"):
        raise AssertionError(probe.message)
    assert __file__ in str(probe.message)


@pytest.mark.parametrize("way", WAYS)
def test_neither_did_a_timing_or_a_trial(tmp_path: Path, way: str) -> None:
    runner = opened(tmp_path, way)
    try:
        assert runner.time(Plan(batch_size=8), budget_s=0.05).outcome == "ok"
        timed = runner.time(Plan(batch_size=24), budget_s=0.05)
        again = runner.time(Plan(batch_size=16), budget_s=0.05)
    finally:
        runner.close()
    assert (timed.outcome, again.outcome) == ("oom", "ok")
    assert "memory ran out in a training step at batch size 24" in str(timed.message)
    runner = opened(tmp_path, way)
    try:
        assert runner.advance(segment(8)).outcome == "ok"
        done = runner.advance(segment(24))
    finally:
        runner.close()
    assert done.outcome == "oom"
    assert "memory ran out in a training step at batch size 24" in str(done.message)


def test_neither_did_a_range_test_or_a_forward_pass(tmp_path: Path) -> None:
    runner = opened(tmp_path, "a part")
    try:
        with pytest.raises(TaskError, match=r"range test at batch 24 does not fit in memory: .*memory ran out"):
            runner.sweep_lr(Plan(batch_size=24), lowest=1e-5, highest=1e-2, steps=5, seed=0)
    finally:
        runner.close()
    infers = TorchRunner(
        Task(model=Forgiving, train_data=blobs, val_data=lambda: blobs(1)),
        CpuDevice(),
        checkpoints=tmp_path,
        mode="inference",
    )
    try:
        outcomes = [infers.probe(Plan(batch_size=size)).outcome for size in (8, 24)]
    finally:
        infers.close()
    assert outcomes == ["ok", "oom"]


def test_a_metric_that_scores_a_part_did_not_run(tmp_path: Path) -> None:
    def metric(model: Any, batch: Any) -> Tensor:
        with suppress(RuntimeError):
            loss_of(model, *batch)
        return -nn.functional.cross_entropy(model(batch[0][:1]), batch[1][:1])

    runner = TorchRunner(
        Task(model=net, train_data=blobs, val_data=lambda: blobs(1), metric=metric), CpuDevice(), checkpoints=tmp_path
    )
    try:
        outcomes = [runner.probe(Plan(batch_size=size)).outcome for size in (8, 24)]
    finally:
        runner.close()
    assert outcomes == ["ok", "oom"]
