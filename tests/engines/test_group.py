"""Trials of several processes: they train what one process with their batches together trains, and none is waited for
in vain.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autobatch.core.checkpoints import part_of_rank
from autobatch.core.plan import Config, Plan
from autobatch.core.segment import TrainSegment
from autobatch.devices import host_memory, open_device
from autobatch.engines.group import COLLECTIVE_S, GroupRunner, open_workers
from autobatch.engines.processes import leaks
from autobatch.engines.processes import timeouts as patience
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.errors import CheckpointError, DeviceError, NoValidResult, TaskError, WorkerDied, WorkerTimeout
from autobatch.tasks.task import load_task
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.trial_state import read_checkpoint

from ..helpers.processes import PATIENCE_S, wait_until_gone

pytestmark = pytest.mark.usefixtures("ready_python")

TASKS = Path(__file__).parents[1] / "task_files"

# A model that uses more of itself than its call, and a loss that fails on the rank and at the call that are asked for.
TASK = """
import os, signal, sys, time
import torch
from torch import nn
from torch.utils.data import TensorDataset

baseline = {"batch_size": 4, "lr": 1e-2}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def features(self, x):
        return torch.tanh(self.body(x))

def model():
    return Net()

def blobs(seed, count):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 8, generator=generator) + y[:, None], y)

def train_data():
    return blobs(0, 200)

def val_data():
    return blobs(1, 60)

def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)

def metric(model, batch):
    x, y = batch
    return (model.head(model.features(x)).argmax(1) == y).float()

calls = 0

def loss(model, batch):
    global calls
    calls += 1
    fault, rank, call = os.environ.get("FAULT", "none:9:9").split(":")
    if os.environ.get("RANK") == rank and calls > int(call):
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "end":
            os._exit(3)
        if fault == "hang":
            time.sleep(600)
        if fault == "leak":
            vars(sys).setdefault("leaked", []).append(torch.ones(1 << 20))  # no state of the task's
        if fault == "memory":
            raise MemoryError("as if there were none")
        if fault == "raise":
            raise ValueError("a bug of the user's")
        if fault == "nan":
            return model.head(model.features(batch[0])).sum() * float("nan")
    x, y = batch
    return nn.functional.cross_entropy(model.head(model.features(x)), y)
"""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., GroupRunner]]:
    runners = []

    def make(task: str = TASK, fault: str = "none:9:9", nproc: int = 2, **settings: Any) -> GroupRunner:
        file = tmp_path / "model.py"
        file.write_text(task)
        spec = RunnerSpec(path=file, device="cpu", checkpoints=tmp_path / "checkpoints", nproc=nproc)
        runner = GroupRunner(spec, log=tmp_path / "worker.log", environment={"FAULT": fault}, **settings)
        runners.append(runner)
        return runner

    yield make
    for runner in runners:
        runner.close()


def be_patient(runner: GroupRunner) -> None:
    """No hurry from here on: a new group is to be opened and to train, on whatever machine."""
    runner._collective_s, runner._straggler_s = COLLECTIVE_S, PATIENCE_S


def segment(plan: Plan, steps: int = 30, start: int = 0, **changes: object) -> TrainSegment:
    known: dict[str, object] = {
        "trial": 4,
        "config": Config(plan=plan, lr=0.05),
        "seed": 1,
        "start_step": start,
        "until_step": steps,
        "total_steps": 60,
        "eval_batch_size": 16,
    }
    return TrainSegment(**(known | changes))  # type: ignore[arg-type]


PAIR = Plan(batch_size=4, ranks=2)


def latest(folder: Path, trial: int = 4) -> Path:
    """A trial's checkpoint of the most steps."""
    return max(folder.glob(f"trial-{trial:05d}-*.pt"))


def checkpoint(tmp_path: Path, trial: int = 4) -> dict[str, Any]:
    return read_checkpoint(latest(tmp_path / "checkpoints", trial))


def alone(tmp_path: Path, plan: Plan, steps: int = 30) -> tuple[dict[str, Any], Any]:
    """The weights, and what the segment showed, of one process."""
    shutil.rmtree(tmp_path / "alone", ignore_errors=True)  # of another number of steps
    runner = TorchRunner(load_task(tmp_path / "model.py"), open_device("cpu"), checkpoints=tmp_path / "alone")
    try:
        result = runner.advance(segment(plan, steps))
    finally:
        runner.close()
    return read_checkpoint(latest(tmp_path / "alone"))["model"], result


