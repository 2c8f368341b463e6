"""What can go wrong that a user can act on. Every message states the rule, the value found and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class AutobatchError(Exception):
    """Anything autobatch raises on purpose; everything else is a bug of ours or of the user's code.

    Attributes:
        warnings: what the check of the task had warned of, where it was over by then.
    """

    warnings: tuple[str, ...] = ()


class TaskError(AutobatchError, ValueError):
    """The task file, or what it defines, cannot be trained as it stands."""


class TooLarge(TaskError):
    """A value leads to more objects than anybody's state of training is made of."""


class SettingError(AutobatchError, ValueError):
    """A flag, an environment variable or an argument has a value that cannot be used."""


class DeviceError(AutobatchError, RuntimeError):
    """The device asked for is not there, or does not answer."""


class DoesNotFit(AutobatchError, RuntimeError):
    """Not even a batch of one sample fits in the memory that may be used."""


class BudgetTooShort(AutobatchError, ValueError):
    """The time budget ended before anything was measured, or pays for no comparison; the message says what would do."""


class NoValidResult(AutobatchError, RuntimeError):
    """The time ran out, or every trial failed, before anything could be recommended."""


class ReportError(AutobatchError, ValueError):
    """A report, table or recording cannot be read or written."""


class ModelsNotFound(AutobatchError, FileNotFoundError):
    """The task files of the standard models are not where this installation should have them."""


class CheckpointError(AutobatchError, ValueError):
    """A trial cannot go on from the step asked for: its checkpoint is of another one, or gone."""


class RunError(AutobatchError, ValueError):
    """A run's folder cannot be used: there is no run in it, another one, one under way, or one of other conditions."""


class StartError(AutobatchError, RuntimeError):
    """A process of ours could not be started: its Python may not be run, or there is no room for one more."""


class StorageError(AutobatchError, RuntimeError):
    """A file that a run depends on could not be written: as a rule the disk is full, or a quota is."""


class WorkerDied(AutobatchError, RuntimeError):
    """A worker process ended before it answered: killed, or crashed.

    Attributes:
        was_killed: by SIGKILL, which the kernel sends when memory runs out.
    """

    was_killed: bool = False


class DeviceLost(WorkerDied):
    """A step left its device in a state in which this process can use it no longer, or no device is left at all."""


class RankLost(WorkerDied):
    """Another rank of a data-parallel run ended, left, or did not come in time."""


class WorkerTimeout(WorkerDied):
    """A worker process did not answer in the time it had, and was ended.

    Attributes:
        is_hang: it was the call's own limit, and not the time for everything that ended.
    """

    is_hang: bool = False


@contextmanager
def after_warnings(warnings: Sequence[str]) -> Iterator[None]:
    """An error inside takes along what the check of the task has warned of, as no result will."""
    try:
        yield
    except AutobatchError as error:
        error.warnings = error.warnings or tuple(warnings)
        raise


def text_of(error: BaseException) -> str:
    """What an error says, be it of a class whose `__str__` fails: the task's errors may be of any."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # whatever it is, it says nothing of what went wrong
        return "<exception str() failed>"  # as Python's own tracebacks do


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return _first_said(error) or type(error).__name__


def with_class(error: BaseException) -> str:
    """The class of an error and the first line of what it says, which may be nothing."""
    return f"{type(error).__name__}: {_first_said(error)}"


def _first_said(error: BaseException) -> str:
    return (without_table(text_of(error)).strip().splitlines() or [""])[0]


# Behind what is wrong torch's dispatcher lists each of its backends, half a hundred lines, and who registered for it
# (aten/src/ATen/core/dispatch/OperatorEntry.cpp; torch 2.6 to 2.13).
_TABLE = re.compile(r"^\w+: (?:fallthrough )?(?:registered at|kernel registered)", re.MULTILINE)


def without_table(text: str) -> str:
    """The first sentence of a message that ends in the dispatcher's table; any other as it is."""
    return f"{text.partition('. ')[0]}." if _TABLE.search(text) else text
