"""Warnings that several workers give: each is shown by the first of them, and by no other.

Every worker imports the same libraries, and is warned by them of the same. What was shown is noted in a file without a
name that all of them have open.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import tempfile
import warnings
from typing import TextIO

VARIABLE = "AUTOBATCH_WARNED"  # the number of that file in a process that is started with it
_NOTE_BYTES = 32  # of SHA-256


@functools.cache
def shared_file() -> int:
    """The descriptor of this process's file, for all workers that it starts."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def warn_once() -> None:
    """In a worker: show no warning that another one has shown."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return
    show = warnings.showwarning

    def once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None or _is_new(int(number), f"{category.__name__}:{filename}:{lineno}:{message}"):
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = once


def _is_new(descriptor: int, told: str) -> bool:
    """Whether nobody has noted this; it is noted then."""
    note = hashlib.sha256(told.encode(errors="backslashreplace")).digest()
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        size = os.fstat(descriptor).st_size
        noted = os.pread(descriptor, size, 0)
        if note in (noted[at : at + _NOTE_BYTES] for at in range(0, size, _NOTE_BYTES)):
            return False
        os.pwrite(descriptor, note, size)
        return True
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
