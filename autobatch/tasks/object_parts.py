"""The parts of a Python object: attributes, in a dictionary or in slots; cells; where its class is defined."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils._contextlib import _DecoratorContextManager

# Attributes that every module has and no training changes: hooks are functions, and the rest is visited separately.
OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"_parameters", "_buffers", "_modules", "training"}

# Python's own containers, whose methods are called in place of those of derived classes: a frozen configuration refuses
# `update`. An OrderedDict has an order beside its dict.
_CONTAINERS = (OrderedDict, defaultdict, dict, list, set, deque)


def container_of(kind: type) -> Any:
    """Python's own container that a class is or derives from."""
    return next(own for own in _CONTAINERS if issubclass(kind, own))


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """The names and values of an object's attributes."""
    yield from list(getattr(value, "__dict__", {}).items())
    for name in slots_of(type(value)):
        if hasattr(value, name):
            yield name, getattr(value, name)


def slots_of(kind: type) -> list[str]:
    names_of_slots: list[str] = []
    for one in kind.__mro__:
        slots = one.__dict__.get("__slots__", ())
        names = [slots] if isinstance(slots, str) else list(slots)
        # A private name is stored with that of its class, as Python does it.
        own = f"_{one.__name__.lstrip('_')}"
        names_of_slots += [own + name if name.startswith("__") and not name.endswith("__") else name for name in names]
    return [name for name in names_of_slots if name not in ("__dict__", "__weakref__")]


def set_attribute(value: Any, name: str, held: Any) -> None:
    """Set an attribute, without calling the code of the object's class."""
    own = getattr(value, "__dict__", None)
    if own is None or name in slots_of(type(value)):
        object.__setattr__(value, name, held)
    else:
        own[name] = held


def delete_attribute(value: Any, name: str) -> None:
    """Delete an attribute, without calling the code of the object's class."""
    own = getattr(value, "__dict__", {})
    if name in own:
        del own[name]
    else:
        object.__delattr__(value, name)


def cell_content(cell: Any) -> Any:
    """The content of a closure's cell; None if it is still empty."""
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned later
        return None


def home_of(value: Any) -> list[str]:
    return [getattr(value, "__module__", None) or "", getattr(value, "__qualname__", None) or ""]


def found_at(module: str, name: str) -> Any:
    """The object of that name in a module that is imported already; None if there is none."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def is_made_by_object(kind: type) -> bool:
    """Whether `object.__new__` makes an instance. It does for `torch.no_grad`, whose own `__new__` only wraps a
    function.
    """
    new: Any = kind.__new__
    return new is object.__new__ or issubclass(kind, _DecoratorContextManager)
