"""Streams that outlive their readers: what cannot be written is dropped, and the writer goes on."""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from typing import Any, TextIO

# The errors of writing to a pipe whose reader is gone, and to a terminal that is gone.
_GONE = {errno.EPIPE, errno.EIO}


class LastingFile(io.FileIO):
    """A descriptor that accepts everything that is written to it. The caller closes it.

    Attributes:
        trouble: the first error of a write; None if there was none.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.trouble: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write the data, or drop it if that fails."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError as error:
            self.trouble = self.trouble or error
            if error.errno in _GONE:  # for good, so that processes that inherit the descriptor do not fail either
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self.fileno())
                os.close(nothing)
            return size
        return size if written is None else written  # None: the pipe is full, and the descriptor does not block


def lasting(stream: TextIO | Any) -> Any:
    """A stream on the descriptor of `stream`, which writes like it and drops what it cannot write.

    A stream without a descriptor, as in a notebook, is returned as it is.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    with suppress(OSError):  # the new stream meets the same error
        stream.flush()
    raw = LastingFile(stream.fileno())
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.FileIO) else io.BufferedWriter(raw),  # unbuffered in `python -u`
        encoding=stream.encoding,
        # A character that the encoding lacks is written as an escape, so that it does not end a run either.
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
