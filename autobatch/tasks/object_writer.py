"""Records the contents of Python objects, as far as possible."""

from __future__ import annotations

import base64
import enum
import functools
import itertools
import json
import math
import operator
import random
import sys
import types
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TooLarge
from .object_parts import (
    OF_EVERY_MODULE,
    attributes,
    cell_content,
    container_of,
    found_at,
    home_of,
    is_made_by_object,
    slots_of,
)
from .object_record import Node, Record, array_as_text

_PLAIN = frozenset({type(None), bool, int, float, str})
# Assumed: a data set of Python objects in a module exceeds the first, and a network of modules stays below the second.
_MOST_OBJECTS, _DEEPEST = 100_000, 150
TOO_MANY = f"more than {_MOST_OBJECTS:,} Python objects, or to one {_DEEPEST} levels down"
# Python's own classes are opaque, except those below: a logger leads to all of logging.
_STANDARD = frozenset(sys.stdlib_module_names) - {"__main__"}
_HEAP_TYPE = 1 << 9  # in `type.__flags__`: made by a class statement, not in C


class Writer:
    """Writes values into a record.

    Args:
        named: what others keep, by its identity; it is referred to by name.
        tensors: "sum" for checksums, to compare; "refer" for the tensors as they are; "copy" for copies on the host.
        largest: bytes of a tensor or an array that is written at all; of a container, its items of eight bytes.
        before: another writer, whose numbers what was there then keeps, so that the two records can be compared.
    """

    def __init__(
        self, named: Mapping[int, str], *, tensors: str, largest: float = math.inf, before: Writer | None = None
    ) -> None:
        self.record = Record()
        self._named, self._tensors, self._largest = named, tensors, largest
        self._numbers: dict[int, int] = dict(before._numbers) if before else {}
        self.record.objects += [None] * (max(self._numbers.values(), default=-1) + 1)
        self._written: set[int] = set()
        self._most = _MOST_OBJECTS  # the number of objects after which writing stops
        self._alive: list[Any] = []  # kept alive, so that no other object gets the identity of one that was seen

    def write(self, name: str, value: Any) -> None:
        """Add a value under its name.

        Raises:
            TooLarge: it leads to too many objects.
        """
        # Each value has its own limit: a large one does not reduce that of the next.
        self._most = len(self._written) + _MOST_OBJECTS
        try:
            self.record.values[name] = self._node(value, 0)
        except TooLarge:  # forget the objects that were begun: other values may lead to them too
            self._written = {number for number in self._written if self.record.objects[number] is not None}
            raise

    def _node(self, value: Any, depth: int) -> Node:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if id(value) in self._named:
            return ["@", self._named[id(value)]]
        if depth > _DEEPEST or len(self._written) > self._most:
            raise TooLarge(
                f"a value leads to {TOO_MANY}: that is too much to keep in a checkpoint. Keep tensors or arrays instead"
            )
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is bytes:
            return ["bytes", base64.b64encode(value).decode()]
        if isinstance(value, np.generic):
            return ["number", *array_as_text(np.asarray(value))] if value.dtype.kind != "O" else self._leave(value)
        if isinstance(value, torch.dtype | torch.device | torch.memory_format | torch.layout):
            return ["torch", type(value).__name__, str(value).removeprefix("torch.")]
        if isinstance(value, enum.Enum):
            return ["enum", *home_of(type(value)), value.name]
        if isinstance(value, tuple):
            return ["tuple", home_of(kind), self._items(value, depth + 1)]
        if isinstance(value, frozenset):
            return ["frozenset", [self._node(item, depth + 1) for item in value]]
        if isinstance(value, type | types.BuiltinFunctionType) or (
            isinstance(value, types.FunctionType) and value.__closure__ is None and found_at(*home_of(value)) is value
        ):
            return ["global", *home_of(value)] if found_at(*home_of(value)) is value else self._leave(value)
        if isinstance(value, types.MethodType):
            return ["method", self._node(value.__self__, depth + 1), value.__func__.__name__]
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self.record.objects)
            self.record.objects.append(None)
        if number not in self._written:
            self._written.add(number)
            self._alive.append(value)
            self.record.objects[number] = self._object(value, depth + 1)
        return ["#", number]

    def _items(self, values: Iterable[Any], depth: int) -> list[Node]:
        items = list(values)
        # There may be very many numbers and texts, and each is its own node.
        return items if set(map(type, items)) <= _PLAIN else [self._node(item, depth) for item in items]

    def _leave(self, value: Any) -> Node:
        self.record.opaque.add((type(value).__name__, id(value), _progress(value)))
        return ["opaque"]

    def _object(self, value: Any, depth: int) -> Node:
        """The node for an object with an identity."""
        kind = type(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject or value.nbytes > self._largest:
                return self._leave(value)
            if self._tensors == "sum":
                return ["array", value.dtype.str, list(value.shape), _sum_of(value)]
            return ["array", *array_as_text(value)]
        if isinstance(value, list | deque | set | dict) and 8 * container_of(kind).__len__(value) > self._largest:
            return self._leave(value)
        if isinstance(value, list | deque | set):
            shape = "list" if isinstance(value, list) else "set" if isinstance(value, set) else "deque"
            items = self._items(container_of(kind).__iter__(value), depth)
            more = value.maxlen if isinstance(value, deque) else None
            return [shape, home_of(kind), items, more, self._attributes(value, depth)]
        if isinstance(value, dict):
            factory = self._node(value.default_factory, depth) if isinstance(value, defaultdict) else None
            own = container_of(kind)
            keys, held = self._items(own.keys(value), depth), self._items(own.values(value), depth)
            pairs = list(map(list, zip(keys, held, strict=True)))
            return ["dict", home_of(kind), pairs, factory, self._attributes(value, depth)]
        if isinstance(value, torch.Generator):
            drawn = value.get_state()
            return [
                "torch generator",
                str(value.device),
                _sum_of_tensor(drawn) if self._tensors == "sum" else self._kept(drawn),
            ]
        if kind is random.Random:
            return ["python generator", json.dumps(value.getstate())]
        if isinstance(value, np.random.Generator | np.random.RandomState):
            bits = value.bit_generator if isinstance(value, np.random.Generator) else value._bit_generator
            # RandomState's own state also holds a second normal number.
            whole = bits.state if isinstance(value, np.random.Generator) else value.get_state(legacy=False)
            return ["numpy generator", self._node(dict(whole), depth)]
        if isinstance(value, types.FunctionType):
            cells = [self._node(cell_content(cell), depth) for cell in value.__closure__ or ()]
            defaults = [self._node(given, depth) for given in (value.__defaults__, value.__kwdefaults__)]
            code = value.__code__
            home = [value.__globals__.get("__name__") or "", code.co_name, code.co_firstlineno]
            return ["closure", value.__qualname__, cells, home, defaults]
        if isinstance(value, functools.partial):
            parts = [self._node(part, depth) for part in (value.func, value.args, value.keywords)]
            return ["partial", parts]
        if not _is_python_object(value):
            return self._leave(value)
        return ["object", home_of(kind), self._attributes(value, depth)]

    def _attributes(self, value: Any, depth: int) -> list[Node]:
        left_out = OF_EVERY_MODULE if isinstance(value, nn.Module) else frozenset()
        return [[name, self._node(held, depth)] for name, held in attributes(value) if name not in left_out]

    def _tensor(self, value: Tensor) -> Node:
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or value.device.type == "meta":
            return self._leave(value)  # a subclass may hold anything
        if value.layout is torch.strided and (value.nbytes > self._largest or not _has_its_memory(value)):
            return self._leave(value)
        form = [type(value).__name__, value.requires_grad, value.device.type]
        if self._tensors == "sum":
            return ["tensor", *form, str(value.dtype), list(value.shape), _sum_of_tensor(value)]
        return ["tensor", *form, self._kept(value)]

    def _kept(self, value: Tensor) -> int:
        detached = value.detach()
        if self._tensors == "copy":
            detached = detached.to("cpu", copy=True)
        elif detached.layout is torch.strided and detached.untyped_storage().nbytes() > 2 * detached.nbytes:
            detached = detached.clone()  # a view of a much larger storage, which would be written too
        self.record.tensors.append(detached)
        return len(self.record.tensors) - 1

    def finish(self) -> Record:
        """The record of all values, with the objects themselves if it was copied to be restored."""
        if self._tensors == "copy":
            self.record.originals = self._alive
        return self.record


def _is_python_object(value: Any) -> bool:
    """Whether an object's attributes are all that it holds."""
    kind = type(value)
    top = (kind.__module__ or "").partition(".")[0]
    if top in _STANDARD or isinstance(value, types.ModuleType) or not kind.__flags__ & _HEAP_TYPE:
        return False
    if is_of_wrapper(kind):
        return False
    return is_made_by_object(kind) and (hasattr(value, "__dict__") or bool(slots_of(kind)))


def is_of_wrapper(kind: type) -> bool:
    """Whether torch puts it around a model to share that: groups, buckets, buffers. They hold no state."""
    return (kind.__module__ or "").startswith(("torch.distributed", "torch.nn.parallel"))


def _progress(value: Any) -> object:
    """How far an object that can be read once has been read, if it shows that."""
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        plain = [] if frame is None else [held for held in frame.f_locals.values() if type(held) in _PLAIN]
        return frame and (frame.f_lasti, repr(plain), _progress(value.gi_yieldfrom))
    if type(value) is itertools.count:
        return repr(value)
    if hasattr(type(value), "__length_hint__") and hasattr(type(value), "__next__"):
        return operator.length_hint(value, -1)
    return None


def _has_its_memory(tensor: Tensor) -> bool:
    """Whether a strided tensor may be read: FSDP frees the storage of unused tensors, and leaves their shapes."""
    if tensor.numel() == 0:
        return True
    last = tensor.storage_offset() + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.untyped_storage().nbytes() >= (last + 1) * tensor.element_size()


def _sum_of(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data) if array.size else 0


def _sum_of_tensor(value: Tensor) -> list[int]:
    parts = [value.detach()]
    if value.layout is torch.sparse_coo:
        coalesced = value.detach().coalesce()
        parts = [coalesced.indices(), coalesced.values()]
    elif value.layout is not torch.strided or value.is_quantized:
        return [id(value), value._version]
    if value.is_nested:
        return [id(value), value._version]
    whole = [part.cpu().resolve_conj().resolve_neg().contiguous() for part in parts]
    return [_sum_of(part.reshape(-1).view(torch.uint8).numpy()) if part.numel() else 0 for part in whole]
