"""The log of a run's workers, kept short: a task may print at every step, for days.

Workers write to the file itself, so that their last lines outlive them and no worker waits for a reader while its steps
are timed. The file is shortened in place: all workers append, and continue at the new end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A log longer than the third figure is shortened to its first bytes, which show how the run was set up, and its last
# bytes, which show how it ended. Assumed: more than anyone reads, and small beside a checkpoint.
FIRST_BYTES, LAST_BYTES, MOST_BYTES = 1 << 20, 3 << 20, 8 << 20
LOOK_EVERY_S = 2.0  # assumed: little is printed in between, and looking takes microseconds

_CUT = b"\n[autobatch: the log was long; what the workers printed in between is left out]\n"
_PIECE_BYTES = 1 << 20  # how much is moved at once


@contextmanager
def kept_short(path: Path) -> Iterator[None]:
    """Keep the log at `path` short while the block runs, whoever writes to it."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            _try_to_shorten(path)

    watching = threading.Thread(target=watch, name="autobatch-log", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        _try_to_shorten(path)


def _try_to_shorten(path: Path) -> None:
    with suppress(OSError):  # it does not exist yet, or was removed: it is only a log
        shorten(path)


def shorten(path: Path) -> None:
    """Remove the middle of a log that is too long. What is appended meanwhile is kept.

    Raises:
        OSError: the file does not exist, or cannot be written.
    """
    with open(path, "r+b", buffering=0) as log:
        file = log.fileno()
        size = os.fstat(file).st_size
        if size <= MOST_BYTES:
            return
        first = os.pread(file, FIRST_BYTES + len(_CUT), 0)
        cut = first.find(_CUT)  # it was shortened before
        end = cut if cut >= 0 else min(len(first), FIRST_BYTES)
        end += os.pwrite(file, _CUT, end)
        source = size - LAST_BYTES
        while piece := os.pread(file, _PIECE_BYTES, source):  # until it has caught up with the writers
            moved = os.pwrite(file, piece, end)
            source, end = source + moved, end + moved
        os.ftruncate(file, end)
