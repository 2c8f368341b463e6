"""A run's folder: its files, its lock and its state. docs/runs.md describes it for users.

    run.json       settings, conditions and what the stages before the race found; replaced whole at each stage
    journal.log    the race, a line at a time (searching/storage/journal.py)
    checkpoints/   of trials that may be resumed (checkpoints.py)
    worker.log     what the workers print
    report.json    the answer
    lock           held while a process is at work

A folder is data and may come from anywhere: nothing in it is run, no path, database or cluster is taken from it, and
none of its files may be a link.
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
from .settings import TuneSettings
from .stage_results import StageResults

# Increased by one whenever a version cannot resume runs of the version before.
SCHEMA = 1

HOME = Path(".autobatch")

_STATE, JOURNAL, _LOCK = "run.json", "journal.log", "lock"
_FILES = (_STATE, JOURNAL, "worker.log", "report.json", _LOCK)  # the lock last
_CHECKPOINTS = "checkpoints"
SHARED = ".shared-folder"  # exists while a cluster is at work: workers elsewhere recognise the folder by it
# `autobatch runs` takes a lock for a moment to see whether it is free. Assumed: it is done within this time.
_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run beside its race.

    Attributes:
        created: when it began, ISO 8601 in UTC.
        settings: the user's settings.
        path: the task file, for people; None for a task made in code.
        conditions: those under which its trials are comparable. Those from a worker are added with its first answer.
        results: those of the stages before the race.
        charged: the ledger at the time of writing. The race's own record has a later one.
        resumed: how many times it was resumed.
        remarks: sentences about that for the report.
        is_finished: whether the report is written.
    """

    created: str
    settings: TuneSettings
    path: str | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    results: StageResults = field(default_factory=StageResults)
    charged: Mapping[str, float] = field(default_factory=dict)
    resumed: int = 0
    remarks: tuple[str, ...] = ()
    is_finished: bool = False

    def to_json(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "settings": self.settings.to_json(),
            "path": self.path,
            "conditions": dict(self.conditions),
            "found": self.results.to_json(),
            "charged": dict(self.charged),
            "resumed": self.resumed,
            "remarks": list(self.remarks),
            "is_finished": self.is_finished,
        }

    @classmethod
    def from_json(cls, data: object, where: str) -> RunState:
        """The state from `to_json`.

        Raises:
            ReportError: it is no state, or has a schema that this version does not read.
        """
        reader = Reader(data, where)
        if reader.get("schema", int) != SCHEMA:
            raise ReportError(f"{where} is a run of schema {SCHEMA}; found {reader.get('schema', int)}")
        charged, conditions = reader.inside("charged"), reader.get("conditions", dict)
        if any(value is not None and not isinstance(value, str | int | float) for value in conditions.values()):
            raise ReportError(f"the conditions of {where} are plain values")
        return cls(
            created=reader.get("created", str),
            settings=TuneSettings.from_json(reader.inside("settings")),
            path=reader.get("path", str, or_null=True),
            conditions=conditions,
            results=StageResults.from_json(reader.inside("found")),
            charged={kind: charged.number(kind) for kind in reader.get("charged", dict)},
            resumed=reader.get("resumed", int),
            remarks=reader.list_of("remarks", str),
            is_finished=reader.get("is_finished", bool),
        )


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run, which this process holds until `close`."""

    path: Path
    _lock: int

    @classmethod
    def made(cls, requested: Path | None, task: str) -> Self:
        """A new one: `requested`, which may hold other files, or `.autobatch/<task>/<time>`.

        Raises:
            RunError: it has a run already, or something else with the name of one of a run's files.
            ReportError: it cannot be made or written.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = requested or task_folder(task) / stamp
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=requested is not None)
        except FileExistsError:
            if requested is not None:
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
            # The folder around the first of them is not ours, and may not be readable for us.
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
        """The folder at `path`, to resume or remove its run.

        Raises:
            RunError: there is no run in it, another process holds it, or one of its files is a link.
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
        """The output of the workers."""
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
        """Write the state, completely or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            write_json(self.path / _STATE, state.to_json())
        except ReportError as error:
            raise StorageError(str(error)) from None

    def tidy(self) -> None:
        """Delete what a process left that was killed while it wrote: half a file, or Optuna's lock.

        Raises:
            StorageError: something cannot be deleted.
        """
        locks = self.path.glob(f"{JOURNAL}.lock*")  # the lock itself, and the name under which it is released
        try:
            for path in (*half_written(self.path / _STATE), *half_written(self.report), *locks):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{error.filename} cannot be deleted: {error.strerror}") from None

    def remove(self) -> None:
        """Delete what the run has made, and nothing else: a folder that the user named may hold other files. Closes the
        folder.

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
            with suppress(OSError):  # it does not exist, or has other files
                folder.rmdir()
        if self.path.parent.parent.name == HOME.name:
            with suppress(OSError):
                self.path.parent.rmdir()

    def close(self) -> None:
        """Release the folder."""
        with suppress(OSError):  # closing twice is fine
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def task_folder(task: str) -> Path:
    """The folder of the runs of a task with this name."""
    return HOME / (re.sub(r"[^\w.-]", "_", task).lstrip(".") or "task")


def is_run(path: Path) -> bool:
    """Whether there is a run in the folder. A link to a run is none."""
    return path.is_dir() and not path.is_symlink() and (path / _STATE).is_file()


def _has_run(path: Path) -> bool:
    return any((path / name).exists() for name in (_STATE, JOURNAL))


def _check_names(path: Path) -> None:
    """Refuse a folder in which a new run would overwrite files of others, which `clean` would then delete.

    Raises:
        RunError: something there has the name of one of a run's files. It may be a broken link.
    """
    # Other files in the folder of a run belong to that run, and are refused as such once no process holds it.
    for name in (_LOCK,) if _has_run(path) else (*_FILES, _CHECKPOINTS):
        there = path / name
        if os.path.lexists(there) and not (name == _LOCK and _is_lock(there)):
            raise RunError(
                f"a run would write over {there}, which is there already, and `autobatch clean` would delete it: name "
                "another folder"
            )


def _is_lock(path: Path) -> bool:
    """Whether a run has made this file, possibly one that was killed while it did."""
    if path.is_symlink() or not path.is_file():
        return False
    return not path.stat().st_size or _last_holder(path.parent) is not None


def read_state(path: Path) -> RunState:
    """The state of the run in a folder, whoever holds it.

    Raises:
        ReportError: it cannot be read.
    """
    return RunState.from_json(load_json(path / _STATE), str(path / _STATE))


def holder(path: Path) -> str | None:
    """The process that holds a run's folder, "process 123 on host"; None if there is none."""
    try:  # do not wait for a pipe of that name
        descriptor = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # no process has ever held it
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _lock_text(path)
    finally:
        os.close(descriptor)
    return None


def _hold(path: Path) -> int:
    """The descriptor of the folder's lock, which the kernel releases with this process in any case."""
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
        # The last holder may just have removed the run, and the file with it.
        if lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)
    who = _lock_text(path)
    raise RunError(f"the run in {path} is under way in {who}: two cannot share a folder. Wait for it, or stop it")


def _lock_text(path: Path) -> str:
    return _last_holder(path) or "another process"


def _last_holder(path: Path) -> str | None:
    """The text of a folder's lock; None if it is no run's lock."""
    with suppress(OSError, UnicodeDecodeError):
        if not (path / _LOCK).is_file():
            return None
        if re.fullmatch(r"process \d+ on [\w.-]+", text := (path / _LOCK).read_text(encoding="ascii").strip()):
            return text
    return None
