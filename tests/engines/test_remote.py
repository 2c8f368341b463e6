"""The runner in worker processes: fresh final probes, real out-of-memory, crashes and hangs as answers, no leaks."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.devices import host_memory
from autobatch.devices.environment import default_threads
from autobatch.engines.pool import Pool
from autobatch.engines.processes import leaks
from autobatch.engines.processes import timeouts as patience
from autobatch.engines.processes.timeouts import PROBE_TIMEOUT_S, Patience
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.errors import DeviceError, NoValidResult, TaskError, WorkerDied, WorkerTimeout
from autobatch.searching.crew import Several

from ..helpers.processes import wait_until_gone
from ..helpers.ready_python import run

pytestmark = pytest.mark.usefixtures("ready_python")

TASKS = Path(__file__).parents[1] / "task_files"

# A model file with a switch: what its loss does is in a variable of the environment, its size in another.
TASK = """
import os, signal, sys, time
import torch
from torch import nn
from torch.utils.data import TensorDataset

baseline = {"batch_size": 8, "lr": 1e-2}

def model():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 3))

def train_data():
    y = torch.arange(60000) % 3
    return TensorDataset(torch.zeros(60000, 64), y)

def val_data():
    return TensorDataset(torch.randn(30, 64), torch.arange(30) % 3)

calls = 0

def loss(model, batch):
    global calls
    calls += 1
    fault = os.environ.get("FAULT", "")
    if calls > 12:
        if fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(600)
        if fault == "leak" and calls % 30 == 0:
            vars(sys).setdefault("leaked", []).append(torch.ones(10 << 20))  # no state of the task's
        if fault == "exit":
            sys.exit(0)
        if fault == "assert":
            raise RuntimeError("CUDA error: device-side assert triggered")
        if fault == "bus":
            raise RuntimeError("CUDA error: unknown error\\nCUDA kernel errors might be asynchronously reported")
        if fault == "raise":
            raise ValueError("a bug of the user's")
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)
"""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., RemoteRunner]]:
    file = tmp_path / "model.py"
    file.write_text(TASK)
    runners = []

    def make(fault: str = "", **settings: object) -> RemoteRunner:
        spec = RunnerSpec(path=file, device="cpu", checkpoints=tmp_path / "checkpoints", **settings)  # type: ignore[arg-type]
        runner = RemoteRunner(spec, log=tmp_path / "worker.log", environment={"FAULT": fault})
        runners.append(runner)
        return runner

    yield make
    for runner in runners:
        runner.close()


def segment(steps: int = 30, start: int = 0, **changes: object) -> TrainSegment:
    known: dict[str, object] = {
        "trial": 4,
        "config": Config(plan=Plan(batch_size=8), lr=1e-2),
        "seed": 1,
        "start_step": start,
        "until_step": steps,
        "total_steps": 60,
        "eval_batch_size": 16,
    }
    return TrainSegment(**(known | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("times", [1, 99])
def test_a_worker_that_is_killed_while_it_checks_the_task_is_asked_once_more(
    opened: Callable[..., RemoteRunner], tmp_path: Path, times: int
) -> None:
    """As by somebody's kill -9; a task that does it to itself each time is told as one."""
    calls = tmp_path / "calls"
    calls.touch()
    dies = f"""
def val_data():
    with open({str(calls)!r}, "a") as file:
        file.write("x")
    if os.path.getsize({str(calls)!r}) <= {times}:
        os.kill(os.getpid(), signal.SIGKILL)
    return TensorDataset(torch.randn(30, 64), torch.arange(30) % 3)
"""
    (tmp_path / "model.py").write_text(TASK + dies)
    runner = opened()
    if times == 1:
        assert runner.facts().val_size == 30
    else:
        with pytest.raises(WorkerDied, match="SIGKILL"):
            runner.facts()