ITERABLE = TASK.replace(
    "def train_data():\n    return blobs(0, 200)",
    """class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(blobs(0, 203))

def train_data():
    return Stream()""",
)
OWN_STEP = (
    TASK.replace("def loss(model, batch):", "def never(model, batch):")
    + """
def training_step(model, batch, scale):
    x, y = batch
    loss = nn.functional.cross_entropy(model(x), y)
    (loss * scale).backward()
    return loss
Net.forward = lambda self, x: self.head(self.features(x))
"""
)
CLIPPED = TASK + "clip_grad_norm = 0.05\n"
LEFT_OUT = TASK.replace("self.body, self.head =", "self.spare = nn.Linear(4, 4); self.body, self.head =")


def with_two_labels_a_sample(function: str, ignored: str) -> str:
    """Two predictions a sample, from the same features, of which a part is ignored: ranks have unlike numbers."""
    return (
        TASK.replace("TensorDataset(torch.randn", "TensorDataset(torch.randn")
        .replace("nn.Linear(16, 3)\n", "nn.Linear(16, 6)\n")
        .replace("+ y[:, None], y)", f"+ y[:, None], _labelled(y, {ignored}))")
        .replace("def metric(", "def _metric(")
        .replace("def loss(", "def _loss(")
        + """
def _labelled(y, ignored):
    g = torch.Generator().manual_seed(7)
    drop = torch.rand(len(y), 2, generator=g) < 0.6
    drop[::3] = True
    return torch.stack([y, y], dim=1).masked_fill(drop, ignored)
Net.forward = lambda self, x: self.head(self.features(x)).unflatten(1, (3, 2))
"""
        + function
    )


DEFAULT = with_two_labels_a_sample("", "-100")
WEIGHED = with_two_labels_a_sample(
    """
def loss(model, batch):  # nan where nothing counts
    return nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=-7)
def weight(batch):
    return (batch[1] != -7).sum()
def metric(model, batch):
    return ((model(batch[0]).argmax(1) == batch[1]) & (batch[1] != -7)).sum() / (batch[1] != -7).sum()
""",
    "-7",
)


@pytest.mark.parametrize(
    ("task", "micro", "steps"),
    [
        (TASK, 1, 1),
        (TASK, 3, 3),
        (ITERABLE, 1, 1),
        (OWN_STEP, 2, 2),
        (CLIPPED, 1, 1),
        (LEFT_OUT, 1, 1),
        (DEFAULT, 1, 1),
        (WEIGHED, 1, 1),
    ],
    ids=["plain", "accumulated", "iterable", "own step", "clipped", "left out", "ignored labels", "weight"],
)
def test_two_ranks_train_what_one_process_of_twice_the_batch_trains(
    opened: Callable[..., GroupRunner], tmp_path: Path, task: str, micro: int, steps: int
) -> None:
    runner = opened(task)
    together = runner.advance(segment(replace(PAIR, accumulation_steps=micro)))
    assert together.outcome == "ok", together.message
    weights, result = alone(tmp_path, Plan(batch_size=8, accumulation_steps=steps))
    torch.testing.assert_close(checkpoint(tmp_path)["model"], weights)
    assert together.score == pytest.approx(result.score)
    untrained, _ = alone(tmp_path, Plan(batch_size=8, accumulation_steps=steps), 1)
    assert not torch.allclose(
        untrained["body.weight"], weights["body.weight"], atol=1e-3
    )  # there was something to learn


@pytest.mark.parametrize("task", [TASK, DEFAULT], ids=["plain", "ignored labels"])
def test_the_losses_of_two_ranks_are_those_of_one_process_of_twice_the_batch(
    opened: Callable[..., GroupRunner], tmp_path: Path, task: str
) -> None:
    together = opened(task).sweep_lr(PAIR, lowest=1e-4, highest=1e-1, steps=20, seed=0)
    with closing(TorchRunner(load_task(tmp_path / "model.py"), open_device("cpu"))) as runner:
        one = runner.sweep_lr(Plan(batch_size=8), lowest=1e-4, highest=1e-1, steps=20, seed=0)
    assert len(together.losses) == 20
    assert together.losses == pytest.approx(one.losses, rel=1e-4)


