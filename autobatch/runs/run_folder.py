"""A run's folder: what lies in it, who holds it, and where it stands. docs/runs.md says it to users.

    run.json       settings, conditions and what the stages before the race found; replaced whole at each stage
    journal.log    the race, a line at a time (searching/storage/journal.py)
    checkpoints/   of trials that may be resumed (checkpoints.py)
    worker.log     what the workers print
    report.json    the answer
    lock           held while a process is at work

A folder is data and may come from anywhere: nothing in it is run, no path, database or cluster is taken from it, and
none of its own names may be a link.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ..core.files import check_writable, half_written, load_json, sync_folder, write_json
from ..core.json_reader import Reader
from ..errors import ReportError, RunError, StorageError
from .conditions import Condition
from .found import Found
from .settings import TuneSettings

# Raised by one whenever a run cannot be resumed by a version that reads the other.
SCHEMA = 1

HOME = Path(".autobatch")

_STATE, JOURNAL, _LOCK = "run.json", "journal.log", "lock"
_FILES = (_STATE, JOURNAL, "worker.log", "report.json", _LOCK)  # the lock last
_CHECKPOINTS = "checkpoints"
SHARED = ".shared-folder"  # there while a cluster is at work: workers elsewhere see by it that they see this folder
# `autobatch runs` takes a lock for a moment to see whether it is free. Assumed: it is done within this.
_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands beside its race.

    Attributes:
        created: when it began, ISO 8601 in UTC.
        settings: what the user asked for.
        path: of the task file, for people; None for a task made in code.
        conditions: under which its trials are comparable; those that a worker tells come with its first answer.
        found: by the stages before the race.
        charged: the ledger when this was written; the race's own record has a later one.
        resumed: how many times.
        remarks: what the report has to say of that.
        is_finished: the report is written.
    """

    created: str
    settings: TuneSettings
    path: str | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    found: Found = field(default_factory=Found)
    charged: Mapping[str, float] = field(default_factory=dict)
    resumed: int = 0
    remarks: tuple[str, ...] = ()
    is_finished: bool = False

    def to_json(self) -> dict[str, Any]:
        """It as plain JSON values."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "settings": self.settings.to_json(),
            "path": self.path,
            "conditions": dict(self.conditions),
            "found": self.found.to_json(),
            "charged": dict(self.charged),
            "resumed": self.resumed,
            "remarks": list(self.remarks),
            "is_finished": self.is_finished,
        }

    @classmethod
    def from_json(cls, data: object, where: str) -> RunState:
        """The state that `to_json` made `data` of.

        Raises:
            ReportError: it is none, or of a schema that this version does not read.
        """
        found = Reader(data, where)
        if found.get("schema", int) != SCHEMA:
            raise ReportError(f"{where} is a run of schema {SCHEMA}; found {found.get('schema', int)}")
        charged, conditions = found.inside("charged"), found.get("conditions", dict)
        if any(value is not None and not isinstance(value, str | int | float) for value in conditions.values()):
            raise ReportError(f"the conditions of {where} are plain values")
        return cls(
            created=found.get("created", str),
            settings=TuneSettings.from_json(found.inside("settings")),
            path=found.get("path", str, or_null=True),
            conditions=conditions,
            found=Found.from_json(found.inside("found")),
            charged={kind: charged.number(kind) for kind in found.get("charged", dict)},
            resumed=found.get("resumed", int),
            remarks=found.list_of("remarks", str),
            is_finished=found.get("is_finished", bool),
        )


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run, which this process holds until `close`."""

    path: Path
    _lock: int

    @classmethod
    def made(cls, asked: Path | None, task: str) -> Self:
        """A new one: `asked`, which may hold other files, or `.autobatch/<task>/<time>`.

        Raises:
            RunError: there is a run in it already, or something else that has the name of one of a run's files.
            ReportError: it cannot be made or written.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = asked or task_folder(task) / stamp
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=asked is not None)
        except FileExistsError:
            if asked is not None:
                raise ReportError(f"the run's folder {path} cannot be made: there is a file of that name") from None
            # Two runs in one second.
            path = path.with_name(f"{stamp}-{time.time_ns() % 10**9}")
            new = [path]
            path.mkdir(parents=True)
        except OSError as error:
            raise ReportError(f"the run's folder {path} cannot be made: {error.strerror}") from None
        _check_names(path)
        check_writable(path / "report.json")
        for made in new:
            # The folder that the first of them lies in is not ours, and may be one that we cannot read.
            with nullcontext() if made.parent in new else suppress(OSError):
                sync_folder(made.resolve().parent)
        folder = cls(path.resolve(), _hold(path.resolve()))
        if _has_run(path):
            folder.close()
            raise RunError(f"{path} holds a run already: go on with it (--resume {path}), or name another folder")
        folder.tidy()
        return folder

    @classmethod
    def opened(cls, path: Path) -> Self:
        """The one at `path`, to be resumed or removed.

        Raises:
            RunError: there is no run in it, another process holds it, or one of its names is a link.
        """
        if not is_run(path):
            raise RunError(f"{path} is not the folder of a run: there is no {_STATE} in it")
        names = [path / name for name in (*_FILES, _CHECKPOINTS, f"{_CHECKPOINTS}/{SHARED}")]
        for name in (*names, *(path / _CHECKPOINTS).glob("trial-*.pt*")):
            if name.is_symlink():
                raise RunError(f"{name} is a link: the folder of a run holds its own files, and is used only so")
            if name.exists() and not name.is_file() and name.name != _CHECKPOINTS:
                raise RunError(f"{name} is no file, as it is in the folder of a run: take it away")
        return cls(path.resolve(), _hold(path.resolve()))

    @property
    def journal(self) -> Path:
        """The record of the race."""
        return self.path / JOURNAL

    @property
    def log(self) -> Path:
        """What the workers print."""
        return self.path / "worker.log"

    @property
    def report(self) -> Path:
        """The answer."""
        return self.path / "report.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / _CHECKPOINTS

    def save(self, state: RunState) -> None:
        """Write the state, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            write_json(self.path / _STATE, state.to_json())
        except ReportError as error:
            raise StorageError(str(error)) from None

    def tidy(self) -> None:
        """Delete what a process left here that was killed while it wrote: half a file, or Optuna's lock.

        Raises:
            StorageError: something cannot be deleted.
        """
        locks = self.path.glob(f"{JOURNAL}.lock*")  # itself, and under the name that it is given to be let go
        try:
            for path in (*half_written(self.path / _STATE), *half_written(self.report), *locks):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{error.filename} cannot be deleted: {error.strerror}") from None

    def remove(self) -> None:
        """Delete what the run has made, nothing else: a folder that the user named may hold other files. It is closed.

        Raises:
            StorageError: something cannot be deleted.
        """
        try:
            self.tidy()
            if not (self.path / _CHECKPOINTS).is_symlink():
                for path in (*self.checkpoints.glob("trial-*.pt*"), self.checkpoints / SHARED):
                    path.unlink(missing_ok=True)
            # The state first: without it this is no run that could be resumed. The lock last.
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{error.filename} cannot be deleted: {error.strerror}") from None
        finally:
            self.close()
        for folder in (self.checkpoints, self.path):
            with suppress(OSError):  # not there, or not empty: then it is not only ours
                folder.rmdir()
        if self.path.parent.parent.name == HOME.name:
            with suppress(OSError):
                self.path.parent.rmdir()

    def close(self) -> None:
        """Let others have it."""
        with suppress(OSError):  # twice is fine
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def task_folder(task: str) -> Path:
    """Where the runs of a task of that name lie."""
    return HOME / (re.sub(r"[^\w.-]", "_", task).lstrip(".") or "task")


