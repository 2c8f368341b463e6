"""The contents of Python objects, as plain data.

A training step may change anything: a counter, a list, a second optimizer, a teacher that no module registers. It is
written as text (JSON) and a list of tensors (`object_writer`), so that reading it runs no code. Shared objects stay
shared: an optimizer in one attribute continues with the parameters in another. Restoring (`object_reader`) changes the
existing objects if they are of the same kind, since others may hold them too. Missing objects are made without calling
`__init__`.

Some objects cannot be recorded: open files, generators, the C state of a library. They stay as they are, and the record
lists them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

Node = Any  # a plain value, or a list that begins with its kind


@dataclass(slots=True)
class Record:
    """Recorded values.

    Attributes:
        values: one node for each.
        objects: those with an identity, which nodes refer to by number.
        tensors: those that objects refer to by number.
        opaque: what could not be recorded: type, identity and what is known of it.
        originals: the objects themselves, if they will be restored.
    """

    values: dict[str, Node] = field(default_factory=dict)
    objects: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    opaque: set[tuple[str, int, object]] = field(default_factory=set)
    originals: list[Any] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The record for a checkpoint: a text and tensors."""
        return {"text": json.dumps([self.values, self.objects]), "tensors": self.tensors}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Record:
        """The record that `plain` converted."""
        values, objects = json.loads(plain["text"])
        return cls(values=values, objects=objects, tensors=list(plain["tensors"]))


def array_as_text(array: np.ndarray[Any, Any]) -> list[Any]:
    return [array.dtype.str, list(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]


def array_of_text(dtype: str, shape: list[int], text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), dtype=np.dtype(dtype)).reshape(shape).copy()
