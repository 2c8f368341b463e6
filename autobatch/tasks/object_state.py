"""What Python objects hold, written down as plain data, and put back into them.

A step of training may change anything: a counter, a list, a second optimizer, a teacher that no module registers. It is
written as text (JSON) and a list of tensors, so that reading it runs no code, and with who shares what: an optimizer in
one attribute goes on with the parameters in another. Putting it back goes into the objects that are there, as far as
they are of the same kind, since others may hold them too; what is not there is made without a call of its `__init__`.

Some objects cannot be written down: open files, generators, what a library keeps in C. They stay as they are, and
whoever asks is told.
"""

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._contextlib import _DecoratorContextManager

from ..devices.backend import PROCESSOR
from ..errors import CheckpointError, TaskError

Node = Any  # a plain value, or a list that begins with its kind

_PLAIN = frozenset({type(None), bool, int, float, str})
# Assumed: a data set of Python objects that a module holds is above the first, a network of modules below the second.
_MOST_OBJECTS, _DEEPEST = 100_000, 150
TOO_MANY = f"more than {_MOST_OBJECTS:,} Python objects, or to one {_DEEPEST} levels down"
# Python's own classes are opaque but for those below: a logger leads to all of logging.
_STANDARD = frozenset(sys.stdlib_module_names) - {"__main__"}
_HEAP_TYPE = 1 << 9  # of `type.__flags__`: made by a class statement, not written in C

# What every module has and no training changes: hooks are functions, and the rest is walked by itself.
OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"_parameters", "_buffers", "_modules", "training"}


# In place of what was not written down and is not there to be kept.
_MISSING: Any = object()


