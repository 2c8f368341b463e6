"""The streams of a command, whose readers may go away: `| head`, a closed terminal, a full disk.

What cannot be written is dropped, so that no run ends because nobody reads: its results are in its folder. At the end,
a command whose result did not arrive reports that as other programs do.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import NoReturn

from ..engines.processes.streams import LastingFile, lasting


def keep_streams() -> None:
    """Make stdout and stderr of this process accept every write, even after their readers have gone."""
    # If a stream was closed when the program began, no file may get its number, because others would write to it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is sys.__stdout__:  # otherwise somebody has replaced the stream
        sys.stdout = lasting(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = lasting(sys.stderr)


def lost_result() -> OSError | None:
    """The error that kept output from reaching stdout; None if all of it arrived."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        return None
    sys.stdout.flush()
    raw = getattr(buffer, "raw", buffer)
    return raw.trouble if isinstance(raw, LastingFile) else None


def is_closed_pipe(error: OSError) -> bool:
    """Whether the reader closed the pipe, as `head` does."""
    return error.errno == errno.EPIPE


def end_as_pipes_do() -> NoReturn:
    """End by SIGPIPE without a message, as programs do when their reader has gone."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(128 + signal.SIGPIPE)
