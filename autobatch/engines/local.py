"""An executor with one worker process of this machine: a crash there costs the job that ran, not the coordinator."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..errors import WorkerDied
from .processes import ForkServer, StartedProcess, WorkerProcess

P = ParamSpec("P")
T = TypeVar("T")

_LOG_TAIL_LINES = 12


class LocalExecutor(Executor):
    """Runs submitted calls one after the other in a process of its own, asked for at once.

    The process is none that runs the caller's main module, so a script that calls autobatch is not run again in it.
    When it ends, every call it has not answered fails with `WorkerDied`, and so does every later `submit`.

    Args:
        server: forks the process, with the server's environment and log; None to start a Python for it.
        environment: variables to set on top of this process's own, for a process that is started.
        log: file that the output of a started process is added to; by default it goes to this process's stderr. Of a
            forked one, where the server's output goes.
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
        self._log = log
        self._log_start = log.stat().st_size if log is not None and log.exists() else 0
        self._process: WorkerProcess
        try:
            if server is not None:
                self._process = server.fork(theirs)
            else:
                self._process = StartedProcess(theirs, environment=environment, log=log)
        finally:
            theirs.close()
        self._lock = threading.Lock()
        self._next = 0
        self._waiting: dict[int, Future[Any]] = {}
        self._ended: str | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # The end of the connection does not tell of every death: what the worker started may hold it open.
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the worker process; waits until there is one."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the worker can still take a call."""
        return self._ended is None and self._process.poll() is None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future of `fn(*args, **kwargs)` in the worker; function and arguments travel by pickle.

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
            with suppress(OSError):  # it died just now: the reader fails this future with the reason
                self._connection.send_bytes(pickle.dumps((job, payload)))
        return future

    def _read(self) -> None:
        while True:
            try:
                job, done, value = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                break
            future = self._waiting.pop(job)
            if done:
                future.set_result(value)
            else:
                future.set_exception(value)
        self.kill()
        self._connection.close()

    def _watch(self) -> None:
        self._process.wait()
        self.kill()

    def kill(self) -> None:
        """End the worker and what it started, now; calls it has not answered fail with `WorkerDied`."""
        self._process.kill()
        code = self._process.wait()
        with self._lock:
            if self._ended is None:
                self._ended = self._why(code)
            waiting, self._waiting = dict(self._waiting), {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(WorkerDied(self._ended))

    @property
    def killed(self) -> bool:
        """Whether a SIGKILL ended it: ours, or the kernel's for want of memory."""
        return self._process.poll() == -signal.SIGKILL

    def _why(self, code: int) -> str:
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (the kernel does so when memory runs out)"
        tail = self._log_tail()
        return f"the worker process ended {how}" + (f"; its last words:\n{tail}" if tail else "")

    def _log_tail(self) -> str:
        if self._log is None or not self._log.exists():
            return ""
        with open(self._log, "rb") as log:
            log.seek(self._log_start)
            text = log.read().decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-_LOG_TAIL_LINES:])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the worker; with `wait`, after the calls it was given."""
        if wait and not cancel_futures:
            for future in list(self._waiting.values()):
                future.exception()
        self.kill()
        if wait and threading.current_thread() is not self._reader:
            self._reader.join()
