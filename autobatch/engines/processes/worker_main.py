"""The worker process: it reads jobs from a connection, runs them, and writes the results.

    python -m autobatch.engines.processes.worker_main work FD              a worker on the connection FD
    python -m autobatch.engines.processes.worker_main serve FD MODULE...
                                             a fork server: imports the modules, then makes workers

Importing torch takes seconds and forking takes milliseconds. So a server that only imports is forked for each worker:
the worker has run nothing, like a started one. When the coordinator ends in any way, the connections end, and the
processes end with them, including their data-loading children.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import queue
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import NoReturn

from ...errors import AutobatchError, TaskError, text_of
from ...tasks.libraries import Libraries
from .endings import adopt_orphans, children, end_children, end_group
from .streams import lasting
from .warned import warn_once

_PR_SET_PDEATHSIG = 1  # prctl(2)

ORDER_BYTES = 1024  # assumed: an order to the fork server, a pickled pair of a word and a number, is shorter


def _end() -> NoReturn:
    end_children(but=())  # also those that lead their own sessions
    end_group(os.getpgid(0))  # each worker leads one, with its loader's processes
    os._exit(1)


def _read(connection: Connection, jobs: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            jobs.put(connection.recv_bytes())
    except (EOFError, OSError):
        _end()
    except BaseException:  # noqa: BLE001  # usually out of memory: without this thread no job would ever arrive
        traceback.print_exc()
        _end()


def _run(message: bytes) -> bytes:
    """The answer to a job: its number, whether it succeeded, and its result or error."""
    job, payload = pickle.loads(message)
    try:
        function, args, kwargs = pickle.loads(payload)
        value = function(*args, **kwargs)
    except AutobatchError as error:
        error.add_note("in the worker:\n" + "".join(traceback.format_exception(error)))
        return pickle.dumps((job, False, error.with_traceback(None)))
    except Exception as error:  # noqa: BLE001  # the boundary: every error goes back to the caller
        # As text: the class may be the user's own, which may not unpickle.
        trace = "".join(traceback.format_exception(error))
        text = f"{type(error).__name__}: {text_of(error)}\nin the worker:\n{trace}"
        return pickle.dumps((job, False, RuntimeError(text)))
    except BaseException as error:  # noqa: BLE001  # KeyboardInterrupt or another that ends a program: the task raised it
        from ...tasks.task_file import user_frames

        kind, frames = type(error).__name__, user_frames(error, None)
        refusal = TaskError(
            f"the task raised {kind}, which is for ending a program; raise another error if something is wrong"
            + (f":\n{frames}" if frames else "")
        )
        return pickle.dumps((job, False, refusal))
    try:
        return pickle.dumps((job, True, value))
    except Exception as error:  # noqa: BLE001  # pickling a user's object may raise anything
        text = f"the worker's answer cannot be sent: {type(error).__name__}: {text_of(error)} ({type(value).__name__})"
        return pickle.dumps((job, False, RuntimeError(text)))


def work(connection: Connection) -> NoReturn:
    """Serve jobs until the connection ends."""
    adopt_orphans()  # what the task starts becomes a child of this process, and ends with it
    # multiprocessing's tracker warns of what it has cleaned up, which is expected after a kill.
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker")))
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, jobs), daemon=True).start()
    while True:
        connection.send_bytes(_run(jobs.get()))


def serve(control: socket.socket, modules: list[str]) -> NoReturn:
    """Import `modules`, then fork and kill workers as ordered, and report each start and each end.

    Orders are pickled pairs: ("fork", number) with the worker's connection as the file descriptor of the message,
    ("kill", number), and ("load", 0) with a file descriptor of pickled `Libraries`. Reports are (number, pid, None) for
    a start and (number, pid, exit code) for an end, with the code like `subprocess.Popen.returncode`; and (None, the
    server's pid, None) when the imports at the start or those of a load are done. Until then no order is read, and an
    import may never end.
    """
    with _importing(), _ending_with(control):
        for module in modules:
            importlib.import_module(module)
    _report(control, None, os.getpid(), None)
    adopt_orphans()
    own = children()  # children that an import has started
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the end of a worker writes to `wake`
    pids: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            with suppress(BlockingIOError):
                os.read(woken, 4096)
            for number, pid in list(pids.items()):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    end_group(pid)  # its group: the number is not reused until it is reaped
                    _, status = os.waitpid(pid, 0)
                    del pids[number]
                    end_children(but=own.union(pids.values()))  # its processes in other sessions
                    _report(control, number, pid, os.waitstatus_to_exitcode(status))
        if control.fileno() in ready:
            try:
                order, descriptors, _, _ = socket.recv_fds(control, ORDER_BYTES, 1)
            except ConnectionResetError:  # the coordinator ended before it had read all reports
                order = b""
            if not order:
                for pid in pids.values():
                    end_group(pid)
                _end()
            what, number = pickle.loads(order)
            if what == "fork":
                pids[number] = _fork(control, (woken, wake), descriptors[0])
                _report(control, number, pids[number], None)
            elif what == "load":
                with open(descriptors[0], "rb") as file:
                    libraries: Libraries = pickle.load(file)
                with _importing(), _ending_with(control):
                    libraries.load()
                own = children() - set(pids.values())
                _report(control, None, os.getpid(), None)
            elif number in pids:
                end_group(pids[number])


def _report(control: socket.socket, number: int | None, pid: int, code: int | None) -> None:
    with suppress(OSError):  # the coordinator has ended, which the next read shows
        control.send(pickle.dumps((number, pid, code)))


@contextmanager
def _importing() -> Iterator[None]:
    # The imported objects stay. Collecting garbage meanwhile takes a tenth of the time (measured: torch, scikit-learn).
    # They are frozen, so that no collection in a worker visits them or copies their pages. There is no collection
    # before that: it takes 0.3 s and finds 9,000 small objects of a million (measured: torch 2.13).
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@contextmanager
def _ending_with(control: socket.socket) -> Iterator[None]:
    """End this process with its coordinator while it imports and cannot see that its connection has ended.

    It uses a thread, which ends before any fork.
    """
    over, end = os.pipe()

    def watch() -> None:
        poll = select.poll()
        poll.register(control, 0)  # a closed other end is reported with any mask
        poll.register(over, select.POLLIN)
        if any(descriptor != over for descriptor, _ in poll.poll()):
            _end()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        os.close(end)
        watching.join()
        os.close(over)


def _fork(control: socket.socket, pipe: tuple[int, int], descriptor: int) -> int:
    server = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 warns of other threads. Those here are OpenBLAS's, which renews its pool after a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        with suppress(PermissionError, ProcessLookupError):  # parent and child both do it, so that it is never too late
            os.setpgid(pid, pid)
        os.close(descriptor)
        return pid
    try:
        os.setpgid(0, 0)
        # If the server is killed now, no other process knows this one, or could report how it ended.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != server:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for end in pipe:
            os.close(end)
        work(Connection(descriptor))
    except BaseException:  # noqa: BLE001  # no caller is left
        traceback.print_exc()
    finally:
        os._exit(1)  # never return into the server's loop


def main() -> NoReturn:
    """Do what the command line says; see the module's docstring."""
    # The task's output does not end the process when its reader is gone.
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    warn_once()
    role, descriptor, *modules = sys.argv[1:]
    if role == "serve":
        serve(socket.socket(fileno=int(descriptor)), modules)
    work(Connection(int(descriptor)))


if __name__ == "__main__":
    main()
