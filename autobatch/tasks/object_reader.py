"""Restores recorded Python objects into the existing ones."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import operator
import random
import sys
import types
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..devices.backend import PROCESSOR
from ..errors import CheckpointError
from .object_parts import (
    OF_EVERY_MODULE,
    attributes,
    cell_content,
    container_of,
    delete_attribute,
    found_at,
    is_made_by_object,
    set_attribute,
)
from .object_record import Node, Record, array_of_text

# A value that was neither recorded nor exists already.
_MISSING: Any = object()


class Reader:
    """Restores the contents of a record.

    Args:
        record: what a `Writer` wrote.
        named: the objects here that have the writer's names.
        device: the device for tensors that were not on the host.
    """

    def __init__(self, record: Record, named: Mapping[str, Any], device: torch.device) -> None:
        self._record, self._named, self._device = record, named, device
        self._done: dict[int, Any] = {}
        self._taken: set[int] = set()

    def read(self, name: str, current: Any = _MISSING) -> Any:
        """The value of that name, restored into `current` itself if possible."""
        made = self._value(self._record.values[name], current)
        return None if made is _MISSING else made

    def _item(self, node: Node, current: Any = _MISSING) -> Any:
        made = self._value(node, current)
        return None if made is _MISSING else made

    def _value(self, node: Node, current: Any) -> Any:
        if not isinstance(node, list):
            return node
        kind, *rest = node
        if kind == "@":
            if rest[0] not in self._named:
                raise CheckpointError(f"the checkpoint has {rest[0]}, which this task's model lacks")
            return self._named[rest[0]]
        if kind == "#":
            return self._done[rest[0]] if rest[0] in self._done else self._object(rest[0], current)
        if kind == "opaque":
            return current
        if kind == "complex":
            return complex(*rest)
        if kind == "bytes":
            return base64.b64decode(rest[0])
        if kind == "number":
            return array_of_text(*rest)[()]
        if kind == "torch":
            return torch.device(rest[1]) if rest[0] == "device" else getattr(torch, rest[1])
        if kind == "enum":
            return _class(*rest[:2])[rest[2]]
        if kind == "frozenset":
            return frozenset(self._item(item) for item in rest[0])
        if kind == "global":
            return _class(*rest)
        if kind == "method":
            return getattr(self._value(rest[0], getattr(current, "__self__", _MISSING)), rest[1], current)
        assert kind == "tuple", kind
        fits = isinstance(current, tuple) and len(current) == len(rest[1])
        hints = current if fits else itertools.repeat(_MISSING)
        items = [self._item(item, hint) for item, hint in zip(rest[1], hints, strict=False)]
        kind_of = _class(*rest[0])
        made = torch.Size(items) if kind_of is torch.Size else tuple.__new__(kind_of, items)
        same = type(current) is type(made) and len(current) == len(made) and all(map(operator.is_, current, made))
        return current if same else made

    def _object(self, number: int, current: Any) -> Any:
        node = self._record.objects[number]
        if self._record.originals:
            current = self._record.originals[number]
        if id(current) in self._taken:  # it is already used for another object of the record
            current = _MISSING
        made = self._filled(number, node, current)
        self._note(number, made)
        return made

    def _note(self, number: int, made: Any) -> None:
        self._done[number] = made
        self._taken.add(id(made))

    def _filled(self, number: int, node: Node, current: Any) -> Any:
        if node is None:  # part of a value that led to too many objects
            return current
        kind, *rest = node
        if kind == "opaque":
            return current
        if kind == "tensor":
            return self._tensor(current, *rest)
        if kind == "array":
            array = array_of_text(*rest)
            if isinstance(current, np.ndarray) and (current.dtype, current.shape) == (array.dtype, array.shape):
                current[...] = array
                return current
            return array
        if kind == "torch generator":
            generator = current if isinstance(current, torch.Generator) else torch.Generator(rest[0])
            return generator.set_state(self._record.tensors[rest[1]].cpu())
        if kind == "python generator":
            version, internal, gauss = json.loads(rest[0])
            drawing = current if isinstance(current, random.Random) else random.Random()
            drawing.setstate((version, tuple(internal), gauss))
            return drawing
        if kind == "numpy generator":
            return self._numpy_generator(current, self._item(rest[0]))
        if kind == "closure":
            if not _is_closure(current, *rest[:2]):
                if len(rest) == 2:  # an older checkpoint has only the name
                    return current
                made = _new_closure(rest[0], len(rest[1]), *rest[2])
                if made is None:
                    return current
                made.__defaults__, made.__kwdefaults__ = map(self._item, rest[3])
                current = made
            self._note(number, current)
            for cell, content in zip(current.__closure__ or (), rest[1], strict=True):
                _fill(cell, self._item(content, cell_content(cell)))
            return current
        if kind == "partial":
            fits = isinstance(current, functools.partial)
            hints = (current.func, current.args, current.keywords) if fits else (_MISSING,) * 3
            function, arguments, keywords = (self._value(part, hint) for part, hint in zip(rest[0], hints, strict=True))
            if fits or function is _MISSING:
                return current
            return functools.partial(function, *arguments, **keywords)
        return self._container(number, kind, rest, current)

    def _container(self, number: int, kind: str, rest: list[Any], current: Any) -> Any:
        made_of = _class(*rest[0])
        fits = type(current) is made_of
        made = current if fits else _empty(made_of, rest, self)
        self._note(number, made)
        if kind == "dict":
            own = container_of(made_of)
            old = dict(own.items(made))
            pairs = [(self._item(key), value) for key, value in rest[1]]
            filled = {key: self._item(value, old.get(key, _MISSING)) for key, value in pairs}
            own.clear(made)
            for key, held_there in filled.items():
                own.__setitem__(made, key, held_there)
        elif kind in ("list", "deque", "set"):
            own = container_of(made_of)
            hints = itertools.chain(list(own.__iter__(made)) if kind != "set" else (), itertools.repeat(_MISSING))
            items = [self._item(item, hint) for item, hint in zip(rest[1], hints, strict=False)]
            own.clear(made)
            (own.update if kind == "set" else own.extend)(made, items)
        state = rest[1] if kind == "object" else rest[3]
        held, old_attributes = {name for name, _ in state}, dict(attributes(made))
        left_out = OF_EVERY_MODULE if isinstance(made, nn.Module) else frozenset()
        for name, value in state:
            restored = self._value(value, old_attributes.get(name, _MISSING))
            if restored is not _MISSING:
                set_attribute(made, name, restored)
        for name in old_attributes.keys() - held - left_out:
            delete_attribute(made, name)
        return made

    def _tensor(self, current: Any, kind: str, requires_grad: bool, place: str, number: int) -> Any:
        values = self._record.tensors[number]
        own = bool(self._record.originals)  # then it is the recorded tensor itself
        fits = type(current).__name__ == kind and (own or current.is_leaf) and not current.is_inference()
        if fits and (current.shape, current.dtype, current.layout) == (values.shape, values.dtype, values.layout):
            current.detach().copy_(values)
            return current.requires_grad_(requires_grad) if current.is_leaf else current
        values = values.to(place if place == PROCESSOR.torch_name else self._device, copy=True)
        if kind == "Tensor":
            return values.requires_grad_(requires_grad)
        return nn.Parameter(values, requires_grad) if kind == "Parameter" else nn.Buffer(values)

    @staticmethod
    def _numpy_generator(current: Any, state: dict[str, Any]) -> Any:
        made_by = getattr(np.random, state["bit_generator"])
        if isinstance(current, np.random.RandomState) or "has_gauss" in state:
            legacy = current if isinstance(current, np.random.RandomState) else np.random.RandomState(made_by())
            legacy.set_state(state)
            return legacy
        generator = current if isinstance(current, np.random.Generator) else np.random.Generator(made_by())
        if type(generator.bit_generator).__name__ != state["bit_generator"]:
            generator = np.random.Generator(made_by())
        generator.bit_generator.state = state
        return generator


def _class(module: str, name: str) -> Any:
    kind = found_at(module, name)
    if kind is None:
        raise CheckpointError(f"the checkpoint holds a {name} of {module}, which is not there")
    return kind


def _empty(made_of: type, rest: list[Any], reader: Reader) -> Any:
    """A new object of a class, made without calling its code."""
    if issubclass(made_of, deque | defaultdict):
        own = container_of(made_of)
        made = own.__new__(made_of)
        own.__init__(made, *((), rest[2]) if own is deque else (reader._item(rest[2]),))
        return made
    if issubclass(made_of, nn.Module):
        module = made_of.__new__(made_of)
        nn.Module.__init__(module)
        return module
    if issubclass(made_of, dict | list | set):
        return container_of(made_of).__new__(made_of)
    if not is_made_by_object(made_of):
        raise CheckpointError(f"the checkpoint holds a {made_of.__name__}, which cannot be made from its attributes")
    return object.__new__(made_of)


def _fill(cell: Any, content: Any) -> None:
    if cell_content(cell) is not content:
        cell.cell_contents = content


def _is_closure(value: Any, name: str, cells: list[Node]) -> bool:
    """Whether a function has the same code as a recorded one."""
    same = isinstance(value, types.FunctionType) and value.__qualname__ == name
    return same and len(value.__closure__ or ()) == len(cells)


def _new_closure(name: str, cells: int, module: str, code_name: str, line: int) -> types.FunctionType | None:
    """A function with code from a module, with empty cells; None unless exactly one is found."""
    home = sys.modules.get(module)
    waiting: list[Any] = list(vars(home).values()) if home is not None else []
    seen, codes = set[int](), list[types.CodeType]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.CodeType):
            waiting += value.co_consts
            if (value.co_name, value.co_firstlineno, len(value.co_freevars)) == (code_name, line, cells):
                codes.append(value)
        elif isinstance(value, types.FunctionType) and value.__globals__.get("__name__") == module:
            waiting += [value.__code__, *(cell_content(cell) for cell in value.__closure__ or ())]
        elif isinstance(value, type) and value.__module__ == module:
            waiting += vars(value).values()
    if len(codes) != 1:
        return None
    made = types.FunctionType(codes[0], vars(home), closure=tuple(types.CellType() for _ in range(cells)))
    made.__qualname__ = name
    return made
