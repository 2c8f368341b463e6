"""The log of a run's workers, kept short: a task may print at every step, for days.

Workers write to the file itself, so that their last words outlive them and none waits for a reader while its steps are
timed. It is shortened in place: all of them append, and go on at whatever the end is by then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A log of more than the third figure is shortened to its first bytes, which say how the run was set up, and its latest,
# which say how it ended. Assumed: more than anybody reads, and nothing beside a checkpoint.
FIRST_BYTES, LAST_BYTES, MOST_BYTES = 1 << 20, 3 << 20, 8 << 20
LOOK_EVERY_S = 2.0  # assumed: what is printed in between is little to a disk, and looking takes microseconds

_CUT = b"\n[autobatch: the log was long; what the workers printed in between is left out]\n"
_PIECE_BYTES = 1 << 20  # moved at once


@contextmanager
def kept_short(path: Path) -> Iterator[None]:
    """Keep the log at `path` short, whoever writes to it, as long as the block is run."""
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
    with suppress(OSError):  # it is not there yet, or was taken away: it is but a log
        shorten(path)


def shorten(path: Path) -> None:
    """Take the middle out of a log that is too long; what is appended meanwhile stays.

    Raises:
        OSError: there is no such file, or it cannot be written.
    """
    with open(path, "r+b", buffering=0) as log:
        file = log.fileno()
        size = os.fstat(file).st_size
        if size <= MOST_BYTES:
            return
        first = os.pread(file, FIRST_BYTES + len(_CUT), 0)
        cut = first.find(_CUT)  # from when it was shortened before
        end = cut if cut >= 0 else min(len(first), FIRST_BYTES)
        end += os.pwrite(file, _CUT, end)
        source = size - LAST_BYTES
        while piece := os.pread(file, _PIECE_BYTES, source):  # until it has caught up with those who append
            moved = os.pwrite(file, piece, end)
            source, end = source + moved, end + moved
        os.ftruncate(file, end)
