"""A task file, by its path."""

from __future__ import annotations

from pathlib import Path

from ..task_file import existing_file
from .door import SAID_BY_TASK, Door, GivenTask


def _takes(given: object) -> bool:
    return isinstance(given, (str, Path))


def _opened(given: str | Path) -> GivenTask:
    path = Path(given)
    return GivenTask(name=path.stem, path=existing_file(path))  # checked now, before a worker is started for it


DOOR = Door(what="the path of a task file", takes=_takes, opened=_opened, said_by=SAID_BY_TASK)
