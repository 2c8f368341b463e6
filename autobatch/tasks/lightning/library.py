"""Which Lightning a thing is of: `lightning.pytorch` and `pytorch_lightning` hold the same code in two sets of classes.

Neither is imported here: where there is a module of one, somebody has imported it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from typing import Any

from ...errors import TaskError

ROOTS = ("lightning.pytorch", "pytorch_lightning")


def imported_roots() -> list[str]:
    """Those of the two that this process has imported."""
    return [root for root in ROOTS if root in sys.modules]


def root_of(thing: object, name: str) -> str | None:
    """The library whose class `name` a thing, or a class, is of; None of anything else."""
    kind: Any = (
        thing if issubclass(type(thing), type) else type(thing)
    )  # by its type: what a proxy says is not asked for
    for root in imported_roots():
        base = getattr(sys.modules[root], name, None)
        if isinstance(base, type) and issubclass(kind, base):
            return root
    return None


def require_one_library(parts: dict[str, tuple[object, str]]) -> str:
    """The library that all parts are of.

    Args:
        parts: by what a person calls them: a thing, and the class of Lightning's that it is of.

    Raises:
        TaskError: one is of none, or they are of two.
    """
    roots: dict[str, str] = {}
    for told, (thing, name) in parts.items():
        root = root_of(thing, name)
        if root is None:
            raise TaskError(f"{told} must be a {name}; found {_told(thing)}")
        roots[told] = root
    if len(set(roots.values())) > 1:
        found = ", ".join(f"{told} is of {root}" for told, root in roots.items())
        raise TaskError(
            f"{found}: these are two libraries, whose classes do not work together, though their code is the same. "
            "Import all from one of them: `import lightning as L` or `import pytorch_lightning as L`"
        )
    return next(iter(roots.values()))


def _told(thing: object) -> str:
    return f"the class {thing.__name__}: make one" if isinstance(thing, type) else type(thing).__name__


def part_of_library(root: str, path: str) -> Any:
    """A function or class of the library by its path in it, such as "utilities.data.extract_batch_size"."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"{root}.{module}" if module else root), name)


def overrides(thing: object, root: str, name: str, *, base: str = "LightningModule") -> bool:
    """Whether a module (or another thing of the library's) has a method of its own of that name."""
    kind: Any = type(thing)
    return name in vars(thing) or _class_overrides(kind, root, name, base)


@functools.cache
def _class_overrides(kind: type, root: str, name: str, base: str) -> bool:
    own = inspect.getattr_static(kind, name, None)
    return own is not None and own is not inspect.getattr_static(getattr(sys.modules[root], base), name, None)
