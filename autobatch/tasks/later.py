"""A task that is made of another library's objects, in the process that trains it: there their data is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..devices.oom import is_out_of_memory
from ..errors import AutobatchError
from .task import Task, blame


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLater:
    """What a `Task` is made of, on its way to another process.

    Attributes:
        name: for titles and folders.
        make: makes the task; it travels as it is.
        parts: what it is made of, by what a person calls each, to say which cannot travel. They do not travel by this.
    """

    name: str
    make: Callable[[], Task]
    parts: Mapping[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.name, self.make)


def _arrived(name: str, make: Callable[[], Task]) -> TaskLater:
    return TaskLater(name=name, make=make)


def made_of(name: str, make: Callable[[], Task], path: Path | None) -> Task:
    """The task that `make` makes, its errors told in the user's own frames.

    Raises:
        TaskError: the user's objects fail, or cannot be trained as they stand.
    """
    try:
        return make()
    except AutobatchError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise blame(f"making a task of {name}", error, path) from error