class TooLarge(TaskError):
    """More objects than anybody's state of training is made of."""

    def __init__(self) -> None:
        super().__init__(
            f"a value leads to {TOO_MANY}: that is too much to keep in a checkpoint. Keep tensors or arrays instead"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


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


class Writer:
    """Writes values into a record.

    Args:
        named: what others keep, by its identity; it is referred to by name.
        tensors: "sum" for checksums, to compare; "refer" for the tensors as they are; "copy" for copies on the host.
        largest: bytes of a tensor or an array that is written at all.
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
        self._most = _MOST_OBJECTS  # that may be written by now
        self._alive: list[Any] = []  # while this writes, no other object gets the identity of one that was seen

    def write(self, name: str, value: Any) -> None:
        """Add a value under its name.

        Raises:
            TooLarge: it leads to too many objects.
        """
        # Of each value by itself: a large one leaves the room of those after it.
        self._most = len(self._written) + _MOST_OBJECTS
        try:
            self.record.values[name] = self._node(value, 0)
        except TooLarge:  # those that were begun are as if nobody had seen them: others may lead to them too
            self._written = {number for number in self._written if self.record.objects[number] is not None}
            raise

    def _node(self, value: Any, depth: int) -> Node:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if id(value) in self._named:
            return ["@", self._named[id(value)]]
        if depth > _DEEPEST or len(self._written) > self._most:
            raise TooLarge
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is bytes:
            return ["bytes", base64.b64encode(value).decode()]
        if isinstance(value, np.generic):
            return ["number", *_array_as_text(np.asarray(value))] if value.dtype.kind != "O" else self._leave(value)
        if isinstance(value, torch.dtype | torch.device | torch.memory_format | torch.layout):
            return ["torch", type(value).__name__, str(value).removeprefix("torch.")]
        if isinstance(value, enum.Enum):
            return ["enum", *_home(type(value)), value.name]
        if isinstance(value, tuple):
            return ["tuple", _home(kind), self._items(value, depth + 1)]
        if isinstance(value, frozenset):
            return ["frozenset", [self._node(item, depth + 1) for item in value]]
        if isinstance(value, type | types.BuiltinFunctionType) or (
            isinstance(value, types.FunctionType) and value.__closure__ is None and _found(*_home(value)) is value
        ):
            return ["global", *_home(value)] if _found(*_home(value)) is value else self._leave(value)
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
        # Of numbers and texts there may be very many, and each is its own node.
        return items if set(map(type, items)) <= _PLAIN else [self._node(item, depth) for item in items]

    def _leave(self, value: Any) -> Node:
        self.record.opaque.add((type(value).__name__, id(value), _progress(value)))
        return ["opaque"]

    def _object(self, value: Any, depth: int) -> Node:
        """Of what has an identity: the node that stands for it in the table."""
        kind = type(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject or value.nbytes > self._largest:
                return self._leave(value)
            if self._tensors == "sum":
                return ["array", value.dtype.str, list(value.shape), _sum_of(value)]
            return ["array", *_array_as_text(value)]
        if isinstance(value, list | deque | set):
            shape = "list" if isinstance(value, list) else "set" if isinstance(value, set) else "deque"
            items = self._items(value, depth)
            more = value.maxlen if isinstance(value, deque) else None
            return [shape, _home(kind), items, more, self._attributes(value, depth)]
        if isinstance(value, dict):
            factory = self._node(value.default_factory, depth) if isinstance(value, defaultdict) else None
            keys, held = self._items(value.keys(), depth), self._items(value.values(), depth)
            pairs = list(map(list, zip(keys, held, strict=True)))
            return ["dict", _home(kind), pairs, factory, self._attributes(value, depth)]
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
            # RandomState's own state holds a second normal number too.
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
        return ["object", _home(kind), self._attributes(value, depth)]

    def _attributes(self, value: Any, depth: int) -> list[Node]:
        left_out = OF_EVERY_MODULE if isinstance(value, nn.Module) else frozenset()
        return [[name, self._node(held, depth)] for name, held in attributes(value) if name not in left_out]

    def _tensor(self, value: Tensor) -> Node:
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or value.device.type == "meta":
            return self._leave(value)  # what a subclass holds is its own affair
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
            detached = detached.clone()  # a view of much more, which would be written too
        self.record.tensors.append(detached)
        return len(self.record.tensors) - 1

    def finish(self) -> Record:
        """All that was written; with the objects themselves where it was copied to be put back."""
        if self._tensors == "copy":
            self.record.originals = self._alive
        return self.record


def _has_its_memory(tensor: Tensor) -> bool:
    """Whether a strided tensor may be read: FSDP frees the storage of those nobody uses, and leaves their shapes."""
    if tensor.numel() == 0:
        return True
    last = tensor.storage_offset() + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.untyped_storage().nbytes() >= (last + 1) * tensor.element_size()


class Reader:
    """Puts what a record holds back.

    Args:
        record: what `Writer` wrote.
        named: what the writer's names stand for here.
        device: where tensors go that were not on the host.
    """

    def __init__(self, record: Record, named: Mapping[str, Any], device: torch.device) -> None:
        self._record, self._named, self._device = record, named, device
        self._done: dict[int, Any] = {}
        self._taken: set[int] = set()

    def read(self, name: str, current: Any = _MISSING) -> Any:
        """The value of that name, in `current` itself where it can be."""
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
                raise CheckpointError(f"the checkpoint speaks of {rest[0]}, which this task's model does not have")
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
            return _array_of_text(*rest)[()]
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
        if id(current) in self._taken:  # it stands for another object of the record already
            current = _MISSING
        made = self._filled(number, node, current)
        self._note(number, made)
        return made

    def _note(self, number: int, made: Any) -> None:
        self._done[number] = made
        self._taken.add(id(made))

    def _filled(self, number: int, node: Node, current: Any) -> Any:
        if node is None:  # of a value that led to too many objects
            return current
        kind, *rest = node
        if kind == "opaque":
            return current
        if kind == "tensor":
            return self._tensor(current, *rest)
        if kind == "array":
            array = _array_of_text(*rest)
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
                if len(rest) == 2:  # a checkpoint of before says no more than the name
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
            old = dict(made)
            pairs = [(self._item(key), value) for key, value in rest[1]]
            filled = {key: self._item(value, old.get(key, _MISSING)) for key, value in pairs}
            made.clear()
            made.update(filled)
        elif kind in ("list", "deque", "set"):
            hints = itertools.chain(list(made) if kind != "set" else (), itertools.repeat(_MISSING))
            items = [self._item(item, hint) for item, hint in zip(rest[1], hints, strict=False)]
            made.clear()
            (made.update if kind == "set" else made.extend)(items)
        state = rest[1] if kind == "object" else rest[3]
        held, old_attributes = {name for name, _ in state}, dict(attributes(made))
        left_out = OF_EVERY_MODULE if isinstance(made, nn.Module) else frozenset()
        for name, value in state:
            found = self._value(value, old_attributes.get(name, _MISSING))
            if found is not _MISSING:
                set_attribute(made, name, found)
        for name in old_attributes.keys() - held - left_out:
            delete_attribute(made, name)
        return made

    def _tensor(self, current: Any, kind: str, requires_grad: bool, place: str, number: int) -> Any:
        values = self._record.tensors[number]
        own = bool(self._record.originals)  # then it is the very tensor that was written
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


# -- attributes, in a dictionary or in slots -----------------------------------------------------------------------


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """The names and values that an object holds."""
    yield from list(getattr(value, "__dict__", {}).items())
    for name in _slots(type(value)):
        if hasattr(value, name):
            yield name, getattr(value, name)


def _slots(kind: type) -> list[str]:
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
    if own is None or name in _slots(type(value)):
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


# -- what things are -----------------------------------------------------------------------------------------------


def _is_python_object(value: Any) -> bool:
    """Whether all that an object holds is in its attributes."""
    kind = type(value)
    top = (kind.__module__ or "").partition(".")[0]
    if top in _STANDARD or isinstance(value, types.ModuleType) or not kind.__flags__ & _HEAP_TYPE:
        return False
    if is_of_wrapper(kind):
        return False
    return _made_by_object(kind) and (hasattr(value, "__dict__") or bool(_slots(kind)))


def is_of_wrapper(kind: type) -> bool:
    """Whether it is part of what torch puts around a model to share it: groups, buckets, buffers; nobody's state."""
    return (kind.__module__ or "").startswith(("torch.distributed", "torch.nn.parallel"))


def _made_by_object(kind: type) -> bool:
    """Whether `object.__new__` makes one; so it does of `torch.no_grad`, whose own only takes a function to wrap."""
    new: Any = kind.__new__
    return new is object.__new__ or issubclass(kind, _DecoratorContextManager)


def _home(value: Any) -> list[str]:
    return [getattr(value, "__module__", None) or "", getattr(value, "__qualname__", None) or ""]


def _found(module: str, name: str) -> Any:
    """What stands under that name of a module that is imported already; None where nothing does."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _class(module: str, name: str) -> Any:
    found = _found(module, name)
    if found is None:
        raise CheckpointError(f"the checkpoint holds a {name} of {module}, which is not there")
    return found


def _empty(made_of: type, rest: list[Any], reader: Reader) -> Any:
    """A new object of a class, without a call of its own code."""
    if issubclass(made_of, deque):
        return made_of((), rest[2])
    if issubclass(made_of, defaultdict):
        return made_of(reader._item(rest[2]))
    if issubclass(made_of, nn.Module):
        module = made_of.__new__(made_of)
        nn.Module.__init__(module)
        return module
    new: Any = made_of.__new__
    if issubclass(made_of, dict | list | set):
        return new(made_of)
    if not _made_by_object(made_of):
        raise CheckpointError(f"the checkpoint holds a {made_of.__name__}, which cannot be made from its attributes")
    return object.__new__(made_of)


def cell_content(cell: Any) -> Any:
    """What a cell of a closure holds; None where that is still to come."""
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned later
        return None


def _fill(cell: Any, content: Any) -> None:
    if cell_content(cell) is not content:
        cell.cell_contents = content


def _progress(value: Any) -> object:
    """How far an object has come that can be read once, as far as it says."""
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        plain = [] if frame is None else [held for held in frame.f_locals.values() if type(held) in _PLAIN]
        return frame and (frame.f_lasti, repr(plain), _progress(value.gi_yieldfrom))
    if type(value) is itertools.count:
        return repr(value)
    if hasattr(type(value), "__length_hint__") and hasattr(type(value), "__next__"):
        return operator.length_hint(value, -1)
    return None


def _new_closure(name: str, cells: int, module: str, code_name: str, line: int) -> types.FunctionType | None:
    """A function of code that a module holds, with empty cells; None where not exactly one is found."""
    home = sys.modules.get(module)
    waiting: list[Any] = list(vars(home).values()) if home is not None else []
    seen, found = set[int](), list[types.CodeType]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.CodeType):
            waiting += value.co_consts
            if (value.co_name, value.co_firstlineno, len(value.co_freevars)) == (code_name, line, cells):
                found.append(value)
        elif isinstance(value, types.FunctionType) and value.__globals__.get("__name__") == module:
            waiting += [value.__code__, *(cell_content(cell) for cell in value.__closure__ or ())]
        elif isinstance(value, type) and value.__module__ == module:
            waiting += vars(value).values()
    if len(found) != 1:
        return None
    made = types.FunctionType(found[0], vars(home), closure=tuple(types.CellType() for _ in range(cells)))
    made.__qualname__ = name
    return made


def _is_closure(value: Any, name: str, cells: list[Node]) -> bool:
    """Whether a function is of the same code as one that was written down."""
    same = isinstance(value, types.FunctionType) and value.__qualname__ == name
    return same and len(value.__closure__ or ()) == len(cells)


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


def _array_as_text(array: np.ndarray[Any, Any]) -> list[Any]:
    return [array.dtype.str, list(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]


def _array_of_text(dtype: str, shape: list[int], text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), dtype=np.dtype(dtype)).reshape(shape).copy()
