"""Where training may keep state that no `state_dict` has: attributes of modules, globals, closures, classes."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .object_parts import OF_EVERY_MODULE, attributes, cell_content, delete_attribute, set_attribute
from .object_writer import is_of_wrapper
from .task_file import is_users

ABSENT: Any = object()
_users = functools.cache(is_users)


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a namespace: a dictionary, an object, or a class.

    Attributes:
        description: the place in words.
        holder: the namespace; None for a value that stays in its place, but may change inside.
        key: the name, or that value.
    """

    description: str
    holder: Any
    key: Any

    def get(self) -> Any:
        """The value there, or `ABSENT`."""
        if self.holder is None:
            return self.key
        if isinstance(self.holder, dict):
            return self.holder.get(self.key, ABSENT)
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.key, ABSENT)
        return dict(attributes(self.holder)).get(self.key, ABSENT)

    def put(self, value: Any) -> None:
        """Set the value, or delete it if `value` is `ABSENT`."""
        if self.holder is None or value is self.get():
            return
        if isinstance(self.holder, dict):
            if value is ABSENT:
                del self.holder[self.key]
            else:
                self.holder[self.key] = value
        elif isinstance(self.holder, type):
            if value is ABSENT:
                delattr(self.holder, self.key)
            else:
                setattr(self.holder, self.key, value)
        elif value is ABSENT:
            delete_attribute(self.holder, self.key)
        else:
            set_attribute(self.holder, self.key, value)


def names_of_model(model: nn.Module) -> dict[str, Any]:
    """Modules, parameters and buffers of a model by name. One with several names has the first."""
    names: dict[str, Any] = {}
    for name, module in model.named_modules():
        names[f"module {name}"] = module
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            names[f"{kind} {name}"] = tensor
    return names


def places_of_model(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """The plain attributes of all modules of a model."""
    for path, module in model.named_modules():
        if is_of_wrapper(type(module)):
            continue
        for name in list(module.__dict__):
            if name not in OF_EVERY_MODULE and name not in ("_parameters", "_buffers", "_modules", "training"):
                description = f"`{type(module).__name__}.{name}`{f' of {path}' if path else ''}"
                yield f"module {path}.{name}", Place(description, module.__dict__, name)


def places_of_object(name: str, value: Any) -> Iterator[tuple[str, Place]]:
    """The attributes of an optimizer or a schedule."""
    for attribute in dict(attributes(value)):
        yield f"{name}.{attribute}", Place(f"`{type(value).__name__}.{attribute}`", value, attribute)


def places_of_functions(
    functions: Iterable[tuple[str, Callable[..., Any] | None]], classes: Iterable[type], root: Path | None
) -> Iterator[tuple[str, Place]]:
    """What the user's functions keep outside of themselves: in globals that they use, closures, objects, classes.

    Args:
        functions: those of the task, with their names.
        classes: those of the model's modules, which are visited too.
        root: the folder of the task file.
    """
    seen: set[int] = set()
    waiting: list[Any] = []
    for name, function in functions:
        if function is not None:
            yield f"function {name}", Place(f"{name}()", None, function)
            waiting.append(function)
    waiting += classes
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            waiting += [value.__func__, type(value.__self__)]
        elif isinstance(value, type):
            yield from _of_class(value, root, waiting)
        elif isinstance(value, types.FunctionType):
            yield from _of_function(value, root, waiting)
        elif not isinstance(value, types.ModuleType | Tensor) and callable(value):
            waiting.append(type(value))


def classes_made_by(function: Callable[..., Any], root: Path | None) -> set[type]:
    """The user's own classes that a function instantiates, as far as its code and that of its callees names them."""
    module = getattr(function, "module", None)
    if isinstance(module, nn.Module):
        return {type(inner) for inner in module.modules()}
    classes, seen, waiting = set[type](), set[int](), [function]
    while waiting:
        value: Any = waiting.pop()
        value = value.func if isinstance(value, functools.partial) else _function_of(value) or value
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, type):
            classes.add(value)
            waiting += [one for one in map(_function_of, vars(value).values()) if one is not None]
        elif isinstance(value, types.FunctionType) and _users(value.__code__.co_filename, root):
            named = [value.__globals__.get(name) for name in _names(value.__code__)[0]]
            waiting += [one for one in named if isinstance(one, type | types.FunctionType | functools.partial)]
            waiting += [cell for cell in map(cell_content, value.__closure__ or ()) if callable(cell)]
    return classes


def _of_class(value: type, root: Path | None, waiting: list[Any]) -> Iterator[tuple[str, Place]]:
    for kind in value.__mro__:
        methods = [one for one in map(_function_of, vars(kind).values()) if one is not None]
        if not any(_users(one.__code__.co_filename, root) for one in methods):
            continue
        waiting += methods
        for name, held in list(vars(kind).items()):
            if not name.startswith("__") and _is_state(held) and not hasattr(type(held), "__get__"):
                description = f"`{kind.__name__}.{name}` of the class"
                yield f"class {kind.__module__}.{kind.__qualname__}.{name}", Place(description, kind, name)


def _function_of(value: Any) -> types.FunctionType | None:
    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return inner if isinstance(inner, types.FunctionType) else None


def _of_function(value: types.FunctionType, root: Path | None, waiting: list[Any]) -> Iterator[tuple[str, Place]]:
    if not _users(value.__code__.co_filename, root):
        inner = getattr(value, "__wrapped__", None)  # the user's function inside a library's decorator
        waiting += [inner] if inner is not None else []
        return
    waiting += [cell for cell in map(cell_content, value.__closure__ or ()) if callable(cell)]
    names, stored = _names(value.__code__)
    module = value.__globals__.get("__name__", "")
    for name in sorted(stored | (names & value.__globals__.keys())):
        held = value.__globals__.get(name, ABSENT)
        if isinstance(held, types.ModuleType):
            if not _users(getattr(held, "__file__", None) or "<", root):
                continue
            for inner in sorted(names & vars(held).keys()):  # `settings.step += 1`, in another file of the user
                waiting.append(vars(held)[inner])
                if _is_state(vars(held)[inner]):
                    description = f"`{name}.{inner}`"
                    yield f"global {held.__name__}.{inner}", Place(description, vars(held), inner)
            continue
        if held is not ABSENT and callable(held):
            waiting.append(held)
        if name in stored or _is_state(held):
            yield f"global {module}.{name}", Place(f"the global `{name}`", value.__globals__, name)


def _is_state(value: Any) -> bool:
    return not isinstance(value, types.ModuleType | types.FunctionType | types.BuiltinFunctionType | type)


@functools.cache
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names that code and its inner functions use, and the globals that they assign."""
    used = set(code.co_names)
    stored = {one.argval for one in dis.get_instructions(code) if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more, also = _names(inner)
            used |= more
            stored |= also
    return frozenset(used), frozenset(stored)
