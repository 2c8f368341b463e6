"""Workers on a Ray cluster of this machine: the same report, and a worker that is killed costs one segment."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autobatch.core.plan import Config, Plan
from autobatch.core.segment import TrainSegment
from autobatch.devices import host_memory
from autobatch.engines.served import RunnerSpec
from autobatch.errors import CheckpointError, DeviceError, SettingError, StorageError
from autobatch.runs.run_folder import SHARED

from ..cli.test_cli import environment, refused
from ..cli.test_resume_cli import autobatch_cli, task, the_run
from ..helpers.processes import PATIENCE_S, running

__all__ = ["task"]  # a fixture

pytestmark = pytest.mark.usefixtures("ready_python")

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray")

RUN = ("tune", "model.py", "--budget", "120s", "--train-time", "2s", "--max-trials", "5", "--device", "cpu", "--json")


# What `ray start` asks for by default (Ray 2.60): a token, which a user has in ~/.ray.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


def on_ray(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """The command, started for real: Ray starts processes that import the caller's modules anew."""
    return subprocess.Popen(
        [sys.executable, "-m", "autobatch", *RUN, "--engine", "ray", "--workers", "2", *arguments],
        cwd=folder,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hosts(coordinator: int) -> list[int]:
    """The actors that host a runner, by their titles, of the cluster that this process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_one = b"ray::Host" in (folder / "cmdline").read_bytes() and running(int(folder.name))
            if is_one and coordinator in ancestors(int(folder.name)):
                found.append(int(folder.name))
        except OSError:  # it ended
            continue
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        found.append(pid)
    return found


@with_ray
@pytest.mark.slow
def test_a_cluster_gives_the_same_report_though_a_worker_is_killed(task: Path, tmp_path: Path) -> None:
    said, killed, seen = [], None, set[int]()
    with on_ray(tmp_path) as command:
        assert command.stderr is not None
        assert command.stdout is not None
        for line in command.stderr:
            said.append(line)
            seen |= {*hosts(command.pid)}
            if killed is None and "search: trial 2" in line and "about" in line:
                time.sleep(0.3)  # it is in the middle of its segment
                killed = hosts(command.pid)[0]
                os.kill(killed, signal.SIGKILL)
        stdout = command.stdout.read()
    assert command.returncode == 0, "".join(said)
    assert killed is not None, "".join(said)
    report = json.loads(stdout)
    assert "2 workers each trained a trial at the same time" in report["why"]
    assert report["trials"][0]["state"] == "complete"
    assert not any(trial["outcome"] == "crashed" for trial in report["trials"])
    assert json.loads((the_run(tmp_path) / "report.json").read_text()) == report
    assert not (the_run(tmp_path) / "checkpoints").exists()
    deadline = time.monotonic() + PATIENCE_S
    while any(map(running, seen)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(seen) >= 3  # with the one in the place of the killed
    assert not any(map(running, seen))


@contextmanager
def running_cluster() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A cluster that somebody else has started on this machine, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    # Its sockets lie there, and a socket's path is at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        options = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", f"--temp-dir={folder}"]
        ray = Path(sys.executable).with_name("ray")
        env = {**environment(), **TOKEN}
        process = subprocess.Popen(
            [ray, "start", *options, "--include-dashboard=false", "--disable-usage-stats", "--block"],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 60
            while subprocess.run([ray, "status", "--address", address], env=env, capture_output=True).returncode != 0:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
            yield process, address
        finally:
            process.terminate()
            process.wait(timeout=60)


@with_ray
@pytest.mark.slow
def test_a_cluster_that_is_there_is_joined_and_left_as_it_was(task: Path, tmp_path: Path) -> None:
    with running_cluster() as (cluster, address):
        with on_ray(tmp_path, "--address", address, **TOKEN) as command:
            seen = set[int]()
            while command.poll() is None:
                seen |= {*hosts(cluster.pid)}
                time.sleep(0.2)
            assert command.stdout is not None
            assert command.stderr is not None
            stdout, stderr = command.stdout.read(), command.stderr.read()
        assert command.returncode == 0, stderr
        report = json.loads(stdout)
        assert "2 workers each trained a trial at the same time" in report["why"]
        assert report["trials"][0]["state"] == "complete"
        assert len(seen) >= 2  # they ran there, and not in a cluster of the command's own
        deadline = time.monotonic() + PATIENCE_S
        while any(map(running, seen)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not any(map(running, seen))
        assert cluster.poll() is None


@with_ray
def test_what_cannot_be_had_of_a_cluster_is_said(task: Path, tmp_path: Path) -> None:
    told = refused(autobatch_cli(*RUN, "--engine", "ray", "--nproc", 2, cwd=tmp_path))
    assert "got --nproc 2 with --engine ray: leave one of them out" in told
    told = refused(autobatch_cli(*RUN, "--address", "auto", cwd=tmp_path))
    assert "address is of a Ray cluster; got auto without engine='ray' (--engine ray)" in told


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "autobatch.engines.ray", raising=False)
    with pytest.raises(SettingError, match=r"--engine ray needs Ray: pip install 'ray>="):
        import autobatch.engines.ray  # noqa: F401


@with_ray
@pytest.mark.parametrize(
    ("workers", "nodes", "threads"),
    [(1, [8, 8, 8], 8), (2, [8, 8, 8], 8), (4, [8, 8, 8], 4), (3, [2], 1), (2, [2], 1), (5, [16, 4], 4)],
)
def test_workers_share_the_cores_of_a_cluster_node_by_node(workers: int, nodes: list[int], threads: int) -> None:
    from autobatch.engines.ray import threads_for

    assert threads_for(workers, nodes) == threads


@with_ray
def test_a_checkpoint_travels_with_its_segment_where_no_folder_is_shared(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines that do not see the caller's folder: a trial goes on on the second one as it would on the first."""
    from autobatch.engines.ray_actor import Home, Host

    monkeypatch.chdir(tmp_path)  # as where Ray unpacks the task's folder
    spec = RunnerSpec(path=task, device="cpu")
    config = Config(plan=Plan(batch_size=16), lr=1e-2)
    first = TrainSegment(trial=3, config=config, seed=5, start_step=0, until_step=8, total_steps=16, eval_batch_size=32)
    second = replace(first, start_step=8, until_step=16)
    elsewhere = [Host(spec, Home(folder=tmp_path / "not-here", token="x")) for _ in range(2)]
    here = Host(spec, _shared(tmp_path / "here"))
    try:
        assert [host.shares() for host in (*elsewhere, here)] == [False, False, True]
        result, left = elsewhere[0].advance(first, None)
        assert result.outcome == "ok"
        assert isinstance(left, bytes)
        travelled, _ = elsewhere[1].advance(second, left)
        assert here.advance(first, None)[1] is None  # it lies in the folder that all see
        stayed, _ = here.advance(second, None)
        assert travelled.score == stayed.score
        lost = elsewhere[0].advance(second, None)[0]
        assert isinstance(lost.error, CheckpointError)  # nothing stays behind there
        folders = [host._folder for host in elsewhere]
    finally:
        for host in (*elsewhere, here):
            host.close()
    assert not any(folder.exists() for folder in folders)
    assert (tmp_path / "here").is_dir()


def _shared(folder: Path) -> Any:
    from autobatch.engines.ray_actor import Home

    folder.mkdir()
    (folder / SHARED).write_text("token")
    return Home(folder=folder, token="token")


@with_ray
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of a process's files")
def test_a_disk_of_its_own_that_is_full_is_the_machines_fault_and_names_it(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that may not grow is refused as on a full disk. Where the folder is shared, the caller's disk is full."""
    from autobatch.engines.ray_actor import Home, Host

    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
    task.write_text(limit + task.read_text())
    monkeypatch.chdir(tmp_path)
    spec = RunnerSpec(path=task, device="cpu")
    segment = TrainSegment(
        trial=3,
        config=Config(plan=Plan(batch_size=16), lr=1e-2),
        seed=5,
        start_step=0,
        until_step=8,
        total_steps=16,
        eval_batch_size=32,
    )
    elsewhere = Host(spec, Home(folder=tmp_path / "not-here", token="x"))
    here = Host(spec, _shared(tmp_path / "here"))
    try:
        (lost, left), (full, _) = elsewhere.advance(segment, None), here.advance(segment, None)
        assert isinstance(lost.error, DeviceError)
        assert str(lost.error).startswith(f"{socket.gethostname()}, where Ray placed a worker, has no room: ")
        assert "File too large" in str(lost.error)
        assert left is None
        assert isinstance(full.error, StorageError)
        # A checkpoint that comes with its segment is written by the host itself.
        folder, elsewhere._folder = elsewhere._folder, tmp_path / "gone"
        (came, _), scored = elsewhere.advance(replace(segment, start_step=4), b"x"), elsewhere.test_score(segment, b"x")
        elsewhere._folder = folder
        assert isinstance(came.error, DeviceError)
        assert isinstance(scored.error, DeviceError)
    finally:
        elsewhere.close()
        here.close()


@with_ray
@pytest.mark.parametrize(
    ("workers", "threads", "cores", "sharing"), [(8, 8, 8, 1), (4, 4, 8, 2), (3, 1, 2, 2), (2, 1, 16, 2), (5, 4, 3, 1)]
)
def test_a_node_is_shared_by_those_that_it_has_room_for(workers: int, threads: int, cores: int, sharing: int) -> None:
    from autobatch.engines.ray_actor import most_on_node

    assert most_on_node(workers, threads, cores) == sharing


@with_ray
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is looked for in /proc")
def test_a_worker_takes_its_share_of_its_own_machine_and_not_of_the_cluster(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray tells it of eight nodes, on each of which there is room for one worker."""
    import ray

    from autobatch.engines.ray_actor import Host

    class Context:
        def get_node_id(self) -> str:
            return "node 3"

    nodes = [{"NodeID": f"node {number}", "Resources": {"CPU": 2.0}} for number in range(8)]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.chdir(tmp_path)
    spec = RunnerSpec(path=task, device="cpu", workers=8, threads=2)
    alone = Host(spec, _shared(tmp_path / "here"))
    nodes[3]["Resources"] = {"CPU": 16.0}
    crowded = Host(spec, _shared(tmp_path / "there"))
    try:
        free = host_memory.available()
        assert free is not None
        shares = [host.call("memory", (), {}).capacity_bytes / free.free_bytes for host in (alone, crowded)]
    finally:
        alone.close()
        crowded.close()
    assert shares[0] > 0.5
    assert shares[1] == pytest.approx(1 / 8, rel=0.5)


# A cluster of which no worker sees the caller's folder, as on other machines. The task counts its calls, and waits at
# the call at which its actor is to be killed.
COUNTED = """
import os, time
import torch

def loss(model, batch):
    with open({calls!r}, "a") as file:
        file.write("x")
    while os.path.exists({wait!r}) and os.path.getsize({calls!r}) >= os.path.getsize({wait!r}):
        time.sleep(0.05)
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""

# Says, as JSON, what came of calls of which each lost its actor.
LOSING = """
import json, os, signal, sys, threading, time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from autobatch.core.checkpoints import checkpoint_path
from autobatch.engines.ray import Cluster
from autobatch.engines.served import RunnerSpec
from autobatch.core.plan import Config, Plan
from autobatch.core.segment import TrainSegment
from autobatch.runs.run_folder import SHARED
from tests.engines.test_ray import hosts

calls, wait, folder = Path("calls").absolute(), Path("wait").absolute(), Path("run").absolute()
cluster = Cluster(RunnerSpec(path=Path("model.py"), device="cpu"), None, folder)
(folder / SHARED).unlink()
said = {}

def losing(at, call):
    # What the call returns whose actor is killed when the loss has been called so often in it.
    calls.write_text("")
    wait.write_text("x" * at)

    def kill():
        while len(calls.read_text()) < at:
            time.sleep(0.05)
        (host,) = hosts(os.getpid())
        os.kill(host, signal.SIGKILL)
        wait.unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    answer = call()
    killer.join()
    return answer

(runner,) = cluster.runners()
runner.facts()
said["shares"] = runner._settle()
plan = Plan(batch_size=16)
said["time"] = losing(2, lambda: runner.time(plan, budget_s=0.1)).outcome
said["probe"] = losing(1, lambda: runner.probe(plan)).outcome
first = TrainSegment(
    trial=3, config=Config(plan=plan, lr=1e-2), seed=5, start_step=0, until_step=8, total_steps=16, eval_batch_size=32
)
second = replace(first, start_step=8, until_step=16)
said["first"] = runner.advance(first).outcome
kept = checkpoint_path(folder, 3, 8)
said["came back"] = kept.is_file()
before = kept.read_bytes()
calls.write_text("")
said["lost"] = losing(4, lambda: runner.advance(second)).outcome
said["left by the lost"] = checkpoint_path(folder, 3, 16).exists() or kept.read_bytes() != before
calls.write_text("")
again = runner.advance(second)
said["again"], said["steps again"] = again.score, len(calls.read_text())
said["came back again"] = checkpoint_path(folder, 3, 16).is_file()
said["straight"] = runner.advance(replace(first, trial=4, until_step=16)).score
runner.close()
cluster.close()
Path("said.json").write_text(json.dumps(said))
"""


@with_ray
@pytest.mark.slow
def test_an_actor_that_is_lost_costs_no_run_and_its_segment_is_trained_again_elsewhere(
    task: Path, tmp_path: Path
) -> None:
    calls, wait = str(tmp_path / "calls"), str(tmp_path / "wait")
    task.write_text(task.read_text() + COUNTED.format(calls=calls, wait=wait))
    (tmp_path / "losing.py").write_text(LOSING)
    done = subprocess.run(
        [sys.executable, "losing.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["shares"] is False
    assert (said["time"], said["probe"]) == ("ok", "ok")  # asked once more, of another actor
    assert (said["first"], said["came back"]) == ("ok", True)
    assert (said["lost"], said["left by the lost"]) == ("crashed", False)
    assert said["steps again"] >= 8
    assert said["came back again"]
    assert said["again"] == said["straight"]
