"""One worker process of this machine: calls go in, futures come out. If it crashes, only the running call is lost."""

from __future__ import annotations

import pickle
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, final

from ...errors import StartError, WorkerDied
from .fork_server import ForkServer, StartedProcess, WorkerProcess

P = ParamSpec("P")
T = TypeVar("T")


@final
class LocalWorker:
    """Runs submitted calls one after the other in its own process, which is started at once.

    The process does not run the caller's main module, so a script that calls autobatch is not run again in it. When the
    process ends, every unanswered call fails with `WorkerDied`, and so does every later `submit`. An `AutobatchError`
    that a call raises comes back as it is, and any other error as a `RuntimeError` with its text.

    Args:
        server: forks the process, with the server's environment and log; None to start a new Python.
        environment: for a new Python, variables to add to this process's own.
        log: for a new Python, the file to which its output is appended; by default it goes to this process's stderr.
    """

    def __init__(
        self,
        *,
        server: ForkServer | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        ours, theirs = Pipe()
        self._connection: Connection = ours
        self._process: WorkerProcess
        try:
            if server is not None:
                self._process = server.fork(theirs)
            else:
                self._process = StartedProcess(theirs, environment=environment, log=log)
        except StartError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._lock = threading.Lock()
        self._next = 0
        self._waiting: dict[int, Future[Any]] = {}
        self._ended: str | None = None
        threading.Thread(target=self._read, daemon=True).start()
        # The end of the connection does not show every death: a process that the worker started may hold it open.
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process number of the worker. Waits until the process exists."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the worker can still take a call."""
        return self._ended is None and self._process.poll() is None

    @property
    def killed(self) -> bool:
        """Whether a SIGKILL ended it: ours, or the kernel's when memory ran out."""
        return self._process.poll() == -signal.SIGKILL

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future of `fn(*args, **kwargs)` in the worker. The function and its arguments are pickled.

        Raises:
            WorkerDied: the worker has ended.
        """
        payload = pickle.dumps((fn, args, kwargs))
        future: Future[T] = Future()
        with self._lock:
            if self._ended is not None:
                raise WorkerDied(self._ended)
            job = self._next
            self._next += 1
            self._waiting[job] = future
            with suppress(OSError):  # it has just died: the reader thread fails this future with the reason
                self._connection.send_bytes(pickle.dumps((job, payload)))
        return future

    def kill(self) -> None:
        """Kill the worker and everything that it started. Unanswered calls fail with `WorkerDied`."""
        self._process.kill()
        code = self._process.wait()
        with self._lock:
            if self._ended is None:
                self._ended = _why(code, self._process)
            waiting, self._waiting = dict(self._waiting), {}
            self._hang_up()
        for future in waiting.values():
            future.set_exception(WorkerDied(self._ended))

    def _hang_up(self) -> None:
        """Close the connection, even if other processes still hold its other end."""
        with suppress(OSError):  # it is closed already
            connection = socket.socket(fileno=self._connection.fileno())
            try:
                connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()

    def _read(self) -> None:
        while True:
            try:
                job, done, value = pickle.loads(self._connection.recv_bytes())
            except Exception:  # noqa: BLE001  # the connection ended, or the message is no answer: the worker is lost
                break
            with self._lock:
                future = self._waiting.pop(job, None)
            if future is None:  # the future has failed already, by a kill
                continue
            if done:
                future.set_result(value)
            else:
                future.set_exception(value)
        self.kill()
        with self._lock:
            self._connection.close()

    def _watch(self) -> None:
        self._process.wait()
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()


def _why(code: int, process: WorkerProcess) -> str:
    try:
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        how = f"by signal {-code}"
    if code == -signal.SIGKILL:
        how += " (the kernel does so when memory runs out)"
    words = process.last_words()
    return f"the worker process ended {how}" + (f"; its last words:\n{words}" if words else "")
