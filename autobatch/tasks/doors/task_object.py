"""A `Task`, made in code or from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .door import SAID_BY_TASK, Door, GivenTask, is_a

if TYPE_CHECKING:
    from ..task import Task


def _takes(given: object) -> bool:
    return is_a(given, "autobatch.tasks.task", "Task")


def _opened(given: Task) -> GivenTask:
    return GivenTask(name=given.name, path=given.path, task=given)


DOOR = Door(what="a Task", takes=_takes, opened=_opened, said_by=SAID_BY_TASK)
