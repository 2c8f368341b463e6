"""The streams of a command, whose readers may go away: `| head`, a terminal that is closed, a full disk.

What cannot be written is dropped where it is written, so that no run ends for want of a reader: what it found is in its
folder. In the end a result that nobody took is told as other programs tell it.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import NoReturn

from ..engines.processes.streams import LastingFile, lasting


def keep_streams() -> None:
    """Have this process's own stdout and stderr take what is written to them, whatever becomes of their readers."""
    # One that was closed when this program began: its number must not become a file's, which others would write to.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is sys.__stdout__:  # else somebody has put one of their own there
        sys.stdout = lasting(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = lasting(sys.stderr)


def lost_result() -> OSError | None:
    """Why not all of what went to stdout arrived; None where it did."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        return None
    sys.stdout.flush()
    raw = getattr(buffer, "raw", buffer)
    return raw.trouble if isinstance(raw, LastingFile) else None


def is_closed_pipe(error: OSError) -> bool:
    """Whether a reader went away that had what it wanted, such as `head`."""
    return error.errno == errno.EPIPE


def end_as_pipes_do() -> NoReturn:
    """End by SIGPIPE, without a word, as programs do whose reader has gone."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(128 + signal.SIGPIPE)
