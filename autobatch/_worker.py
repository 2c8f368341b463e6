"""The worker process, `python -m autobatch._worker FD`: it reads jobs from a connection, runs them, writes the results.

It imports nothing heavy by itself; a job says what it needs. When the coordinator goes away, however it went, the
connection ends and the worker ends with it, its data-loading children included.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import NoReturn


def _end() -> NoReturn:
    os.killpg(0, signal.SIGKILL)  # the worker leads its own group (engines/local.py): the loader's processes go too
    os._exit(1)


def _read(connection: Connection, jobs: queue.SimpleQueue[bytes]) -> None:
    while True:
        try:
            jobs.put(connection.recv_bytes())
        except (EOFError, OSError):
            _end()


def _answer(job: int, done: bool, value: object) -> bytes:
    try:
        return pickle.dumps((job, done, value))
    except Exception as error:  # noqa: BLE001  # whatever a user's object does when it is pickled
        return pickle.dumps(
            (job, False, RuntimeError(f"the worker's answer cannot be sent: {error!r} ({value!r:.500})"))
        )


def main() -> None:
    """Serve jobs until the connection ends."""
    connection = Connection(int(sys.argv[1]))
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, jobs), daemon=True).start()
    while True:
        job = -1
        try:
            job, payload = pickle.loads(jobs.get())
            function, args, kwargs = pickle.loads(payload)
            answer = _answer(job, True, function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # the boundary: everything goes back to who asked
            error.add_note("in the worker:\n" + "".join(traceback.format_exception(error)))
            answer = _answer(job, False, error.with_traceback(None))
        sys.stdout.flush()
        connection.send_bytes(answer)


if __name__ == "__main__":
    main()
