"""A Python that has imported torch and is forked where a user would start one.

Importing torch takes seconds, many on a busy machine, and the tests start a hundred processes that need it. A fork of
one that has only imported is what such a process is when its imports are done: `run` and `Started` stand for
`subprocess.run` and `subprocess.Popen`, and the workers that such a process starts are forks as well. Real starts are
those of test_readme.py, test_local_engine.py and, in test_cli.py, those of `--help`.

    python -m tests.helpers.ready_python PATH     listens at PATH, until its standard input ends
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from autobatch.devices.environment import worker_environment
from autobatch.engines.processes import fork_server as processes

ROOT = Path(__file__).parents[2]
_ADDRESS = "AUTOBATCH_TESTS_READY_PYTHON"  # variable: where one listens
_FOR_TESTS = "TESTS_"  # what the names of variables for steady.py begin with
_LONGEST = 1 << 17  # bytes of an order: arguments and an environment; assumed
_ROOM = 1 << 14  # bytes for what /proc tells of a fork's environment; assumed
_FREE = 200  # descriptors from here on are nobody's; assumed


class Forked:
    """A process, as `subprocess.Popen` is one, of which a fork was made; of `arguments` the first is not looked at."""

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        environment = dict(os.environ if env is None else env) | {_ADDRESS: os.environ[_ADDRESS]}
        order = (self.args[1:], str(cwd or os.getcwd()), environment, list(pass_fds), start_new_session)
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(os.environ[_ADDRESS])
        with open(os.devnull, "r+b") as nothing:
            streams = [
                nothing.fileno()
                if stream == subprocess.DEVNULL
                else default
                if stream is None
                else stream
                if isinstance(stream, int)
                else stream.fileno()
                for default, stream in enumerate((stdin, stdout, stderr))
            ]
            socket.send_fds(self._line, [pickle.dumps(order)], [*streams, *pass_fds])
            self.pid: int = pickle.loads(self._line.recv(64))
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._line], [], [], left)
            with self._lock:
                if self.returncode is None and ready and select.select([self._line], [], [], 0)[0]:
                    told = self._line.recv(64)
                    self.returncode = pickle.loads(told) if told else -signal.SIGKILL
            if self.returncode is None and not ready:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        self._line.close()  # no sooner: another thread may be about to look at it


class Subprocess:
    """For `engines.processes.subprocess`: a fork in place of the start of a worker."""

    DEVNULL = subprocess.DEVNULL
    Popen = Forked


# Elsewhere than on Linux torch's libraries do not live through a fork, and a start is a start.
Started: type[Any] = Forked if sys.platform.startswith("linux") else subprocess.Popen


def run(
    arguments: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with `capture_output` and `text`."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Started(arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(process.args, code, stdout.read(), stderr.read())


class ReadyPython:
    """The process that is forked. While it is open, workers that this process starts come from it too."""

    def __init__(self, folder: Path) -> None:
        address = str(folder / "ready")
        environment = {**os.environ, **worker_environment(1), "PYTHONPATH": str(ROOT), "ROOM": _ROOM * "."}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ready_python", address],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
        )
        while not Path(address).exists():
            assert self._process.poll() is None
            time.sleep(0.05)
        os.environ[_ADDRESS] = address

    def close(self) -> None:
        del os.environ[_ADDRESS]
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(address: str) -> NoReturn:
    """Import, listen, fork."""
    for module in (
        "api",
        "cli",
        "searching.search",
        "render.live",
        "render.markdown",
        "render.terminal",
        "worker.first_step",
    ):
        importlib.import_module(f"autobatch.{module}")
    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address + ".tmp")
    listening.listen(128)
    os.rename(address + ".tmp", address)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody in front; the tests' end is ours
    lines: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([0, listening.fileno(), woken], [], [])
        if 0 in ready and not os.read(0, 1):
            os._exit(0)
        if woken in ready:
            os.read(woken, 4096)
            for pid in list(lines):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    with suppress(OSError), lines.pop(pid) as line:
                        line.send(pickle.dumps(os.waitstatus_to_exitcode(status)))
        if listening.fileno() in ready:
            line, _ = listening.accept()
            order, descriptors, _, _ = socket.recv_fds(line, _LONGEST, 16)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for other in (listening, line, *lines.values()):
                    other.close()
                os.close(woken)
                os.close(wake)
                _become(descriptors, *pickle.loads(order))
            for descriptor in descriptors:
                os.close(descriptor)
            lines[pid] = line
            line.send(pickle.dumps(pid))


def _become(
    descriptors: list[int],
    arguments: list[str],
    folder: str,
    environment: Mapping[str, str],
    pass_fds: list[int],
    new_session: bool,
) -> NoReturn:
    """Go on as `python ARGUMENTS` does when its imports are done, and end."""
    code = 1
    try:
        if new_session:
            os.setsid()
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _FREE) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        for source, target in zip(high, [0, 1, 2, *pass_fds], strict=True):
            os.dup2(source, target)
            os.close(source)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _show_environment()
        if any(name.startswith(_FOR_TESTS) for name in environment):
            importlib.import_module("tests.helpers.steady").install()
        sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115  # it stays
        sys.stdout = sys.__stdout__ = _output(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _output(2)  # type: ignore[misc]
        _run(arguments)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # what Python does with it
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _output(descriptor: int) -> io.TextIOWrapper:
    """The stream that Python makes of a descriptor at its start."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    raw: Any = open(descriptor, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115  # it stays
    by_line = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(raw, line_buffering=by_line, write_through=unbuffered)


def _show_environment() -> None:
    """Have /proc/PID/environ tell this process's own: some look there for the processes of a run."""
    start, end = map(int, Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[47:49])
    told = b"".join(name + b"=" + value + b"\0" for name, value in os.environb.items())
    ctypes.memset(start, 0, end - start)  # the variables of C were copied when they were set
    ctypes.memmove(start, told, min(len(told), end - start))


def _run(arguments: list[str]) -> None:
    vars(processes)["subprocess"] = Subprocess
    safe = arguments[0] == "-P"
    what, *more = arguments[1:] if safe else arguments
    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = paths + [entry for entry in sys.path if entry not in {"", str(ROOT), *paths}]
    if what == "-m":
        if not safe:
            sys.path.insert(0, os.getcwd())
        sys.argv = more
        warnings.filterwarnings(
            "ignore", "'autobatch.engines.processes.worker_main' found in sys.modules", RuntimeWarning
        )
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *more[1:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(more[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = [what, *more]
        sys.path.insert(0, str(Path(what).resolve().parent))
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