# Noise in the model and in the data, so that each rank's generators count; batch norm, whose statistics differ.
NOISY = TASK.replace(
    "nn.Linear(8, 16), ", "nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3)), "
).replace(
    "    x, y = batch\n    return nn.functional",
    "    x, y = batch\n    x = x + 0.1 * torch.randn_like(x)\n    return nn.functional",
)


@pytest.mark.parametrize("nproc", [2, 3])
def test_a_resumed_trial_of_ranks_equals_one_straight_through_bit_for_bit(
    opened: Callable[..., GroupRunner], tmp_path: Path, nproc: int
) -> None:
    plan = Plan(batch_size=4, ranks=nproc)
    runner = opened(NOISY, nproc=nproc)
    assert runner.advance(segment(plan, 20)).outcome == "ok"
    runner.advance(segment(plan, 40, trial=5))
    runner.close()  # and other processes go on
    runner = opened(NOISY, nproc=nproc)
    assert runner.advance(segment(plan, 40, start=20)).outcome == "ok"
    resumed, straight = checkpoint(tmp_path), checkpoint(tmp_path, 5)
    for name, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    states = [state["torch"] for state in straight["rng"]]
    assert len(states) == nproc
    assert not torch.equal(states[0], states[1])  # each rank draws for itself
    assert all(torch.equal(a, b["torch"]) for a, b in zip(states, resumed["rng"], strict=True))


# What each rank keeps beside the model is its own, and decides its steps: the samples that it saw last.
KEEPING = TASK.replace(
    "    x, y = batch\n    return nn.functional",
    "    x, y = batch\n    seen = getattr(model, 'seen', x)\n    model.seen = x\n"
    "    x = x + 0.1 * seen[: len(x)].mean(dim=0)\n    return nn.functional",
)


def test_each_rank_keeps_its_own_state_in_a_file_of_its_own(opened: Callable[..., GroupRunner], tmp_path: Path) -> None:
    runner = opened(KEEPING)
    assert runner.advance(segment(PAIR, 20)).outcome == "ok"
    runner.advance(segment(PAIR, 40, trial=5))
    first = latest(tmp_path / "checkpoints")
    others = [path.name for path in first.parent.glob(f"{first.name}.*")]
    assert others == [f"{first.name}.rank-1"]
    ours, theirs = (read_checkpoint(first, rank)["carried"] for rank in (0, 1))
    assert (len(ours), len(theirs)) == (1, 2)
    seen = [[one for one in state["tensors"] if one.shape == (4, 8)] for state in theirs]
    assert [len(found) for found in seen] == [1, 1]
    assert not torch.equal(seen[0][0], seen[1][0])
    runner.close()
    runner = opened(KEEPING)
    assert runner.advance(segment(PAIR, 40, start=20)).outcome == "ok"
    resumed, straight = checkpoint(tmp_path), checkpoint(tmp_path, 5)
    for name, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    runner.forget(4)
    assert not list(first.parent.glob("trial-00004-*"))

    part = part_of_rank(latest(tmp_path / "checkpoints", 5), 1)
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"the part of rank 1, .*\.rank-1, is not whole"):
        read_checkpoint(latest(tmp_path / "checkpoints", 5), 1)


@pytest.mark.parametrize(
    ("fault", "outcome", "message"),
    [
        ("memory:1:12", "oom", "rank 1: MemoryError"),
        ("memory:0:12", "oom", "rank 0: MemoryError"),
        ("kill:1:12", "crashed", "rank 1: the worker process ended by SIGKILL"),
        ("kill:0:12", "crashed", "rank 0: the worker process ended by SIGKILL"),
        ("end:1:12", "crashed", "rank 1: the worker process ended with exit code 3"),
        ("nan:1:0", "diverged", "the loss was not finite"),
    ],
)
def test_what_fails_on_one_rank_is_the_outcome_of_the_segment(
    opened: Callable[..., GroupRunner], fault: str, outcome: str, message: str
) -> None:
    runner = opened(fault=fault, straggler_s=2.0)
    result = runner.advance(segment(PAIR))
    assert result.outcome == outcome
    assert message in (result.message or "")
    if outcome != "diverged":
        be_patient(runner)
        assert runner.advance(segment(PAIR, 10)).outcome == "ok"  # a new group, which the fault has not reached yet