def is_run(path: Path) -> bool:
    """Whether there is a run in the folder; a link to one is none."""
    return path.is_dir() and not path.is_symlink() and (path / _STATE).is_file()


def _has_run(path: Path) -> bool:
    return any((path / name).exists() for name in (_STATE, JOURNAL))


def _check_names(path: Path) -> None:
    """Refuse a folder in which a new run would write over what is no run's, and `clean` would delete it.

    Raises:
        RunError: something there has the name of one of a run's files, be it a link to nowhere.
    """
    # What else is in the folder of a run is that run's, and refused as such once nobody is at work in it.
    for name in (_LOCK,) if _has_run(path) else (*_FILES, _CHECKPOINTS):
        there = path / name
        if os.path.lexists(there) and not (name == _LOCK and _is_lock(there)):
            raise RunError(
                f"a run would write over {there}, which is there already, and `autobatch clean` would delete it: name "
                "another folder"
            )


def _is_lock(path: Path) -> bool:
    """Whether a run has made this file, be it one that was killed in the middle of that."""
    if path.is_symlink() or not path.is_file():
        return False
    return not path.stat().st_size or _last_holder(path.parent) is not None


def read_state(path: Path) -> RunState:
    """Where the run in a folder stands, whoever holds it.

    Raises:
        ReportError: it cannot be read.
    """
    return RunState.from_json(load_json(path / _STATE), str(path / _STATE))


def holder(path: Path) -> str | None:
    """Who is at work in a run's folder, "process 123 on host"; None where nobody is."""
    try:  # a pipe of that name is not waited for
        descriptor = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # nobody has ever held it
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _told(path)
    finally:
        os.close(descriptor)
    return None


def _hold(path: Path) -> int:
    """The descriptor of the folder's lock, which the kernel lets go with this process, however it ends."""
    lock = path / _LOCK
    for _ in range(_LOCK_TRIES):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            time.sleep(_LOCK_PAUSE_S)
            continue
        except OSError as error:
            raise RunError(f"{lock} cannot be locked: {error.strerror}") from None
        # Whoever held it may have removed the run just now, and the file with it.
        if lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)
    who = _told(path)
    raise RunError(f"the run in {path} is under way in {who}: two cannot share a folder. Wait for it, or stop it")


def _told(path: Path) -> str:
    return _last_holder(path) or "another process"


def _last_holder(path: Path) -> str | None:
    """What the lock of a folder says; None where it is no run's lock."""
    with suppress(OSError, UnicodeDecodeError):
        if not (path / _LOCK).is_file():
            return None
        if re.fullmatch(r"process \d+ on [\w.-]+", text := (path / _LOCK).read_text(encoding="ascii").strip()):
            return text
    return None