def test_every_cpu_probe_runs_in_a_process_of_its_own(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened()
    probes = [runner.probe(Plan(batch_size=size), final=size == 8) for size in (2, 4, 8)]
    assert [probe.outcome for probe in probes] == ["ok"] * 3
    assert all(probe.fresh for probe in probes)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forking is for Linux")
def test_what_is_installed_is_imported_once_for_all_probes_and_what_is_the_users_in_each(
    opened: Callable[..., RemoteRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    count = "import os\nopen({file!r}, 'a').write('x')\nseen = os.environ.get('LIBRARY_SETTING')\n"
    for folder, name in ((installed, "autobatch_test_library"), (tmp_path, "autobatch_test_sibling")):
        (folder / f"{name}.py").write_text(count.format(file=str(tmp_path / name)))
    monkeypatch.syspath_prepend(installed)
    runner = opened()
    # Set before the import, as users do: whoever imports the library has to find it.
    setting = "import os\nos.environ['LIBRARY_SETTING'] = 'on'\n"
    imports = "import autobatch_test_library as library, autobatch_test_sibling\nassert library.seen == 'on'\n"
    (tmp_path / "model.py").write_text(setting + imports + TASK)
    runner.facts()
    assert [runner.probe(Plan(batch_size=size)).outcome for size in (2, 4, 8)] == ["ok"] * 3
    assert len((tmp_path / "autobatch_test_library").read_text()) == 2  # the worker and the server
    assert len((tmp_path / "autobatch_test_sibling").read_text()) == 4  # the worker and each probe


@pytest.fixture
def with_library(
    opened: Callable[..., RemoteRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RemoteRunner]:
    """Opens a task that imports an installed library, given what that does in the second process that imports it.

    That is the fork server, which is told what the worker imported. `tmp_path / "imports"` has a letter for each.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("forking is for Linux")
    installed, imports = tmp_path / "site-packages", str(tmp_path / "imports")
    installed.mkdir()
    monkeypatch.syspath_prepend(installed)

    def make(in_the_second: str, **settings: object) -> RemoteRunner:
        (installed / "autobatch_test_library.py").write_text(
            "import os, signal, time, torch\n"
            f"with open({imports!r}, 'a') as file:\n    file.write('x')\n"
            f"if os.path.getsize({imports!r}) == 2:\n    {in_the_second}\n"
        )
        (tmp_path / "model.py").write_text("import autobatch_test_library\n" + TASK)
        return opened(**settings)

    return make


def wait_for_imports(tmp_path: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while (tmp_path / "imports").stat().st_size < number and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "imports").stat().st_size == number


def test_closing_does_not_wait_for_a_library_that_hangs_in_the_server(
    with_library: Callable[..., RemoteRunner], tmp_path: Path
) -> None:
    runner = with_library("time.sleep(600)")
    runner.facts()
    wait_for_imports(tmp_path, 2)
    assert runner._server is not None
    pids = [runner._worker.process.pid, runner._server.pid]
    runner.close()
    assert all(map(wait_until_gone, pids))


def test_a_library_that_hangs_in_the_server_outlasts_no_deadline_and_is_not_tried_again(
    with_library: Callable[..., RemoteRunner], tmp_path: Path
) -> None:
    runner = with_library("time.sleep(600)")
    runner.facts()
    wait_for_imports(tmp_path, 2)
    runner._remaining_s = lambda: 2.0
    with pytest.raises(WorkerTimeout):
        runner.probe(Plan(batch_size=2))
    runner._remaining_s = lambda: 120.0
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"
    assert runner.advance(segment(steps=5)).outcome == "ok"
    wait_for_imports(tmp_path, 4)  # with the probe and the new worker; the new server has not imported it


def test_a_library_that_kills_the_server_does_not_cost_the_check(with_library: Callable[..., RemoteRunner]) -> None:
    runner = with_library("os.kill(os.getpid(), signal.SIGKILL)")
    assert runner.facts().train_size == 60000
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"


def test_a_library_that_kills_the_server_costs_no_probe_and_what_a_batch_does_later_is_its_own(
    with_library: Callable[..., RemoteRunner],
) -> None:
    runner = with_library("os.kill(os.getpid(), signal.SIGKILL)", fault="kill")
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"
    assert runner.probe(Plan(batch_size=2, accumulation_steps=20)).outcome == "oom"


def test_each_worker_has_the_threads_asked_for_though_a_library_computed_in_the_server(
    with_library: Callable[..., RemoteRunner], tmp_path: Path
) -> None:
    runner = with_library("torch.ones(1 << 22).sum()", threads=2)
    runner._remaining_s = lambda: 90.0  # one that waits for threads that the fork does not have would wait for ever
    assert runner.device().threads == 2
    assert runner.probe(Plan(batch_size=4096)).outcome == "ok"
    wait_for_imports(tmp_path, 2)  # the worker and the server, which the probe has it from
    forked = runner._start(exact=False).process
    asked, running = forked.submit(threads_after_a_sum).result(timeout=90)
    assert asked == 2
    assert running >= 3  # two that compute and the one that reads the jobs
    forked.kill()


def threads_after_a_sum() -> tuple[int, int]:
    """How many torch takes, and how many this process has."""
    torch.ones(1 << 22).sum()
    return torch.get_num_threads(), len(os.listdir("/proc/self/task"))


def test_a_batch_beyond_a_real_limit_is_out_of_memory_and_the_next_one_is_unharmed(
    opened: Callable[..., RemoteRunner],
) -> None:
    runner = opened(memory_limit_bytes=48 << 20, headroom=0.0)
    refused = runner.probe(Plan(batch_size=50_000))
    assert refused.outcome == "oom"
    assert refused.message is not None
    assert runner.probe(Plan(batch_size=64)).outcome == "ok"


def test_every_worker_has_the_wall_of_the_first(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened()
    limit = runner.memory()
    runner._worker.process.kill()
    assert runner._call("memory").budget_bytes == limit.budget_bytes
    assert runner.memory() is limit


@pytest.mark.parametrize(("fault", "outcome"), [("segfault", "crashed"), ("kill", "oom")])
def test_a_worker_that_dies_in_a_probe_is_one_failed_probe(
    fault: str, outcome: str, opened: Callable[..., RemoteRunner]
) -> None:
    runner = opened(fault)
    # The fault strikes after a dozen forward passes: accumulation gets there in one probe.
    assert runner.probe(Plan(batch_size=2, accumulation_steps=20)).outcome == outcome
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"


def test_a_worker_that_somebody_kills_in_a_probe_costs_no_answer(
    opened: Callable[..., RemoteRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened()
    runner.memory()
    start = runner._start
    started: list[Any] = []

    def killed_at_first(*, exact: bool) -> Any:
        worker = start(exact=exact)
        if not started:
            worker.opening.add_done_callback(lambda _: os.kill(worker.process.pid, signal.SIGKILL))
        started.append(worker)
        return worker

    monkeypatch.setattr(runner, "_start", killed_at_first)
    probe = runner.probe(Plan(batch_size=2))
    assert (probe.outcome, len(started)) == ("ok", 2)


def test_where_the_kernel_counts_a_kill_for_want_of_memory_the_batch_is_not_run_again(
    opened: Callable[..., RemoteRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened("kill")
    runner.memory()
    counts = iter(range(100))
    monkeypatch.setattr(host_memory, "kills", lambda: next(counts))
    start = runner._start
    started: list[bool] = []

    def counted(*, exact: bool) -> Any:
        started.append(exact)
        return start(exact=exact)

    monkeypatch.setattr(runner, "_start", counted)
    assert runner.probe(Plan(batch_size=2, accumulation_steps=20)).outcome == "oom"
    assert len(started) == 1


def test_a_probe_that_hangs_is_one_failed_probe(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened("hang")
    runner.memory()
    runner._patience.probe_timeout_s = 5.0
    hung = runner.probe(Plan(batch_size=2, accumulation_steps=20))
    assert hung.outcome == "crashed"
    assert "probe took longer than the 5.0 s it had" in str(hung.message)
    runner._patience.probe_timeout_s = 600.0
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"


def test_patience_grows_as_a_loss_over_all_pairs_does() -> None:
    patience = Patience()
    patience.learn_probe(Plan(batch_size=10), 3.0)
    assert patience.probe_s(Plan(batch_size=100), 0) == PROBE_TIMEOUT_S + 600.0
    assert patience.probe_s(Plan(batch_size=100), 200) == 3 * PROBE_TIMEOUT_S + 201 * 600.0


def test_patience_with_steps_is_by_what_they_are_known_to_take() -> None:
    patience = Patience()
    assert patience.steps_s(Plan(batch_size=8), 9, 2.0) == PROBE_TIMEOUT_S + 10.0  # nothing is known
    patience.learn_probe(Plan(batch_size=10), 4.0)
    assert patience.steps_s(Plan(batch_size=10), 9) == 5 * (4.0 + 9 * 2.0)
    assert patience.steps_s(Plan(batch_size=1), 9) == 5 * (4.0 + 9 * 2.0)  # what is compiled does not grow smaller
    assert patience.steps_s(Plan(batch_size=20), 9, 1.0) == 5 * (1.0 + 16.0 + 9 * 8.0)
    patience.learn_time(Measurement(plan=Plan(batch_size=10), outcome="ok", step_s=(0.02,) * 3))
    assert patience.steps_s(Plan(batch_size=10), 100) == 5 * (4.0 + 100 * 0.02)
    patience.learn_probe(Plan(batch_size=10), 0.1)
    assert patience.steps_s(Plan(batch_size=10), 100) == 30.0  # nothing is called hung before


def test_a_step_that_breaks_the_device_is_one_failed_probe_in_a_worker_that_is_replaced(
    opened: Callable[..., RemoteRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteRunner, "_on_cpu", False)
    runner = opened("assert")
    runner.facts()
    first = runner._worker.process.pid
    lost = runner.probe(Plan(batch_size=2, accumulation_steps=20))
    assert lost.outcome == "crashed"
    assert "device-side assert triggered" in str(lost.message)
    assert "model.py" in str(lost.message)
    assert wait_until_gone(first)
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"


def test_a_crash_costs_a_segment_and_the_next_trial_runs(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened("segfault")
    crashed = runner.advance(segment())
    assert crashed.outcome == "crashed"
    assert "SIGSEGV" in str(crashed.message)
    assert runner.advance(segment(steps=5)).outcome == "ok"


# Its data notes who reads it, and whether whoever read it before is gone; FAULT says what befalls the first reader.
SCOUTED = """
import os, signal
from pathlib import Path
import torch
from torch import nn

readers = Path(__file__).with_name("readers")
baseline = {"batch_size": 4, "lr": 1e-2}

class Texts(torch.utils.data.Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.ones(1 + index % 7), index % 3

def holds_memory(pid):  # one that has ended holds none, though it may still have a number
    try:
        return Path(f"/proc/{pid}/statm").read_text().split()[0] != "0"
    except OSError:
        return False

def train_data():
    before = readers.read_text().split() if readers.exists() else []
    is_gone = not any(holds_memory(pid) for pid in before[:1])
    with open(readers, "a") as file:
        file.write(f"{os.getpid()} {is_gone}\\n")
    fault = os.environ.get("FAULT")
    if fault == "broken" or (fault and not before):
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no data here")
    return Texts(50)

def val_data():
    return Texts(10)

def collate(samples):
    texts, labels = zip(*samples)
    return nn.utils.rnn.pad_sequence(texts, batch_first=True), torch.tensor(labels)

def model():
    return nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Linear(1, 3))
"""


@pytest.mark.parametrize("fault", ["", "raised", "killed"])
def test_where_nothing_is_timed_a_process_of_its_own_reads_the_data_first_and_is_gone_when_it_is_read_again(
    fault: str, tmp_path: Path
) -> None:
    (tmp_path / "scouted.py").write_text(SCOUTED)
    spec = RunnerSpec(path=tmp_path / "scouted.py", device="cpu", threads=1, is_timed=False)
    with closing(RemoteRunner(spec, log=tmp_path / "log", environment={"FAULT": fault})) as runner:
        facts = runner.facts()
        readers = [line.split() for line in (tmp_path / "readers").read_text().splitlines()]
        assert runner.probe(Plan(batch_size=4)).outcome == "ok"
    assert facts.worst_cases["train_data"].varies
    assert set(facts.worst_cases["train_data"].largest) == set(range(6, 50, 7))
    assert facts.val_size == 10
    (scout, _), (worker, was_gone) = readers
    assert scout != worker
    assert was_gone == "True"


def test_what_is_wrong_with_the_data_is_told_by_the_check_though_another_process_met_it_first(tmp_path: Path) -> None:
    (tmp_path / "scouted.py").write_text(SCOUTED)
    spec = RunnerSpec(path=tmp_path / "scouted.py", device="cpu", threads=1, is_timed=False)
    with closing(RemoteRunner(spec, log=tmp_path / "log", environment={"FAULT": "broken"})) as runner:
        with pytest.raises(TaskError, match=r"(?s)train_data\(\) of scouted.py failed.*no data here"):
            runner.facts()
        with pytest.raises(TaskError, match="no data here"):  # told each time that it is asked
            runner.facts()


class Falling(RemoteRunner):
    """On a card that falls off its bus: it is there for the first worker alone, and no device has the number later."""

    def _start(self, *, exact: bool) -> Any:
        if hasattr(self, "_worker"):
            self._spec = replace(self._spec, device="cuda:99")
        return super()._start(exact=exact)


def test_a_card_that_falls_off_its_bus_is_a_lost_device_and_a_race_goes_on_with_others(
    opened: Callable[..., RemoteRunner], tmp_path: Path
) -> None:
    spec = opened()._spec
    gone = Falling(spec, log=tmp_path / "worker.log", environment={"FAULT": "bus"})
    sound = opened()
    try:
        with closing(Several([gone, sound])) as crew:
            crew.submit(segment(steps=30, total_steps=30))
            crashed = crew.next()[1].result()  # no error of the user's, though their frames are told
            assert crashed.outcome == "crashed"
            assert "CUDA error: unknown error" in str(crashed.message)
            crew.submit(segment(trial=5, steps=30, total_steps=30))
            crew.submit(segment(trial=6, steps=30, total_steps=30))
            ended = [crew.next() for _ in range(2)]
            lost = [(segment, done) for segment, done in ended if done.exception() is not None]
            assert len(lost) == 1
            assert isinstance(lost[0][1].exception(), DeviceError)
            assert crew.size == 1
            crew.submit(lost[0][0])
            assert crew.next()[1].result().outcome == "ok"
    finally:
        gone.close()


@pytest.mark.parametrize("remedy", ["another device", "none"])
def test_a_card_that_falls_off_its_bus_in_the_check_is_left_out_where_there_is_another(
    opened: Callable[..., RemoteRunner], tmp_path: Path, remedy: str
) -> None:
    (tmp_path / "model.py").write_text(TASK.replace("calls > 12", "calls > 0"))
    spec = opened()._spec
    gone = Falling(spec, log=tmp_path / "worker.log", environment={"FAULT": "bus"})
    with closing(Pool([gone, opened()] if remedy == "another device" else [gone])) as pool:
        if remedy == "none":
            with pytest.raises(DeviceError, match="cuda:99"):
                pool.facts()
            return
        assert pool.facts().val_size == 30
        assert pool.size == 1
        (remark,) = pool.remarks
        assert remark.startswith("a device was left out: ")


def test_a_step_of_the_check_that_breaks_the_device_each_time_is_told(
    opened: Callable[..., RemoteRunner], tmp_path: Path
) -> None:
    """A bug of the task's as a rule: an index out of range."""
    (tmp_path / "model.py").write_text(TASK.replace("calls > 12", "calls > 0"))
    with pytest.raises(TaskError, match=r"device-side assert triggered(.|\n)*model.py"):
        opened("assert").facts()


def test_a_segment_that_hangs_is_cut_off(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened("hang")
    runner.facts()
    hung = runner.advance(segment(limit_s=1.0))
    assert hung.outcome == "timeout"
    assert runner.advance(segment(steps=5)).outcome == "ok"


SLOW_DATA = """
_quick = train_data

def train_data():
    with open({calls!r}, "a") as file:
        file.write("x")
    if os.path.exists({calls!r} + ".slow"):
        time.sleep({seconds})
    return _quick()
"""


@pytest.mark.parametrize("limited", [False, True])
def test_a_worker_that_is_new_in_mid_race_loads_the_data_in_no_segments_time(
    opened: Callable[..., RemoteRunner], tmp_path: Path, limited: bool
) -> None:
    """As one that was killed, that is another than the first, or that a memory limit on a processor asks for."""
    calls = tmp_path / "calls"
    (tmp_path / "model.py").write_text(TASK + SLOW_DATA.format(calls=str(calls), seconds=6.0))
    runner = opened(**({"memory_limit_bytes": 4 << 30} if limited else {}))
    known = None if limited else opened().facts()
    if known is None:
        runner.facts()
    else:
        runner.learn(known)
    before = len(calls.read_text())
    (tmp_path / "calls.slow").touch()
    for trial in range(2):
        begun = time.monotonic()
        # Less than the data takes, and else as long as a busy machine may want for five steps.
        result = runner.advance(segment(trial=trial, steps=5, limit_s=5.9))
        assert result.outcome == "ok", result.message
        assert time.monotonic() - begun > 6.0
        assert result.seconds < 6.0  # what is planned by it
        assert result.is_first
        again = runner.advance(segment(trial=trial + 10, steps=5, limit_s=5.9))
        assert (again.outcome, again.is_first) == ("ok", False)
        assert len(calls.read_text()) == before + trial + 1
        runner._worker.process.kill()


def test_what_a_new_worker_takes_ends_with_the_time_for_everything(
    opened: Callable[..., RemoteRunner], tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(TASK + SLOW_DATA.format(calls=str(tmp_path / "calls"), seconds=600))
    (tmp_path / "calls.slow").touch()
    runner = opened()
    runner.device()
    runner._remaining_s = lambda: 3.0
    assert runner.advance(segment(steps=5, limit_s=60.0)).outcome == "timeout"
    with pytest.raises(WorkerTimeout) as ended:
        runner.time(Plan(batch_size=8), budget_s=1.0)
    assert not ended.value.is_hang


def test_a_hang_before_the_race_is_told_as_one(
    opened: Callable[..., RemoteRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "HANG_LEAST_S", 2.0)
    monkeypatch.setattr(patience, "HANG_FACTOR", 0.01)
    metric = "\ndef metric(model, batch):\n    return -loss(model, batch).expand(len(batch[0]))\n"
    (tmp_path / "model.py").write_text(TASK + metric)
    runner = opened("hang")
    runner._remaining_s = lambda: 300.0
    assert runner.probe(Plan(batch_size=8)).outcome == "ok"
    timed = runner.time(Plan(batch_size=8), budget_s=1.0)
    assert (timed.outcome, timed.plan) == ("crashed", Plan(batch_size=8))
    assert "time took longer than the 2.0 s it had" in str(timed.message)
    with pytest.raises(NoValidResult, match=r"range test at batch 8 hung: sweep_lr took longer than the 2\.0 s"):
        runner.sweep_lr(Plan(batch_size=8), lowest=1e-5, highest=1e-1, steps=40, seed=0)
    runner._patience.probe_timeout_s = 2.0
    with pytest.raises(WorkerTimeout, match=r"time_evaluation took longer than the 2\.0 s") as hung:
        runner.time_evaluation(1)
    assert hung.value.is_hang


def test_a_bug_in_the_task_is_the_users_error_not_a_limit(opened: Callable[..., RemoteRunner]) -> None:
    with pytest.raises(TaskError, match=r"ValueError: a bug of the user's(.|\n)*model.py"):
        opened("raise").probe(Plan(batch_size=2, accumulation_steps=20))


def test_a_task_that_exits_by_itself_does_not_end_us(opened: Callable[..., RemoteRunner]) -> None:
    with pytest.raises(TaskError, match=r"it called sys\.exit\(0\)(.|\n)*model\.py"):
        opened("exit").advance(segment())


def test_a_worker_that_died_is_replaced_for_the_next_probe_and_only_a_fresh_one_says_so(
    opened: Callable[..., RemoteRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteRunner, "_on_cpu", False)  # one worker for all probes, as on an accelerator
    runner = opened("kill")
    runner.facts()
    first = runner._worker.process.pid
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"
    assert runner._worker.process.pid == first
    died = runner.probe(Plan(batch_size=2, accumulation_steps=20))
    assert (died.outcome, died.fresh) == ("oom", True)  # the second time, which was in a worker of its own
    assert runner.probe(Plan(batch_size=2)).outcome == "ok"
    assert runner._worker.process.pid != first
    final = runner.probe(Plan(batch_size=4), final=True)
    assert (final.outcome, final.fresh) == ("ok", True)


def test_what_comes_after_the_race_is_not_worth_failing_for(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened()
    assert runner.advance(segment(steps=5)).outcome == "ok"
    runner._remaining_s = lambda: 0.0
    assert runner.test_score(segment(steps=5)) is None
    runner.forget(4)


def test_a_paused_trial_goes_on_in_another_process(opened: Callable[..., RemoteRunner]) -> None:
    straight = opened().advance(segment(steps=60))
    runner = opened()
    assert runner.advance(segment(steps=20)).outcome == "ok"
    runner._worker.process.kill()
    assert runner.advance(segment(steps=60, start=20)).score == straight.score


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of a process is looked for in /proc")
def test_a_worker_that_leaks_is_replaced_between_two_segments(
    opened: Callable[..., RemoteRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = host_memory.Available(free_bytes=400 << 20, total_bytes=1 << 30, source="available on the machine")
    scores: dict[str, list[float | None]] = {}
    workers: dict[str, list[int]] = {}
    for fault in ("leak", ""):
        runner = opened(fault)
        runner.facts()
        with monkeypatch.context() as patch:
            patch.setattr(leaks, "LEAK_LEAST_BYTES", 16 << 20)
            patch.setattr(
                host_memory, "available", lambda: little
            )  # 40 MiB a segment, and a quarter of this is too much
            workers[fault], scores[fault] = [], []
            for number in range(6):
                before = runner._worker.process
                result = runner.advance(segment(trial=number, steps=30, total_steps=30))
                scores[fault].append(result.score)
                workers[fault].append(before.alive)
                assert result.outcome == "ok"
    assert workers[""] == [True] * 6
    assert workers["leak"].count(False) in (1, 2)
    assert scores["leak"] == scores[""]
    log = (tmp_path / "worker.log").read_text()
    assert re.search(
        r"worker \d+ was replaced: it had grown by 1\d\d MiB since its first segment, and 400 MiB are", log
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process")
def test_what_a_task_keeps_from_segment_to_segment_costs_a_segment_and_then_its_worker(
    opened: Callable[..., RemoteRunner],
) -> None:
    """40 MiB a segment are below what is looked for between two segments, and run into a limit of 256."""
    runner = opened("leak", memory_limit_bytes=256 << 20, headroom=0.0)

    def trained(trial: int, *, fresh: bool = False) -> SegmentResult:
        return runner.advance(segment(trial=trial, steps=30, total_steps=30, fresh=fresh))

    results = [trained(0)]
    while results[-1].outcome == "ok" and len(results) < 12:
        results.append(trained(len(results)))
    full = runner._worker.process
    assert [result.outcome for result in results] == ["ok"] * (len(results) - 1) + ["oom"]
    assert [result.fresh for result in results] == [True] + [False] * (len(results) - 1)
    assert not full.alive
    again = trained(len(results) - 1, fresh=True)
    assert (again.outcome, again.fresh) == ("ok", True)


def test_a_worker_is_as_new_to_a_segment_until_it_has_taken_a_step(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened()
    runner.facts()  # its check takes some
    checked = runner._worker.process
    assert not runner.advance(segment(steps=5)).fresh
    assert runner._worker.process is checked
    runner.prepare(fresh=True)  # as a cluster does beforehand
    prepared = runner._worker.process
    assert prepared is not checked
    assert runner.advance(segment(steps=5, fresh=True)).fresh
    assert runner._worker.process is prepared
    assert runner.advance(segment(steps=5, fresh=True)).fresh
    assert runner._worker.process is not prepared
    assert not runner.advance(segment(steps=5)).fresh


def test_a_call_ends_when_the_time_for_everything_does(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import time\ntime.sleep(600)\n")
    runner = RemoteRunner(RunnerSpec(path=tmp_path / "model.py", device="cpu"), remaining_s=lambda: 6.0)
    with pytest.raises(WorkerTimeout, match=r"took longer than the [\d.]+ s it had"):
        runner.facts()
    runner.close()


def test_what_a_task_prints_goes_to_the_log_not_to_the_terminal(tmp_path: Path) -> None:
    noisy = (TASKS / "minimal.py").read_text() + "\nprint('hello from the task')\n"
    (tmp_path / "noisy.py").write_text(noisy)
    code = (
        "import sys; from pathlib import Path; from autobatch.engines.remote import *; "
        "r = RemoteRunner(RunnerSpec(path=Path('noisy.py'), device='cpu'), log=Path('log')); r.facts(); r.close()"
    )
    result = run([sys.executable, "-c", code], cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "hello" not in result.stdout + result.stderr
    assert "hello from the task" in (tmp_path / "log").read_text()


def test_closing_leaves_no_process(opened: Callable[..., RemoteRunner]) -> None:
    runner = opened()
    runner.facts()
    assert runner._server is not None
    pids = [runner._worker.process.pid, runner._server.pid]
    runner.close()
    runner.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("5,2", 5), ("0", None), ("many", None), ("", None)])
def test_the_users_number_of_threads_is_kept(
    variable: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = default_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert default_threads() == (threads or cores)