def test_an_error_of_the_users_on_one_rank_is_told_with_its_rank(opened: Callable[..., GroupRunner]) -> None:
    runner = opened(fault="raise:1:12", straggler_s=2.0)
    with pytest.raises(TaskError, match=r"rank 1: .*a bug of the user's"):
        runner.advance(segment(PAIR))
    be_patient(runner)
    assert runner.advance(segment(PAIR, 10)).outcome == "ok"


@pytest.mark.parametrize(
    ("limit_s", "collective_s"), [(3.0, 600.0), (None, 3.0)], ids=["its rung's limit", "a collective's limit"]
)
def test_a_rank_that_hangs_is_cut(
    opened: Callable[..., GroupRunner], limit_s: float | None, collective_s: float
) -> None:
    runner = opened(fault="hang:1:12", straggler_s=2.0, collective_s=collective_s)
    result = runner.advance(segment(PAIR, limit_s=limit_s))
    assert result.outcome == "timeout", result.message
    be_patient(runner)
    assert runner.advance(segment(PAIR, 10)).outcome == "ok"


def test_a_segment_that_is_to_be_believed_gets_a_group_that_has_run_nothing(opened: Callable[..., GroupRunner]) -> None:
    runner = opened()
    assert runner.advance(segment(PAIR, 10)).fresh
    first = runner._team
    assert not runner.advance(segment(PAIR, 10, trial=5)).fresh
    assert runner._team is first
    assert runner.advance(segment(PAIR, 10, trial=5, fresh=True)).fresh
    assert runner._team is not first


def test_a_new_group_loads_the_data_in_no_segments_time(opened: Callable[..., GroupRunner], tmp_path: Path) -> None:
    slow = """
_quick = train_data

def train_data():
    if os.path.exists({file!r}):
        time.sleep(6.0 + 4.0 * (os.environ.get("RANK") == "1"))  # later than rank 0 by more than a straggler has
    return _quick()
"""
    runner = opened(TASK + slow.format(file=str(tmp_path / "slow")), straggler_s=3.9)
    runner.memory()
    (tmp_path / "slow").touch()
    for _ in range(2):
        # Less than the data takes, and else as long as a busy machine may want for five steps.
        result = runner.advance(segment(PAIR, 5, limit_s=5.9))
        assert result.outcome == "ok", result.message
        assert (result.seconds < 6.0, result.is_first) == (True, True)
        assert not runner.advance(segment(PAIR, 5, trial=5, limit_s=5.9)).is_first
        runner._end_team()


