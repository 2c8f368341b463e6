"""Warnings that several workers give: each is shown once in a command, by the first of them.

Every worker imports the same libraries, and is warned by them of the same: by `warnings`, or by a `logging` handler
that writes to stderr (what C++ writes there is `relay.py`'s). What was shown is noted in a file without a name that all
of them have open. What the user's own code logs is always shown, and so is whatever is an error or has a traceback.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
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
    _show_logged_once(int(number))
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


def _show_logged_once(descriptor: int) -> None:
    write = logging.StreamHandler.emit

    def once(handler: logging.StreamHandler[TextIO], record: logging.LogRecord) -> None:
        if _is_of_library(record) and _is_to_stderr(handler.stream):
            told = _told(record)
            if told is not None and not _is_new(descriptor, told):
                return
        write(handler, record)

    logging.StreamHandler.emit = once  # type: ignore[assignment,method-assign]  # typed by its subclasses' stream


def _told(record: logging.LogRecord) -> str | None:
    """What it says and where, without the time; None where it cannot be put together, which its handler will tell."""
    try:
        return f"{record.name}:{record.pathname}:{record.lineno}:{record.getMessage()}"
    except Exception:  # noqa: BLE001  # the arguments may be objects of any kind
        return None


def _is_of_library(record: logging.LogRecord) -> bool:
    """Whether it is a warning, and none of the user's own."""
    if not logging.WARNING <= record.levelno < logging.ERROR or record.exc_info or record.stack_info:
        return False
    from ...tasks.task_file import is_users  # where a worker logs nothing, it is not needed

    return not is_users(record.pathname, None)


def _is_to_stderr(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a stream in memory, a closed one, a notebook's
        return False


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
