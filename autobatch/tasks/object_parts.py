"""What a Python object is made of: attributes, in a dictionary or in slots; cells; where its class is found."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils._contextlib import _DecoratorContextManager

# What every module has and no training changes: hooks are functions, and the rest is walked by itself.
OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"_parameters", "_buffers", "_modules", "training"}

# Python's own containers, whose methods are called in place of those of classes that derive from them: a configuration
# that is frozen refuses `update`. An OrderedDict has an order beside its dict.
_CONTAINERS = (OrderedDict, defaultdict, dict, list, set, deque)


def container_of(kind: type) -> Any:
    """The container of Python's own that a class is, or derives from."""
    return next(own for own in _CONTAINERS if issubclass(kind, own))


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """The names and values that an object holds."""
    yield from list(getattr(value, "__dict__", {}).items())
    for name in slots_of(type(value)):
        if hasattr(value, name):
            yield name, getattr(value, name)


def slots_of(kind: type) -> list[str]:
    found: list[str] = []
    for one in kind.__mro__:
        slots = one.__dict__.get("__slots__", ())
        names = [slots] if isinstance(slots, str) else list(slots)
        # A private name is stored with that of its class, as Python writes it.
        own = f"_{one.__name__.lstrip('_')}"
        found += [own + name if name.startswith("__") and not name.endswith("__") else name for name in names]
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def set_attribute(value: Any, name: str, held: Any) -> None:
    """Set it, whatever the object's class does with what is set."""
    own = getattr(value, "__dict__", None)
    if own is None or name in slots_of(type(value)):
        object.__setattr__(value, name, held)
    else:
        own[name] = held


def delete_attribute(value: Any, name: str) -> None:
    """Take it away."""
    own = getattr(value, "__dict__", {})
    if name in own:
        del own[name]
    else:
        object.__delattr__(value, name)


def cell_content(cell: Any) -> Any:
    """What a cell of a closure holds; None where that is still to come."""
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned later
        return None


def home_of(value: Any) -> list[str]:
    return [getattr(value, "__module__", None) or "", getattr(value, "__qualname__", None) or ""]


def found_at(module: str, name: str) -> Any:
    """What stands under that name of a module that is imported already; None where nothing does."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def is_made_by_object(kind: type) -> bool:
    """Whether `object.__new__` makes one; so it does of `torch.no_grad`, whose own only takes a function to wrap."""
    new: Any = kind.__new__
    return new is object.__new__ or issubclass(kind, _DecoratorContextManager)
