"""The largest batch over two ranks, of which one has less memory: gloo, on this machine, in code and under torchrun."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ..helpers.ready_python import Started

ROOT = Path(__file__).parents[2]
WORLD = 2
PATIENCE_S = 900

pytestmark = [
    pytest.mark.usefixtures("ready_python"),
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def rank_environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets for one rank of two, as far as it counts here."""
    known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_PORT": port}
    return {
        **os.environ,
        **{name: str(value) for name, value in known.items()},
        "MASTER_ADDR": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def both(commands: list[list[str]], folder: Path, **more: str) -> list[Any]:
    """One process for each rank; what they print goes to `folder`/<rank>.out and .err."""
    port = free_port()
    ranks = []
    for rank, command in enumerate(commands):
        with open(folder / f"{rank}.out", "wb") as out, open(folder / f"{rank}.err", "wb") as err:
            environment = rank_environment(rank, port) | more
            ranks.append(Started(command, cwd=ROOT, env=environment, stdout=out, stderr=err))
    return ranks


def ended(ranks: list[Any], folder: Path) -> list[int]:
    """The exit codes; whoever does not end in time is killed, and that is a failure."""
    try:
        return [process.wait(timeout=PATIENCE_S) for process in ranks]
    finally:
        for rank, process in enumerate(ranks):
            process.kill()
            process.wait()
            print(f"-- rank {rank}", (folder / f"{rank}.err").read_text(), sep="\n")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> list[dict[str, Any]]:
    """What each rank of `two_ranks` found in each of its parts; they take minutes, so all test processes share them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "two_ranks"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "over").exists():
            (folder / "over").touch()
            commands = [
                [sys.executable, "-m", "tests.helpers.two_ranks", str(folder), str(rank)] for rank in range(WORLD)
            ]
            assert ended(both(commands, folder), folder) == [0] * WORLD
    found: list[dict[str, Any]] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]
    for part in found[0].keys() | found[1].keys():
        for rank in found:
            assert "failed" not in rank[part], rank[part]["failed"]
    return found


def test_alone_the_ranks_would_differ(told: list[dict[str, Any]]) -> None:
    assert told[0]["alone"]["batch"] > told[1]["alone"]["batch"] > 0


@pytest.mark.parametrize("part", ["plain", "ddp_in_workers", "ddp_in_process", "fsdp"])
def test_all_ranks_get_the_number_of_the_smaller_one_by_the_same_probes(part: str, told: list[dict[str, Any]]) -> None:
    first, second = told[0][part], told[1][part]
    assert first["batch"] == second["batch"] > 0
    assert first["sizes"] == second["sizes"]
    assert first["limited_by"] == "memory"
    assert any("rank 1 had no room for" in sentence for sentence in first["assumed"])
    assert "on rank 1" in first["source"]


def test_a_plain_model_gets_what_the_smaller_rank_gets_alone(told: list[dict[str, Any]]) -> None:
    assert told[0]["plain"]["batch"] == told[1]["alone"]["batch"]


def test_buckets_of_ddp_take_memory_too(told: list[dict[str, Any]]) -> None:
    """The gradients are views of them in the workers, as they are in training: no more than 64 samples' worth."""
    assert 0 <= told[0]["plain"]["batch"] - told[0]["ddp_in_workers"]["batch"] <= 1024


@pytest.mark.parametrize("part", ["ddp_in_process", "fsdp"])
def test_a_borrowed_model_trains_on_as_if_nothing_had_been(part: str, told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank[part]["changed"] == []
        assert rank[part]["later"] == []


def test_a_model_that_travels_is_left_alone(told: list[dict[str, Any]]) -> None:
    assert told[0]["ddp_in_workers"]["changed"] == told[1]["ddp_in_workers"]["changed"] == []


def test_a_wrapper_that_has_not_trained_yet_averages_afterwards(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank["ddp_untrained"]["static_graph"]["kind"] == "SettingError"
        assert "static_graph=True" in rank["ddp_untrained"]["static_graph"]["message"]
        assert rank["ddp_untrained"]["find_unused_parameters"]["kind"] is None
        assert all(wrapper["averages"] for wrapper in rank["ddp_untrained"].values())


def test_a_sharded_model_in_workers_is_refused(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank["fsdp_refused"]["kind"] == "SettingError"
        assert "sharded by fully_shard" in rank["fsdp_refused"]["message"]


def test_a_bug_on_one_rank_is_told_on_both(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank["raising"]["kind"] == "TaskError"
        assert "rank 1: " in rank["raising"]["message"]
        assert "a bug of the user's" in rank["raising"]["message"]
        assert rank["raising"]["changed"] == []


def test_ranks_that_ask_for_different_things_are_told_so(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank["different"]["kind"] == "SettingError"
        assert "max_batch_size=64" in rank["different"]["message"]
        assert "max_batch_size=128" in rank["different"]["message"]


def test_the_users_group_works_afterwards_and_ours_are_gone(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank["groups_afterwards"] | {"fakes": 0} == {"sum": 3.0, "groups": 1, "backend": "gloo", "fakes": 0}


def test_a_rank_that_does_not_come_is_not_waited_for_without_end(told: list[dict[str, Any]]) -> None:
    assert told[0]["absent"]["kind"] == "RankLost"
    assert "for at most 2.00 s" in told[0]["absent"]["message"]


# -- the command line, as torchrun starts it

TASK = """
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

baseline = {"batch_size": 8, "lr": 1e-3}


def model():
    torch.manual_seed(0)
    return DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)))


def train_data():
    return TensorDataset(torch.randn(200, 64), torch.randint(8, (200,)))


def val_data():
    return TensorDataset(torch.randn(64, 64), torch.randint(8, (64,)))
"""
COMMAND = ["max-batch", "--device", "cpu", "--json", "--quiet"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "autobatch", *COMMAND, *arguments]


def test_under_torchrun_rank_0_answers_for_all(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(TASK)
    # The limits differ by rank, as free memory does.
    commands = [command(str(task), "--memory-limit", limit) for limit in ("64MiB", "48MiB")]
    assert ended(both(commands, tmp_path, TORCHELASTIC_RUN_ID="none"), tmp_path) == [0, 0]
    answer = json.loads((tmp_path / "0.out").read_text())
    assert (answer["batch_size"], answer["limited_by"]) == (200, "dataset")
    assert answer["limit_bytes"] == int(0.95 * (48 << 20))  # rank 1 has the least, less headroom
    assert "smallest answer over 2 ranks" in answer["assumed"][-1]
    assert (tmp_path / "1.out").read_text() == ""


def test_under_torchrun_a_bad_task_is_told_once(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(TASK.replace("nn.Linear(256, 8)", "nn.Linear(255, 8)"))
    assert ended(both([command(str(task))] * 2, tmp_path, TORCHELASTIC_RUN_ID="none"), tmp_path) == [2, 2]
    errors = [(tmp_path / f"{rank}.err").read_text() for rank in range(WORLD)]
    assert "255" in errors[0]
    assert errors[1] == ""


def test_a_rank_that_is_killed_ends_the_others_with_an_error(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    # Rank 1 kills itself where the search would be: the coordinator of that rank, not its worker.
    task.write_text(TASK)
    script = (
        "import os; from autobatch.engines.ranks import agreement as ranks; "
        f"ranks.agreed = lambda *_: os.kill(os.getpid(), {signal.SIGKILL:d}); "
        "from autobatch.cli import main; main()"
    )
    arguments = [*COMMAND, str(task)]
    commands = [command(str(task)), [sys.executable, "-c", script, *arguments]]
    codes = ended(both(commands, tmp_path, TORCHELASTIC_RUN_ID="none"), tmp_path)
    assert codes == [1, -signal.SIGKILL]
    assert "all 2 ranks must" in (tmp_path / "0.err").read_text()
