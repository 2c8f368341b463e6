"""The local executor: results, errors, deaths, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autobatch.engines.local import LocalExecutor
from autobatch.errors import TaskError, WorkerDied


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    with LocalExecutor(log=tmp_path / "worker.log") as executor:
        yield executor


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(pid)


def fail_with_task_error() -> None:
    raise TaskError("the user's own words")


def set_variable(name: str) -> str | None:
    return os.environ.get(name)


def start_child_and_wait() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(f"child {child.pid}", flush=True)
    child.wait()


def unpicklable() -> object:
    return lambda: None


def test_calls_run_in_order_in_one_other_process(executor: LocalExecutor) -> None:
    pids = [executor.submit(os.getpid) for _ in range(3)]
    assert {future.result() for future in pids} == {executor.pid}
    assert executor.pid != os.getpid()


def test_an_error_of_ours_keeps_its_type_and_says_where_it_was_raised(executor: LocalExecutor) -> None:
    with pytest.raises(TaskError, match="the user's own words") as caught:
        executor.submit(fail_with_task_error).result()
    assert any("fail_with_task_error" in note for note in caught.value.__notes__)
    assert executor.submit(os.getpid).result() == executor.pid


def test_an_answer_that_cannot_be_sent_is_an_error_not_a_hang(executor: LocalExecutor) -> None:
    with pytest.raises(RuntimeError, match="cannot be sent"):
        executor.submit(unpicklable).result(timeout=20)


def test_a_kill_fails_what_was_running_and_what_comes_later(executor: LocalExecutor) -> None:
    future = executor.submit(time.sleep, 60)
    os.kill(executor.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        future.result(timeout=20)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        executor.submit(os.getpid)
    assert executor.killed


def test_a_crash_reports_the_last_words_of_the_worker(executor: LocalExecutor) -> None:
    executor.submit(print, "about to fall over").result()
    future = executor.submit(os.abort)
    with pytest.raises(WorkerDied, match=r"SIGABRT(.|\n)*about to fall over"):
        future.result(timeout=20)
    assert not executor.killed


def test_an_exit_is_reported_with_its_code(executor: LocalExecutor) -> None:
    future = executor.submit(os._exit, 7)
    with pytest.raises(WorkerDied, match="exit code 7"):
        future.result(timeout=20)


def test_the_environment_and_the_search_path_reach_the_worker(tmp_path: Path) -> None:
    environment = {"AUTOBATCH_TEST_VARIABLE": "here"}
    with LocalExecutor(environment=environment, log=tmp_path / "log") as executor:
        assert executor.submit(set_variable, "AUTOBATCH_TEST_VARIABLE").result() == "here"


def test_a_kill_takes_the_children_of_the_worker_with_it(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    executor = LocalExecutor(log=log)
    executor.submit(start_child_and_wait)
    deadline = time.monotonic() + 20
    while "child" not in (log.read_text() if log.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(log.read_text().split("child ")[1].split()[0])
    assert running(child)
    executor.kill()
    assert wait_until_gone(child)


COORDINATOR = """
import os, sys, time
from autobatch.engines.local import LocalExecutor
executor = LocalExecutor()
future = executor.submit(time.sleep, 60)
print(executor.pid, flush=True)
time.sleep(60)
"""


def test_a_worker_does_not_outlive_a_killed_coordinator() -> None:
    coordinator = subprocess.Popen([sys.executable, "-c", COORDINATOR], stdout=subprocess.PIPE, text=True)
    assert coordinator.stdout is not None
    worker = int(coordinator.stdout.readline())
    assert running(worker)
    coordinator.kill()
    coordinator.wait()
    coordinator.stdout.close()
    assert wait_until_gone(worker)
