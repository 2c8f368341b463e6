"""Streams that outlive their readers: what cannot be written any more is dropped, and whoever writes goes on."""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from typing import Any, TextIO

# What is written to a pipe whose reader has gone, and to a terminal that has.
_GONE = {errno.EPIPE, errno.EIO}


class LastingFile(io.FileIO):
    """A descriptor that takes whatever is written to it; it is the caller's to close.

    Attributes:
        trouble: the first error that writing came to; None where there was none.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.trouble: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or drop what cannot be written."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError as error:
            self.trouble = self.trouble or error
            if error.errno in _GONE:  # for good: nor shall those fail that inherit the descriptor
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self.fileno())
                os.close(nothing)
            return size
        return size if written is None else written  # None: the reader is slow, and writing does not wait


def lasting(stream: TextIO | Any) -> Any:
    """A stream on the descriptor of `stream`, which writes as it does and drops what it cannot write.

    What has no descriptor, as of a notebook, is returned as it is.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    with suppress(OSError):  # the new one finds out by itself
        stream.flush()
    raw = LastingFile(stream.fileno())
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.FileIO) else io.BufferedWriter(raw),  # the former in `python -u`
        encoding=stream.encoding,
        # A character that the reader's encoding lacks is written out, and does not end a run either.
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
