"""What Python objects hold, as plain data.

A step of training may change anything: a counter, a list, a second optimizer, a teacher that no module registers. It is
written as text (JSON) and a list of tensors (`object_writer`), so that reading it runs no code, and with who shares
what: an optimizer in one attribute goes on with the parameters in another. Putting it back (`object_reader`) goes into
the objects that are there, as far as they are of the same kind, since others may hold them too; what is not there is
made without a call of its `__init__`.

Some objects cannot be written down: open files, generators, what a library keeps in C. They stay as they are, and
whoever asks is told.
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
    """Values written down.

    Attributes:
        values: a node for each.
        objects: of what has an identity, which nodes refer to by number.
        tensors: that objects refer to by number.
        opaque: of what could not be written: type, identity and what is known of it.
        originals: the objects themselves, where they are to be put back into those.
    """

    values: dict[str, Node] = field(default_factory=dict)
    objects: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    opaque: set[tuple[str, int, object]] = field(default_factory=set)
    originals: list[Any] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For a checkpoint: a text and tensors."""
        return {"text": json.dumps([self.values, self.objects]), "tensors": self.tensors}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Record:
        """What `plain` made."""
        values, objects = json.loads(plain["text"])
        return cls(values=values, objects=objects, tensors=list(plain["tensors"]))


def array_as_text(array: np.ndarray[Any, Any]) -> list[Any]:
    return [array.dtype.str, list(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]


def array_of_text(dtype: str, shape: list[int], text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), dtype=np.dtype(dtype)).reshape(shape).copy()
