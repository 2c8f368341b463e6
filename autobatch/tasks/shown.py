"""A user's value in a message, and the check of its type, without running any code of the value.

A task file may hold anything: arrays whose `==` is an array, tables that are computed when they are printed, proxies
that open a file when they are looked at.
"""

from __future__ import annotations

from itertools import islice
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

_LONGEST = 60  # characters of a value in a message. Assumed: enough to recognise it.
_ENTRIES = 6  # entries of a container. Assumed: a baseline has three, and six fill the 60 characters.
_DEEPEST = 2  # levels of nested containers. Assumed.
# Larger whole numbers are described by their number of bits: Python refuses to write those of more than 4,300 digits.
_BITS = 128


def is_a(value: object, kinds: type | tuple[type, ...]) -> bool:
    """Like `isinstance`, which would ask a proxy for the `__class__` of its target."""
    return issubclass(type(value), kinds)


def shown(value: object) -> str:
    """`value` in a few words: texts, numbers and containers of them like Python, others by type."""
    text = _written(value, _DEEPEST)
    if text is None:
        return _named(value)
    return f"{text if len(text) <= _LONGEST else f'{text[: _LONGEST - 3]}...'} ({type(value).__name__})"


def _named(value: object) -> str:
    """A description of a value that is not written out."""
    if is_a(value, type):
        return f"the class {type.__dict__['__name__'].__get__(value)}"
    if type(value) in (FunctionType, BuiltinFunctionType):
        return f"the function {value.__name__}"  # type: ignore[attr-defined]
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _written(value: Any, depth: int) -> str | None:
    """The value as Python writes it, shortened; None if that would run its own code."""
    kind = type(value)
    if value is None or kind in (bool, float, complex):
        return repr(value)
    if kind is int:
        return repr(value) if value.bit_length() <= _BITS else f"a whole number of {value.bit_length()} bits"
    if kind in (str, bytes):
        return repr(value[: _LONGEST + 1])
    if kind in (list, tuple, set, frozenset, dict):
        return _container(value, depth)
    # Paths, torch's types and NumPy's numbers are short, and written by known code.
    known = (kind.__module__, kind.__name__)
    if is_a(value, PurePath) and known[0].startswith("pathlib"):
        return repr(value)
    if known in {("torch", "dtype"), ("numpy", "bool"), ("numpy", "bool_")}:
        return repr(value)
    return repr(value) if known[0] == "numpy" and hasattr(kind, "is_integer") else None


def _container(value: Any, depth: int) -> str:
    def entry(item: object) -> str:
        return _written(item, depth - 1) or _named(item)

    if not value or not depth:
        return "..." if value else repr(value)
    if type(value) is dict:
        parts = [f"{entry(key)}: {entry(item)}" for key, item in islice(value.items(), _ENTRIES)]
    else:
        parts = [entry(item) for item in islice(value, _ENTRIES)]
    if len(value) > _ENTRIES:
        parts.append("...")
    elif type(value) is tuple and len(value) == 1:
        parts[0] += ","
    inside = ", ".join(parts)
    return f"[{inside}]" if type(value) is list else f"({inside})" if type(value) is tuple else f"{{{inside}}}"
