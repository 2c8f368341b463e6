"""Worker processes of this machine: started as a new Python, or forked from one that has done its imports."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, final

from ...errors import StartError
from ...tasks.libraries import Libraries
from .endings import MARK, end_group, end_marked, new_mark
from .relay import Relay
from .warned import VARIABLE, shared_file
from .worker_main import ORDER_BYTES

# How many lines of a dead worker's output a message quotes. Assumed: the end of a traceback fits.
_TAIL_LINES = 12
_TAIL_BYTES = 16 << 10

_CLOSE_S = 10.0  # assumed: the most that a killed worker needs to give back its memory and its device's


class WorkerProcess(ABC):
    """A process of `autobatch.engines.processes.worker_main`, which leads its own process group."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process number. Waits until the process exists."""

    @abstractmethod
    def poll(self) -> int | None:
        """Its exit code, negative for a signal, like `subprocess.Popen.returncode`; None while it runs."""

    @abstractmethod
    def wait(self) -> int:
        """Its exit code, once it and everything that it started have ended."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it and everything that it started. It has ended when `wait` returns."""

    @abstractmethod
    def last_words(self) -> str:
        """The last lines of its output, if that went to a file."""


@final
class StartedProcess(WorkerProcess):
    """A worker as a new Python on `connection`, the worker's end. Its imports take a while.

    Args:
        connection: the worker's end. The caller closes it.
        environment: variables to add to this process's own.
        log: file to which its output is appended; by default it goes to this process's stderr.
    """

    def __init__(
        self, connection: Connection, *, environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        self._log = _Log(log)
        self._mark = new_mark()
        variables = {**(environment or {}), MARK: self._mark}
        self._process, self._relay = _start("work", connection.fileno(), [], variables, log)
        self._group = threading.Lock()
        self._group_is_gone = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        code = self._process.wait()
        with self._group:
            if not self._group_is_gone:  # only once: later the number may belong to another group
                with suppress(PermissionError):  # its remaining processes have another user
                    end_group(self._process.pid)
                end_marked(self._mark)
                if self._relay is not None:
                    self._relay.drain()
                self._group_is_gone = True
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            end_group(self._process.pid)

    def last_words(self) -> str:
        return self._log.tail()


@final
class ForkServer:
    """A process that imports `modules` once and is forked for each worker, so that a fresh worker needs no imports.

    While it imports, it reads no orders. `fork` does not wait for that, and ending a worker meanwhile ends the server
    and all its workers. Only for Linux: on other systems, system libraries do not survive a fork.

    Args:
        modules: the modules to import. They must not start threads that matter, or touch a device.
        environment: variables to add to this process's own.
        log: file to which its output and that of its workers is appended; by default it goes to this process's stderr.
    """

    def __init__(
        self, modules: Sequence[str], *, environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        self.log = _Log(log)
        try:
            self._mark = new_mark()
            variables = {**(environment or {}), MARK: self._mark}
            self._process, self._relay = _start("serve", theirs.fileno(), modules, variables, log)
        except StartError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._lock = threading.Lock()
        self._workers: dict[int, ForkedProcess] = {}  # the workers that have not ended
        self._count = 0
        self._imports = 1  # imports that are not yet reported as done: that at the start, and each load
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The server's process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return not self._ended and self._process.poll() is None

    def fork(self, connection: Connection) -> ForkedProcess:
        """A new worker on `connection`, the worker's end, which the caller closes."""
        with self._lock:
            worker = ForkedProcess(self, self._count, _Log(self.log.path))
            self._count += 1
            if self._ended:
                worker.ended(self._process.wait())
                return worker
            self._workers[worker.number] = worker
            with suppress(OSError):  # the server has just ended: the reader thread notices it
                socket.send_fds(self._control, [pickle.dumps(("fork", worker.number))], [connection.fileno()])
        return worker

    def load(self, libraries: Libraries) -> None:
        """Make the server import `libraries`. Workers forked from now on wait for that, and have them."""
        file = os.memfd_create("libraries")  # in a file, because an order must be short
        with open(file, "wb") as stream:
            pickle.dump(libraries, stream)
            stream.flush()
            os.lseek(file, 0, os.SEEK_SET)
            with self._lock, suppress(OSError):  # the server has ended, and the next one starts without them
                self._imports += 1
                socket.send_fds(self._control, [pickle.dumps(("load", 0))], [file])

    def end(self, worker: ForkedProcess) -> None:
        """End the worker if it runs. While the server imports, this ends the server with all its workers."""
        with self._lock, suppress(OSError):
            if not self._imports:
                self._control.send(pickle.dumps(("kill", worker.number)))
            elif self._process.poll() is None:  # it reads no orders, and its import may never end
                end_group(self._process.pid)

    def _read(self) -> None:
        while True:
            try:
                report = self._control.recv(ORDER_BYTES)
            except OSError:
                report = b""
            if not report:
                break
            number, pid, code = pickle.loads(report)
            with self._lock:
                if number is None:
                    self._imports -= 1
                    continue
                worker = self._workers[number] if code is None else self._workers.pop(number)
            if code is None:
                worker.started(pid)
            else:
                worker.ended(code)
        # Without the server there is no report of how the workers ended, so the server's end counts as theirs. The
        # kernel ends them with it; what they started must be ended here.
        if self._process.poll() is None:
            end_group(self._process.pid)
        code = self._process.wait()
        with self._lock:
            self._ended = True
            orphans, self._workers = list(self._workers.values()), {}
        for worker in orphans:
            if worker.is_started:
                end_group(worker.pid)
        end_marked(self._mark)
        if self._relay is not None:
            self._relay.drain()
        for worker in orphans:
            worker.ended(code)

    def close(self) -> None:
        """End the server and its workers."""
        with self._lock:
            workers = list(self._workers.values())
        try:
            for worker in workers:  # through the server while it runs: only it can report when they are gone
                worker.kill()
                worker.ends_within(_CLOSE_S)
        finally:  # even after a second Ctrl-C
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)  # wakes the reader thread, which does the rest
        self._reader.join()
        self._control.close()


@final
class ForkedProcess(WorkerProcess):
    """A worker that a `ForkServer` made."""

    def __init__(self, server: ForkServer, number: int, log: _Log) -> None:
        self.number = number
        self._server, self._log = server, log
        self._pid: int | None = None
        self._code: int | None = None
        self._has_started, self._has_ended = threading.Event(), threading.Event()

    def started(self, pid: int) -> None:
        """Called when the server reports that it runs."""
        self._pid = pid
        self._has_started.set()

    def ended(self, code: int) -> None:
        """Called when the server reports that it has ended."""
        self._code = code
        self._has_ended.set()
        self._has_started.set()

    @property
    def is_started(self) -> bool:
        """Whether it has a pid."""
        return self._pid is not None

    @property
    def pid(self) -> int:
        self._has_started.wait()
        if self._pid is None:
            raise ProcessLookupError("the worker was never started: its fork server ended")
        return self._pid

    def poll(self) -> int | None:
        return self._code

    def wait(self) -> int:
        self._has_ended.wait()
        assert self._code is not None
        return self._code

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, at most this long. Returns whether it has ended."""
        return self._has_ended.wait(seconds)

    def kill(self) -> None:
        if self._code is None:
            self._server.end(self)

    def last_words(self) -> str:
        return (self._log if self.is_started else self._server.log).tail()


class _Log:
    """A file that a process writes to, from the position at which the process began."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._start = path.stat().st_size if path is not None and path.exists() else 0

    def tail(self) -> str:
        """The last lines since then; empty if there is no such file."""
        if self.path is None:
            return ""
        try:
            with open(self.path, "rb") as log:
                end = log.seek(0, os.SEEK_END)
                start = self._start if self._start <= end else 0  # the file was shortened since
                log.seek(max(start, end - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:  # the file was removed
            return ""
        return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the folder was removed, so it holds no modules
        return os.devnull


def _start(
    role: str, descriptor: int, modules: Sequence[str], environment: Mapping[str, str], log: Path | None
) -> tuple[subprocess.Popen[bytes], Relay | None]:
    package = str(Path(__file__).resolve().parents[3])
    # In the caller's order, so that the worker imports the same modules as the caller. "" stands for the caller's
    # working folder, which `-m` would put before all others without `-P`.
    path = os.pathsep.join([*(entry or _here() for entry in sys.path), package])
    # Only the coordinator needs a database's password.
    inherited = {name: value for name, value in os.environ.items() if name != "AUTOBATCH_STORAGE"}
    if not sys.executable:
        raise StartError(
            "a worker is a new Python process, and this Python does not know its own path (sys.executable)"
        )
    output: IO[bytes] | None = open(log, "ab") if log is not None else None  # noqa: SIM115  # closed below
    relay = Relay.to_stderr() if log is None else None
    warned = shared_file()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autobatch.engines.processes.worker_main", role, str(descriptor), *modules],
            env={**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", VARIABLE: str(warned), **environment},
            pass_fds=[descriptor, warned],
            stdin=subprocess.DEVNULL,
            stdout=output or sys.__stderr__ or subprocess.DEVNULL,
            stderr=output or (relay.write_end if relay is not None else subprocess.DEVNULL),
            start_new_session=True,  # only the coordinator handles Ctrl-C, and killing the group includes the loaders
        )
        return process, relay
    except OSError as error:
        raise StartError(
            f"a worker cannot be started with {sys.executable}: {error.strerror}. Run autobatch with a Python that you "
            "may execute, on a machine with room for one more process"
        ) from None
    finally:
        if relay is not None:
            relay.started()
        if output is not None:
            output.close()
