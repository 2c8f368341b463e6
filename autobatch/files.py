"""Files that are written whole, and known to be writable before the work that fills them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import ReportError


def write_whole(path: Path, text: str) -> None:
    """Put `text` into a file: after a crash there is the old file or the new one, never half of one.

    A link is followed; what is no ordinary file (`/dev/stdout`, a pipe) is written to and not replaced.

    Raises:
        ReportError: the file cannot be written.
    """
    partial: str | None = None
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # mkstemp's file is private, a report is for colleagues too
        os.replace(partial, path)
        partial = None
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        ReportError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ReportError(f"the folder {path} cannot be made: there is a file of that name") from None
    except OSError as error:
        raise ReportError(f"the folder {path} cannot be made: {error.strerror}") from None


def check_writable(path: Path) -> None:
    """Find out now, before hours of work, whether a report can be put at `path`.

    Raises:
        ReportError: its folder is not there or not writable, or `path` is a folder or a read-only file.
    """
    path = path.resolve()
    if path.is_dir():
        raise ReportError(f"{path} cannot be written: it is a folder; name a file")
    if not path.parent.is_dir():
        raise ReportError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.exists() and not os.access(path, os.W_OK):
        raise ReportError(f"{path} cannot be written: the file is read-only")
    if path.exists() and not path.is_file():
        return
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name):
            pass
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from None
