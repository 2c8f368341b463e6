"""Warnings that several workers give: each is shown once per command, by the first worker.

All workers import the same libraries, which warn all of them about the same things: by `warnings`, or by a `logging`
handler that writes to stderr (for C++ code, see `relay.py`). Warnings that were shown are recorded in an unnamed file
that all workers have open. Log records of the user's own code are always shown, and so is every error and every
traceback.
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

VARIABLE = "AUTOBATCH_WARNED"  # the descriptor of that file in a started process
_NOTE_BYTES = 32  # of SHA-256


@functools.cache
def shared_file() -> int:
    """The descriptor of this process's file, for all workers that it starts."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def warn_once() -> None:
    """In a worker: show no warning that another worker has shown."""
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
            text = _text(record)
            if text is not None and not _is_new(descriptor, text):
                return
        write(handler, record)

    logging.StreamHandler.emit = once  # type: ignore[assignment,method-assign]  # typed by its subclasses' stream


def _text(record: logging.LogRecord) -> str | None:
    """The message and its place, without the time; None if formatting fails, which the handler itself reports."""
    try:
        return f"{record.name}:{record.pathname}:{record.lineno}:{record.getMessage()}"
    except Exception:  # noqa: BLE001  # the arguments may be objects of any kind
        return None


def _is_of_library(record: logging.LogRecord) -> bool:
    """Whether it is a warning, and not from the user's own code."""
    if not logging.WARNING <= record.levelno < logging.ERROR or record.exc_info or record.stack_info:
        return False
    from ...tasks.task_file import is_users  # late: only needed in a worker that logs

    return not is_users(record.pathname, None)


def _is_to_stderr(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a stream in memory, a closed one, a notebook's
        return False


def _is_new(descriptor: int, text: str) -> bool:
    """Whether no worker has recorded this text. It is then recorded."""
    note = hashlib.sha256(text.encode(errors="backslashreplace")).digest()
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
