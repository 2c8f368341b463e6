"""The local executor: results, errors, deaths, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest

from autobatch.engines.processes.fork_server import ForkServer
from autobatch.engines.processes.local import LocalWorker
from autobatch.errors import TaskError, WorkerDied
from autobatch.tasks.libraries import Libraries

from ..helpers.processes import PATIENCE_S, running, wait_until_gone

ROOT = Path(__file__).parents[2]
Make = Callable[..., LocalWorker]


@pytest.fixture(params=["started", "forked"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Executors, given `environment=`, on a process that was started or on one that was forked."""
    if request.param == "forked" and not sys.platform.startswith("linux"):
        pytest.skip("forking is for Linux")
    with ExitStack() as opened:

        def started(environment: dict[str, str] | None = None) -> LocalWorker:
            executor = LocalWorker(environment=environment, log=tmp_path / "worker.log")
            return opened.enter_context(executor)

        def forked(environment: dict[str, str] | None = None) -> LocalWorker:
            server = ForkServer(["json"], environment=environment, log=tmp_path / "worker.log")
            opened.callback(server.close)
            return opened.enter_context(LocalWorker(server=server))

        yield started if request.param == "started" else forked


@pytest.fixture
def executor(make: Make) -> LocalWorker:
    return make()


def fail_with_task_error() -> None:
    raise TaskError("the user's own words")


def variable(name: str) -> str | None:
    return os.environ.get(name)


def start_child() -> int:
    pid = os.fork()  # as a data loader does: the child has the worker's connection
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    return pid


def unpicklable() -> object:
    return lambda: None


def test_calls_run_in_order_in_one_other_process(executor: LocalWorker) -> None:
    script = "import os; seen = os.environ.get('SEEN', ''); os.environ['SEEN'] = seen + '{}'"
    for word in "abc":
        executor.submit(exec, script.format(word))
    pids = [executor.submit(os.getpid) for _ in range(3)]
    assert {future.result() for future in pids} == {executor.pid}
    assert executor.pid != os.getpid()
    assert executor.submit(variable, "SEEN").result() == "abc"


def test_an_error_of_ours_keeps_its_type_and_says_where_it_was_raised(executor: LocalWorker) -> None:
    with pytest.raises(TaskError, match="the user's own words") as caught:
        executor.submit(fail_with_task_error).result()
    assert any("fail_with_task_error" in note for note in caught.value.__notes__)
    assert executor.submit(os.getpid).result() == executor.pid


def test_an_answer_that_cannot_be_sent_is_an_error_not_a_hang(executor: LocalWorker) -> None:
    with pytest.raises(RuntimeError, match="cannot be sent"):
        executor.submit(unpicklable).result(timeout=120)


def test_a_kill_fails_what_was_running_and_what_comes_later(executor: LocalWorker) -> None:
    future = executor.submit(time.sleep, 60)
    os.kill(executor.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        future.result(timeout=120)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        executor.submit(os.getpid)
    assert executor.killed


def test_a_crash_reports_the_last_words_of_the_worker(executor: LocalWorker) -> None:
    executor.submit(print, "about to fall over").result()
    future = executor.submit(os.abort)
    with pytest.raises(WorkerDied, match=r"SIGABRT(.|\n)*about to fall over"):
        future.result(timeout=120)
    assert not executor.killed


def test_an_exit_is_reported_with_its_code(executor: LocalWorker) -> None:
    future = executor.submit(os._exit, 7)
    with pytest.raises(WorkerDied, match="exit code 7"):
        future.result(timeout=120)


def test_the_environment_and_the_search_path_reach_the_worker(make: Make) -> None:
    executor = make(environment={"AUTOBATCH_TEST_VARIABLE": "here"})
    assert executor.submit(variable, "AUTOBATCH_TEST_VARIABLE").result() == "here"


def test_an_exit_takes_the_children_of_the_worker_with_it(executor: LocalWorker) -> None:
    child = executor.submit(start_child).result()
    assert running(child)
    future = executor.submit(os._exit, 7)
    with pytest.raises(WorkerDied, match="exit code 7"):
        future.result(timeout=120)
    assert wait_until_gone(child)


def test_a_kill_takes_the_children_of_the_worker_with_it(executor: LocalWorker) -> None:
    child = executor.submit(start_child).result()
    assert running(child)
    executor.kill()
    assert wait_until_gone(child)


def start_in_a_session_of_its_own(how: str) -> int:
    """The pid of a process that has left the worker's group, as daemons and job runners do."""
    if how == "program":
        return subprocess.Popen(["sleep", "60"], start_new_session=True).pid
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if how == "daemon" and os.fork():
            os._exit(0)  # and so its child has no parent
        os.write(write, b"%d" % os.getpid())
        if how == "with a child" and os.fork() == 0:
            os.setsid()
        time.sleep(60)
        os._exit(0)
    os.close(write)
    pid = int(os.read(read, 20))
    os.close(read)
    return pid


sessions = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="such processes are found on Linux")


