"""The worker process: it reads jobs from a connection, runs them, writes the results.

    python -m autobatch.engines.processes.worker_main work FD              a worker on the connection FD
    python -m autobatch.engines.processes.worker_main serve FD MODULE...
                                             a fork server: imports the modules, then makes workers

Importing torch takes seconds and forking takes milliseconds, so a server that only ever imported is forked for each
worker: the worker has run nothing, just as one that was started. When the coordinator goes away, however it went, the
connections end, and the processes end with them, their data-loading children included.
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

ORDER_BYTES = 1024  # assumed: what an order to the fork server, a pickled pair of a word and a number, stays below


def _end() -> NoReturn:
    end_children(but=())  # also those that lead sessions of their own
    end_group(os.getpgid(0))  # each worker leads its own: the loader's processes go too
    os._exit(1)


def _read(connection: Connection, jobs: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            jobs.put(connection.recv_bytes())
    except (EOFError, OSError):
        _end()
    except BaseException:  # noqa: BLE001  # out of memory, as a rule: without this thread no job would ever arrive
        traceback.print_exc()
        _end()


def _run(message: bytes) -> bytes:
    """The answer to a job: its number, whether it was done, and what it returned or the error."""
    job, payload = pickle.loads(message)
    try:
        function, args, kwargs = pickle.loads(payload)
        value = function(*args, **kwargs)
    except AutobatchError as error:
        error.add_note("in the worker:\n" + "".join(traceback.format_exception(error)))
        return pickle.dumps((job, False, error.with_traceback(None)))
    except Exception as error:  # noqa: BLE001  # the boundary: everything goes back to who asked
        # As text: the class may be one of the user's, which need not unpickle.
        told = "".join(traceback.format_exception(error))
        text = f"{type(error).__name__}: {text_of(error)}\nin the worker:\n{told}"
        return pickle.dumps((job, False, RuntimeError(text)))
    except BaseException as error:  # noqa: BLE001  # KeyboardInterrupt or another that ends a program: the task's doing
        from ...tasks.task_file import user_frames

        kind, frames = type(error).__name__, user_frames(error, None)
        refusal = TaskError(
            f"the task raised {kind}, which is for ending a program; what is wrong with a task is said by another error"
            + (f":\n{frames}" if frames else "")
        )
        return pickle.dumps((job, False, refusal))
    try:
        return pickle.dumps((job, True, value))
    except Exception as error:  # noqa: BLE001  # whatever a user's object does when it is pickled
        told = f"the worker's answer cannot be sent: {type(error).__name__}: {text_of(error)} ({type(value).__name__})"
        return pickle.dumps((job, False, RuntimeError(told)))


def work(connection: Connection) -> NoReturn:
    """Serve jobs until the connection ends."""
    adopt_orphans()  # what the task started stays below this process, and ends with it
    # multiprocessing's cleaner tells what it has cleaned up, which is no news where a worker was ended.
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker")))
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, jobs), daemon=True).start()
    while True:
        connection.send_bytes(_run(jobs.get()))


def serve(control: socket.socket, modules: list[str]) -> NoReturn:
    """Import `modules`, then fork and end workers as told, and report each start and each end.

    Orders are pickled pairs: ("fork", number) with the worker's connection as the file descriptor of the message,
    ("kill", number), and ("load", 0) with a file descriptor of pickled `Libraries`. Reports are (number, pid, None) for
    a start and (number, pid, exit code) for an end, the code as `subprocess.Popen.returncode` gives it; and
    (None, the server's pid, None) when the imports at the start or those of a load are done: until then no order is
    read, and one import may take for ever.
    """
    with _importing(), _ending_with(control):
        for module in modules:
            importlib.import_module(module)
    _report(control, None, os.getpid(), None)
    adopt_orphans()
    own = children()  # what an import has started is nobody else's
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
                    end_group(pid)  # what it started; its number is its own until it is reaped
                    _, status = os.waitpid(pid, 0)
                    del pids[number]
                    end_children(but=own.union(pids.values()))  # what it put into other sessions
                    _report(control, number, pid, os.waitstatus_to_exitcode(status))
        if control.fileno() in ready:
            try:
                order, descriptors, _, _ = socket.recv_fds(control, ORDER_BYTES, 1)
            except ConnectionResetError:  # the coordinator went, and had not read all reports
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
    with suppress(OSError):  # the coordinator went: reading the next order finds that out
        control.send(pickle.dumps((number, pid, code)))


@contextmanager
def _importing() -> Iterator[None]:
    # What is imported stays. Looking for garbage meanwhile takes a tenth of the time (measured: torch, scikit-learn);
    # frozen, no collection in a worker looks at it again, or copies its pages. Nor is it looked through once before:
    # that takes 0.3 s, and finds 9,000 small objects of a million (measured: torch 2.13).
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@contextmanager
def _ending_with(control: socket.socket) -> Iterator[None]:
    """End this process with its coordinator while it imports, and so cannot read that its connection has ended.

    By a thread, which is gone before anything is forked.
    """
    over, end = os.pipe()

    def watch() -> None:
        poll = select.poll()
        poll.register(control, 0)  # that the other end is closed is told whatever is asked for
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
        # Python 3.12 warns of other threads. Those here are OpenBLAS's, which makes its pool anew after a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        with suppress(PermissionError, ProcessLookupError):  # both sides do it, so that none comes too late
            os.setpgid(pid, pid)
        os.close(descriptor)
        return pid
    try:
        os.setpgid(0, 0)
        # Should the server be killed, nobody else knows of this process yet, or could say how it ended.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != server:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for end in pipe:
            os.close(end)
        work(Connection(descriptor))
    except BaseException:  # noqa: BLE001  # there is nobody above to see it
        traceback.print_exc()
    finally:
        os._exit(1)  # never back into the server's loop


def main() -> NoReturn:
    """Do what the command line says; see the head of this file."""
    # What the task prints does not end it, whoever read it and reads it no longer.
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    warn_once()
    role, descriptor, *modules = sys.argv[1:]
    if role == "serve":
        serve(socket.socket(fileno=int(descriptor)), modules)
    work(Connection(int(descriptor)))


if __name__ == "__main__":
    main()
