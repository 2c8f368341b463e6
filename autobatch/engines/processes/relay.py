"""The stderr of workers, passed on to this process's. A C++ warning that several of them print is shown once.

torch's C++ code writes such warnings to the descriptor itself, in each process, where Python cannot see them. Only
whole lines in torch's format for warnings are left out. Tracebacks, progress bars and everything else that a task
prints are passed on at once and byte for byte, also if they repeat.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading

from .streams import LastingFile

# Cited: how torch's C++ writes a warning (c10/util/Logging.cpp, torch 2.6 to 2.13), with `[rank0]:` before it in a
# group: [W1129 12:00:00.123456789 NNPACK.cpp:57] Could not initialize NNPACK! Errors begin with E.
_WARNING = re.compile(rb"(?:\[rank\d+\]:)?\[W\d{4} \d\d:\d\d:\d\d\.\d+ (?P<text>\S+:\d+\] .*)")
_BEGINNINGS = (b"[W", b"[rank")

_PIECE_BYTES = 1 << 16
# Assumed: how long the beginning of a line that may become such a warning waits for the rest.
_REST_MS = 200
_DRAIN_S = 2.0  # assumed: the time to pass on the last lines after all writers have ended

_shown: set[bytes] = set()  # the warnings that any worker has printed in this command
_showing = threading.Lock()


class Relay:
    """A pipe for the stderr of processes, and the thread that reads it.

    Attributes:
        write_end: the descriptor that the processes inherit. `started` closes it here.
    """

    def __init__(self, target: int) -> None:
        self._read_end, self.write_end = os.pipe()
        self._target = LastingFile(target)
        self._thread = threading.Thread(target=self._pump, name="autobatch-stderr", daemon=True)
        self._thread.start()

    @classmethod
    def to_stderr(cls) -> Relay | None:
        """A relay to this process's own stderr; None if it has none."""
        return cls(sys.__stderr__.fileno()) if sys.__stderr__ is not None else None

    def started(self) -> None:
        """To be called when the process has the write end, or failed to start."""
        os.close(self.write_end)

    def drain(self) -> None:
        """Wait until the output of the ended processes has been passed on."""
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
    """Splits a stream into lines, and leaves out the warnings that were shown before.

    Attributes:
        held: the beginning of a line that may become such a warning.
    """

    def __init__(self) -> None:
        self.held = b""
        self._is_inside = False  # inside a line whose beginning was passed on

    def passed(self, piece: bytes) -> bytes:
        """The bytes to show now that `piece` has arrived."""
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
        """The held bytes, when no more follow."""
        rest, self.held = self.held, b""
        self._is_inside = self._is_inside or bool(rest)
        return rest


def _is_new(line: bytes) -> bool:
    """Whether to show a line: it is no such warning, or was not shown before."""
    warning = _WARNING.fullmatch(line.rstrip(b"\r"))
    if warning is None:
        return True
    with _showing:
        if warning["text"] in _shown:
            return False
        _shown.add(warning["text"])
        return True
