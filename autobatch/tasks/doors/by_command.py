"""A command line, in a `Command`: a script that is run as it is typed, in whatever framework."""

from __future__ import annotations

from ..command import Command
from .door import ARGUMENTS, Door, GivenTask


def _takes(given: object) -> bool:
    return isinstance(given, Command)


def _opened(given: Command) -> GivenTask:
    return GivenTask(name=given.title, command=given, only_measured=given.lacks)


DOOR = Door(
    what="a Command", takes=_takes, opened=_opened, said_by=dict.fromkeys(ARGUMENTS, "the script that the command runs")
)
