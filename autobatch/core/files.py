"""Files that are written whole, checked to be writable before the work that fills them, and read with care."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from pathlib import Path

from ..errors import ReportError

# The errors of a full disk, a full quota and a limit on the size of files.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_PARTIAL = ".partial"


def write_json(path: Path, value: object) -> None:
    """Write plain JSON values with `write_whole`. A number that is not finite is a ValueError: JSON has none."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def load_json(path: Path) -> object:
    """The contents of a JSON file.

    Raises:
        ReportError: the file is missing, is not JSON, is cut short, or holds NaN or an infinity, which JSON cannot
        hold.
    """

    def refuse(constant: str) -> object:
        raise ReportError(f"{path}: a report holds finite numbers; found {constant}")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ReportError:
        raise
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path} is not a text file") from None
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is not whole JSON: {error.msg} at line {error.lineno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
        raise ReportError(f"{path} is not a report: {error}") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` into a file, text as UTF-8. After a crash there is the old file or the new one, never half of
    one.

    A link is followed. If `path` is no ordinary file (`/dev/stdout`, a pipe), it is written to and not replaced.

    Raises:
        ReportError: the file cannot be written.
    """
    partial: str | None = None
    content = content.encode() if isinstance(content, str) else content
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=_PARTIAL)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # mkstemp's file is private, a report is for colleagues too
        os.replace(partial, path)
        partial = None
        sync_folder(path.parent)
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def half_written(path: Path) -> list[Path]:
    """The files that killed processes left beside `path` while they wrote it."""
    name = re.compile(re.escape(path.name) + r"[a-z0-9_]{8}" + re.escape(_PARTIAL))  # the names that tempfile makes
    return [other for other in path.parent.iterdir() if name.fullmatch(other.name)]


def make_folder(path: Path) -> None:
    """Make a folder and its parents if they are missing.

    Raises:
        ReportError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ReportError(f"the folder {path} cannot be made: there is a file of that name") from None
    except OSError as error:
        raise ReportError(f"the folder {path} cannot be made: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Write the folder's entries to the disk, so that a new or replaced file survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_disk(error: BaseException) -> OSError | None:
    """The "disk full" error behind `error`, which may be `error` itself or its cause; None if there is none.

    Libraries replace it by their own errors: what `torch.save` then raises does not mention the disk.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def check_writable(path: Path) -> None:
    """Check, before hours of work, that a report can be written to `path`.

    Raises:
        ReportError: its folder is missing or not writable, or `path` is a folder or a read-only file.
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
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=_PARTIAL):
            pass
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from None
