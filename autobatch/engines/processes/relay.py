"""The stderr of workers, passed on to this process's: a warning from C++ that several of them print is shown once.

torch's C++ code writes such warnings to the descriptor itself, each process anew, where nothing in Python sees them.
Only they are left out, and only whole lines of the form that torch gives them: tracebacks, progress bars and whatever
else a task prints are passed on byte for byte, as soon as they come, however often they are the same.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading

from .streams import LastingFile

# Cited: how torch's C++ writes a warning (c10/util/Logging.cpp, torch 2.6 to 2.13), with `[rank0]:` before it in a
# group: [W1129 12:00:00.123456789 NNPACK.cpp:57] Could not initialize NNPACK! Errors are E, and have their own letter.
_WARNING = re.compile(rb"(?:\[rank\d+\]:)?\[W\d{4} \d\d:\d\d:\d\d\.\d+ (?P<told>\S+:\d+\] .*)")
_BEGINNINGS = (b"[W", b"[rank")

_PIECE_BYTES = 1 << 16
# Assumed: how long the beginning of a line waits for its end, where it may become such a warning.
_REST_MS = 200
_DRAIN_S = 2.0  # assumed: what passing on the last lines takes, when all who could write more have ended

_shown: set[bytes] = set()  # in this command, by any worker
_showing = threading.Lock()


class Relay:
    """A pipe for the stderr of processes, and the thread that reads it.

    Attributes:
        write_end: the descriptor that the processes inherit; `started` closes it here.
    """

    def __init__(self, target: int) -> None:
        self._read_end, self.write_end = os.pipe()
        self._target = LastingFile(target)
        self._thread = threading.Thread(target=self._pump, name="autobatch-stderr", daemon=True)
        self._thread.start()

    @classmethod
    def to_stderr(cls) -> Relay | None:
        """One to this process's own stderr; None where it has none."""
        return cls(sys.__stderr__.fileno()) if sys.__stderr__ is not None else None

    def started(self) -> None:
        """The process has the write end now, or never will."""
        os.close(self.write_end)

    def drain(self) -> None:
        """Wait until what the ended processes wrote has been passed on."""
        self._thread.join(_DRAIN_S)

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._read_end, select.POLLIN)
        lines, is_over = WarningFilter(), False
        while not is_over:
            has_come = bool(poll.poll(_REST_MS if lines.held else None))
            piece = os.read(self._read_end, _PIECE_BYTES) if has_come else b""
            is_over = has_come and not piece
            rest = memoryview(lines.passed(piece) if piece else lines.flushed())
            while rest:
                rest = rest[self._target.write(rest) :]
        os.close(self._read_end)


class WarningFilter:
    """Takes a stream apart into lines, and leaves out the warnings that were shown.

    Attributes:
        held: the beginning of a line that may become one.
    """

    def __init__(self) -> None:
        self.held = b""
        self._is_inside = False  # of a line whose beginning was passed on

    def passed(self, piece: bytes) -> bytes:
        """What is to be shown when this has come."""
        *whole, rest = (self.held + piece).split(b"\n")
        shown = []
        for line in whole:
            if self._is_inside or _is_new(line):
                shown.append(line + b"\n")
            self._is_inside = False
        may_be = any(rest.startswith(begin) or begin.startswith(rest) for begin in _BEGINNINGS)
        self.held = rest if rest and may_be and not self._is_inside else b""
        if rest and not self.held:
            shown.append(rest)
            self._is_inside = True
        return b"".join(shown)

    def flushed(self) -> bytes:
        """What was held, as nothing more of it has come."""
        rest, self.held = self.held, b""
        self._is_inside = self._is_inside or bool(rest)
        return rest


def _is_new(line: bytes) -> bool:
    """Whether a line is to be shown: it is no such warning, or nobody has shown it."""
    found = _WARNING.fullmatch(line.rstrip(b"\r"))
    if found is None:
        return True
    with _showing:
        if found["told"] in _shown:
            return False
        _shown.add(found["told"])
        return True
