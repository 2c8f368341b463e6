"""Which installed libraries a process has imported, so that a fork server can import them once for all its workers.

A task file that imports scikit-learn or torchvision takes seconds to load, and on a CPU every probe is a fresh process.
Installed libraries are not the user's code: they may be imported before the file, while the file itself may not be run
ahead of time.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = tuple(
    Path(folder).resolve()
    for name, folder in sysconfig.get_paths().items()
    if name in {"stdlib", "platstdlib", "purelib", "platlib"}
)


def is_installed(file: Path) -> bool:
    """Whether a source file belongs to the standard library or to an installed package."""
    parts = file.parts
    return "site-packages" in parts or "dist-packages" in parts or any(map(file.is_relative_to, _FOLDERS))


@dataclass(frozen=True, slots=True)
class Libraries:
    """The installed libraries that a process has imported, and the environment variables it changed meanwhile.

    Attributes:
        modules: full names in the order in which their imports ended, as in `sys.modules`: a module comes after those
            that it needs.
        environment: the new value of each variable; None for one that was removed. Libraries read them on import.
    """

    modules: tuple[str, ...]
    environment: tuple[tuple[str, str | None], ...]

    def load(self) -> None:
        """Import those that can be imported here."""
        for name, value in self.environment:
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for module in self.modules:
            # For example two modules that import each other, in the wrong order. The error is not reported: loading
            # only saves time, and a worker that needs the module imports it again and reports its own error.
            with suppress(Exception, SystemExit):
                importlib.import_module(module)


NO_LIBRARIES = Libraries((), ())


def libraries_of(things: Iterable[object]) -> Libraries:
    """The installed modules that the classes of these things are defined in, and the classes that they derive from."""
    kinds = (kind for thing in things for kind in reversed(type(thing).__mro__))
    names = dict.fromkeys(kind.__module__ for kind in kinds)
    return Libraries(tuple(name for name in names if name in sys.modules and _is_library(name)), ())


def hush_libraries() -> None:
    """Silence Lightning's warnings about a training that is not its own.

    They say that `self.log()` has no effect, and that ranks should share their metrics, of which only one evaluates.
    """
    warnings.filterwarnings("ignore", r"You are trying to `self\.log\(\)` but the `self\.trainer` reference")
    warnings.filterwarnings("ignore", r"It is recommended to use `self\.log\(.*, sync_dist=True\)`")


class Watch:
    """Remembers what is imported, set and running now."""

    def __init__(self) -> None:
        # Only the last name, since later imports follow it. A set of all names would touch each of them, and so copy a
        # thousand of the pages that a forked process shares (measured: a third of the time of opening a task).
        self._last = next(reversed(sys.modules))
        self._environment = dict(os.environ)
        self._threads = set(threading.enumerate())

    def libraries(self) -> Libraries:
        """What was imported since; nothing if a Python thread has started, since threads do not survive a fork."""
        if set(threading.enumerate()) - self._threads:
            return Libraries((), ())
        changed = (
            name for name in {**self._environment, **os.environ} if self._environment.get(name) != os.environ.get(name)
        )
        imported = list(itertools.takewhile(lambda name: name != self._last, reversed(sys.modules)))
        return Libraries(
            modules=tuple(name for name in reversed(imported) if _is_library(name)),
            environment=tuple((name, os.environ.get(name)) for name in changed),
        )


def _is_library(name: str) -> bool:
    spec = getattr(sys.modules[name], "__spec__", None)
    if spec is None or spec.name != name:  # made by hand, or an alias of a module
        return False
    return spec.has_location and spec.origin is not None and is_installed(Path(spec.origin).resolve())
