"""Checked access to the contents of a JSON file. Each message has the place, the rule and the wrong value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ..errors import ReportError

Json = Mapping[str, Any]

# A shape is a type, several types, `[shape]` for a list of one shape, or a mapping of keys to shapes. A key may be
# `Perhaps` there, and other keys are allowed.
NUMBER = (int, float)
NUMBER_OR_NULL = (int, float, type(None))
WHOLE_OR_NULL = (int, type(None))
TEXT_OR_NULL = (str, type(None))


@dataclass(frozen=True, slots=True)
class Perhaps:
    """The shape of a key that may be missing, for example in older files."""

    shape: Any


class Reader:
    """The keys of a JSON object.

    Args:
        data: the value that should be an object.
        where: its name in messages.

    Raises:
        ReportError: it is no object. The methods raise it too, for a value of the wrong shape.
    """

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise ReportError(f"{where} is a JSON object; found {type(data).__name__}")
        self._data, self._where = data, where

    @property
    def where(self) -> str:
        """The name of the object in messages."""
        return self._where

    def get(self, key: str, shape: Any, or_null: bool = False) -> Any:
        """The value of a key, checked in depth."""
        if key not in self._data:
            raise ReportError(f"{self._where} has no {key!r}")
        value = self._data[key]
        if not (or_null and value is None):
            check(value, shape, f"{key!r} of {self._where}")
        return value

    def get_or_none(self, key: str, shape: Any) -> Any:
        """The value of a key; None if it is null or missing."""
        return None if self._data.get(key) is None else self.get(key, shape)

    def inside(self, key: str) -> Reader:
        """A reader of a key's value, which is an object."""
        return Reader(self.get(key, dict), f"{key!r} of {self._where}")

    def number(self, key: str) -> float:
        """A key's value, which is a finite number."""
        return float(self.get(key, NUMBER))

    def number_or_none(self, key: str) -> float | None:
        """A key's value, which is a finite number; None if it is null or missing."""
        return None if self._data.get(key) is None else self.number(key)

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def one_of(self, key: str, choices: Any) -> Any:
        """A key's value, which is one of the words of a `Literal` or a table."""
        value, words = self.get(key, str), get_args(choices) or tuple(choices)
        if value not in words:
            raise ReportError(f"{key!r} of {self._where} is one of {', '.join(words)}; found {value!r:.80}")
        return value

    def list_of(self, key: str, shape: Any) -> tuple[Any, ...]:
        """A key's value, a list of that shape, as a tuple."""
        return tuple(self.get(key, [shape]))


def check(value: object, shape: Any, where: str) -> None:
    """Raise a `ReportError` unless `value` has the shape. A bool is not a number here, and a number must be finite."""
    if _fits(value, shape):  # places are only named if something is wrong
        return
    if isinstance(shape, Mapping):
        reader = Reader(value, where)
        for key, inner in shape.items():
            if not isinstance(inner, Perhaps):
                reader.get(key, inner)
            elif key in reader:
                reader.get(key, inner.shape)
    elif isinstance(shape, list):
        check(value, list, where)
        for number, item in enumerate(value if isinstance(value, list) else ()):
            check(item, shape[0], f"item {number} of {where}")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ReportError(f"{where} is {wanted}; found {value!r:.80}")
        if isinstance(value, (int, float)) and not _is_finite(value):
            raise ReportError(f"{where} is a finite number; found {value!r:.80}")


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, Mapping):
        return isinstance(value, dict) and all(
            _fits(value[key], inner) if key in value else isinstance(inner, Perhaps) for key, inner in shape.items()
        )
    if isinstance(shape, Perhaps):
        return _fits(value, shape.shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return False
    return not isinstance(value, (int, float)) or _is_finite(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a double
        return False