@sessions
@pytest.mark.parametrize("how", ["program", "fork", "daemon", "with a child"])
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_what_has_a_session_of_its_own_ends_with_the_worker(executor: LocalWorker, how: str, end: str) -> None:
    child = executor.submit(start_in_a_session_of_its_own, how).result()
    assert running(child)
    if end == "kill":
        executor.kill()
    else:
        with pytest.raises(WorkerDied, match="exit code 7"):
            executor.submit(os._exit, 7).result(timeout=120)
    assert wait_until_gone(child)


@sessions
def test_what_another_worker_has_started_does_not_end_with_this_one(server: ForkServer) -> None:
    with LocalWorker(server=server) as other:
        daemon = other.submit(start_in_a_session_of_its_own, "daemon").result()
        with LocalWorker(server=server) as worker:
            own = worker.submit(start_in_a_session_of_its_own, "daemon").result()
        assert wait_until_gone(own)
        assert running(daemon)
    assert wait_until_gone(daemon)


def make_shared(method: str) -> list[str]:
    """Files in shared memory for semaphores and a block, as of a loader whose workers are not forked."""
    context = multiprocessing.get_context(method)
    held.extend([context.Semaphore(), context.Lock(), shared_memory.SharedMemory(create=True, size=8)])
    names = [one._semlock.name if hasattr(one, "_semlock") else one._name for one in held]
    return [f"/dev/shm/{'' if name.startswith('/psm') else 'sem.'}{name.lstrip('/')}" for name in names]


held: list[Any] = []


@sessions
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_nothing_stays_in_shared_memory(executor: LocalWorker, method: str, end: str, tmp_path: Path) -> None:
    files = executor.submit(make_shared, method).result()
    assert len(files) == 3
    assert all(map(os.path.exists, files))
    if end == "kill":
        executor.kill()
    else:
        with pytest.raises(WorkerDied, match="exit code 7"):
            executor.submit(os._exit, 7).result(timeout=120)
    assert not [file for file in files if os.path.exists(file)]
    assert "leaked" not in (tmp_path / "worker.log").read_text()