def test_a_hang_of_the_ranks_before_the_race_is_told_as_one(
    opened: Callable[..., GroupRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "HANG_LEAST_S", 3.0)
    monkeypatch.setattr(patience, "HANG_FACTOR", 0.01)
    runner = opened(fault="hang:1:12", straggler_s=1.0, remaining_s=lambda: 300.0)
    assert runner.probe(PAIR).outcome == "ok"
    timed = runner.time(PAIR, budget_s=1.0)
    assert timed.outcome == "crashed"
    assert "no answer in the time there was" in str(timed.message)
    with pytest.raises(NoValidResult, match="the range test at batch 8 hung"):
        runner.sweep_lr(PAIR, lowest=1e-4, highest=1e-1, steps=40, seed=0)
    runner._remaining_s = lambda: 2.0  # from here on it is the time for everything that ends
    with pytest.raises(WorkerTimeout):
        runner.time(PAIR, budget_s=1.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of a process is looked for in /proc")
def test_a_group_of_which_a_rank_leaks_is_replaced_between_two_segments(
    opened: Callable[..., GroupRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened(fault="leak:1:0")
    assert runner.advance(segment(PAIR, 20)).outcome == "ok"
    first = runner._team
    little = host_memory.Available(free_bytes=400 << 20, total_bytes=1 << 30, source="available on the machine")
    monkeypatch.setattr(leaks, "LEAK_LEAST_BYTES", 16 << 20)
    monkeypatch.setattr(host_memory, "available", lambda: little)
    assert runner.advance(segment(PAIR, 60, start=20)).outcome == "ok"  # 160 MiB on one rank, and 100 are too much
    assert runner._team is None
    assert runner.advance(segment(PAIR, 20, trial=5)).is_first
    assert first is not runner._team
    log = (tmp_path / "worker.log").read_text()
    assert re.search(
        r"workers \d+, \d+ were replaced: they had grown by 1\d\d MiB since their first segment, and 400", log
    )


def test_a_log_that_cannot_be_written_is_not_worth_failing_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([1 << 30, 8 << 30])
    little = host_memory.Available(free_bytes=1 << 30, total_bytes=1 << 34, source="available on the machine")
    monkeypatch.setattr(host_memory, "process_memory", lambda pid: {"VmRSS": next(sizes)})
    monkeypatch.setattr(host_memory, "available", lambda: little)
    watch = leaks.LeakWatch(tmp_path / "gone" / "worker.log")
    assert not watch.is_leaking([17])
    assert watch.is_leaking([17])


def test_timing_and_a_range_test_survive_the_loss_of_a_rank(opened: Callable[..., GroupRunner]) -> None:
    runner = opened(fault="kill:1:30", straggler_s=2.0)
    timed = runner.time(PAIR, budget_s=2.0)
    assert timed.outcome == "crashed"
    assert "rank 1" in (timed.message or "")
    with pytest.raises(WorkerDied, match="rank 1: the worker process ended by SIGKILL"):
        runner.sweep_lr(PAIR, lowest=1e-4, highest=1e-1, steps=40, seed=0)
    be_patient(runner)
    assert runner.advance(segment(PAIR, 10)).outcome == "ok"


def test_a_probe_is_the_worst_of_all_ranks(opened: Callable[..., GroupRunner]) -> None:
    runner = opened(fault="memory:1:0")
    probe = runner.probe(PAIR)
    assert probe.outcome == "oom"
    assert "rank 1: MemoryError" in (probe.message or "")
    runner = opened(fault="end:1:0")
    probe = runner.probe(PAIR)
    assert probe.outcome == "crashed"
    assert "rank 1" in (probe.message or "")


def test_no_process_is_left(opened: Callable[..., GroupRunner]) -> None:
    runner = opened(fault="memory:1:12", straggler_s=2.0)
    runner.advance(segment(PAIR, 10))
    team = runner._team
    assert team is not None
    assert runner.advance(segment(PAIR, trial=5)).outcome == "oom"  # rank 0 was in a collective
    assert all(wait_until_gone(pid) for pid in team.pids)
    runner.advance(segment(PAIR, 10, trial=6))
    team = runner._team
    assert team is not None
    runner.close()
    assert all(wait_until_gone(pid) for pid in team.pids)


def test_facts_are_of_all_ranks(opened: Callable[..., GroupRunner]) -> None:
    facts = opened().facts()
    assert facts.baseline.plan == PAIR
    assert facts.baseline.plan.effective_batch_size == 8
    assert not facts.warnings
    assert not facts.leaves_out


@pytest.mark.parametrize(
    ("task", "warning"),
    [
        ("contrastive.py", "each of the 2 ranks sees only its own batch"),
        ("custom_loader.py", "RANK and WORLD_SIZE"),
    ],
)
def test_what_ranks_change_for_a_task_is_said(tmp_path: Path, task: str, warning: str) -> None:
    runner = GroupRunner(RunnerSpec(path=TASKS / task, device="cpu", nproc=2), log=tmp_path / "log")
    try:
        assert any(warning in told for told in runner.facts().warnings)
    finally:
        runner.close()


@pytest.mark.parametrize("wrapper", ["nn.DataParallel", "nn.parallel.DistributedDataParallel"])
def test_a_model_that_is_data_parallel_already_is_refused(opened: Callable[..., GroupRunner], wrapper: str) -> None:
    minimal = (TASKS / "minimal.py").read_text()
    runner = opened(minimal.replace("return nn.Sequential(", f"return {wrapper}(nn.Sequential(").replace("3))", "3)))"))
    with pytest.raises(TaskError, match="return the plain module"):
        runner.facts()


def test_a_gpu_is_needed_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from autobatch.worker.data_parallel import device_of_rank

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of_rank("auto", rank, 2) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert device_of_rank("cpu", 3, 4) == "cpu"
    with pytest.raises(DeviceError, match="4 processes need 4 GPUs, one each; this machine shows 2: take --nproc 2"):
        device_of_rank("cuda", 0, 4)
    with pytest.raises(DeviceError, match="found 'cuda:1'"):
        device_of_rank("cuda:1", 0, 2)


def test_one_process_is_no_group(tmp_path: Path) -> None:
    runner = open_workers(RunnerSpec(path=TASKS / "minimal.py", device="cpu"), log=tmp_path / "log")
    assert isinstance(runner, RemoteRunner)
    runner.close()