COORDINATOR = """
import os, sys, time
from autobatch.engines.processes.local import LocalWorker
from autobatch.engines.processes.fork_server import ForkServer
server = ForkServer(["json"]) if {forked} else None
executor = LocalWorker(server=server)
from tests.engines.test_local_engine import start_in_a_session_of_its_own
child = executor.submit(start_in_a_session_of_its_own, "daemon").result()
future = executor.submit(time.sleep, 60)
print(executor.pid, server.pid if server else executor.pid, child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("forked", [False, True])
def test_nothing_outlives_a_killed_coordinator(forked: bool) -> None:
    if forked and not sys.platform.startswith("linux"):
        pytest.skip("forking is for Linux")
    code = COORDINATOR.format(forked=forked)
    coordinator = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert coordinator.stdout is not None
    pids = [int(pid) for pid in coordinator.stdout.readline().split()]
    assert len(pids) == 3
    assert all(map(running, pids))
    coordinator.kill()
    coordinator.wait()
    coordinator.stdout.close()
    assert all(map(wait_until_gone, pids))


# -- the fork server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    if not sys.platform.startswith("linux"):
        pytest.skip("forking is for Linux")
    server = ForkServer(["json.tool"], log=tmp_path / "worker.log")
    yield server
    server.close()


def imported(module: str) -> bool:
    return module in sys.modules


def test_a_forked_worker_has_what_the_server_imported_and_nothing_of_another_worker(server: ForkServer) -> None:
    with LocalWorker(server=server) as first, LocalWorker(server=server) as second:
        assert first.submit(imported, "json.tool").result()
        first.submit(exec, "import os; os.environ['AUTOBATCH_TEST_VARIABLE'] = 'left behind'").result()
        assert first.submit(variable, "AUTOBATCH_TEST_VARIABLE").result() == "left behind"
        assert second.submit(variable, "AUTOBATCH_TEST_VARIABLE").result() is None
        assert first.pid != second.pid
        first.kill()
        assert wait_until_gone(first.pid)
        assert second.submit(os.getpid).result() == second.pid


def test_what_the_server_loads_later_is_in_the_workers_after_it(server: ForkServer) -> None:
    module = "wsgiref.simple_server"
    with LocalWorker(server=server) as before:
        before.submit(os.getpid).result()
        many = tuple(f"no_such_library.part_{number}" for number in range(2000))  # more than an order can hold
        server.load(Libraries((module, *many), (("AUTOBATCH_TEST_VARIABLE", "loaded"),)))
        with LocalWorker(server=server) as after:
            assert after.submit(imported, module).result(timeout=120)
            assert after.submit(variable, "AUTOBATCH_TEST_VARIABLE").result() == "loaded"
        assert not before.submit(imported, module).result()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert file.exists()


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that is importable in what is started from now on, and hangs; where it says that it has begun to."""
    begun = tmp_path / "begun"
    (tmp_path / "autobatch_test_hangs.py").write_text(f"open({str(begun)!r}, 'x')\nimport time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return begun


def test_a_kill_does_not_wait_for_what_the_server_loads(hanging: Path, server: ForkServer) -> None:
    before = LocalWorker(server=server)
    pid = before.submit(os.getpid).result()
    future = before.submit(time.sleep, 600)
    server.load(Libraries(("autobatch_test_hangs",), ()))
    wait_for(hanging)
    after = LocalWorker(server=server)
    after.kill()
    with pytest.raises(WorkerDied):
        future.result(timeout=PATIENCE_S)  # the server has ended, and every worker with it
    assert not server.alive
    assert wait_until_gone(pid)
    assert wait_until_gone(server.pid)


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_server_that_imports_ends_with_its_coordinator(when: str, hanging: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("forking is for Linux")
    first = "autobatch_test_hangs" if when == "at the start" else "json"
    code = (
        "import time; from autobatch.engines.processes.fork_server import ForkServer; "
        "from autobatch.tasks.libraries import Libraries; "
        f"server = ForkServer([{first!r}]); server.load(Libraries(('autobatch_test_hangs',), ())); "
        "print(server.pid, flush=True); time.sleep(60)"
    )
    path = os.pathsep.join([str(hanging.parent), *sys.path])
    coordinator = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert coordinator.stdout is not None
    pid = int(coordinator.stdout.readline())
    wait_for(hanging)
    assert running(pid)
    coordinator.kill()
    coordinator.wait()
    coordinator.stdout.close()
    assert wait_until_gone(pid)


def test_closing_a_server_does_not_wait_for_what_it_loads(hanging: Path, server: ForkServer) -> None:
    worker = LocalWorker(server=server)
    pid = worker.submit(os.getpid).result()
    server.load(Libraries(("autobatch_test_hangs",), ()))
    wait_for(hanging)
    server.close()
    worker.kill()
    assert wait_until_gone(pid)
    assert wait_until_gone(server.pid)


def test_after_a_load_a_kill_ends_one_worker_and_no_other(server: ForkServer) -> None:
    with LocalWorker(server=server) as before:
        before.submit(os.getpid).result()
        server.load(Libraries(("wsgiref.simple_server", "no_such_library"), ()))
        with LocalWorker(server=server) as after:
            pid = after.submit(os.getpid).result(timeout=120)
        assert wait_until_gone(pid)
        assert server.alive
        assert before.submit(os.getpid).result() == before.pid


def test_a_server_that_has_ended_loads_nothing(server: ForkServer) -> None:
    server.close()
    server.load(Libraries(("json",), ()))


def test_a_server_that_is_killed_fails_its_workers_and_ends_them(server: ForkServer) -> None:
    executor = LocalWorker(server=server)
    future = executor.submit(time.sleep, 60)
    pid = executor.pid
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        future.result(timeout=120)
    assert wait_until_gone(pid)
    assert not server.alive
    with pytest.raises(WorkerDied), LocalWorker(server=server) as late:
        late.submit(os.getpid).result(timeout=120)


def test_an_import_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    server = ForkServer(["no_such_module_anywhere"], log=log)
    with LocalWorker(server=server) as executor, pytest.raises(WorkerDied, match="no_such_module_anywhere"):
        executor.submit(os.getpid).result(timeout=120)
    server.close()


def test_closing_a_server_ends_its_workers(server: ForkServer) -> None:
    executor = LocalWorker(server=server)
    pid = executor.submit(os.getpid).result()
    server.close()
    server.close()
    assert wait_until_gone(pid)
    assert wait_until_gone(server.pid)
