"""A module as bytes, and back in another process, even if pickle alone refuses.

Most of what pickle refuses is no state: a lock, a weak reference, the class that `parametrize` makes on the fly. Their
state is carried, and the objects are made again. For anything else (an open file, a generator, a thread) the error
names its place.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..devices.oom import is_out_of_memory
from ..errors import TaskError, with_class


def to_bytes(value: Any) -> bytes:
    """`value` as bytes for `from_bytes`, with its tensors, functions and classes, also those of a notebook or a script.

    Raises:
        Exception: of any class, from pickling. `what_stays` names the part of the value that caused it.
    """
    buffer = io.BytesIO()
    # torch.save rather than plain pickle: tensors on a GPU are then read back on the host.
    torch.save(value, buffer, pickle_module=_Carrying)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """What `to_bytes` wrote, with its tensors on the host."""
    # Not `weights_only`: these are functions and classes, written by this program's own parent process.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


@dataclasses.dataclass(frozen=True, slots=True)
class LiveModel:
    """`model()` of a live module in the user's process: the module itself, which the caller borrows."""

    module: nn.Module

    def __call__(self) -> nn.Module:
        return self.module

    def __reduce__(self) -> tuple[Any, ...]:
        return _Carried, (to_bytes(self.module),)


class _Carried:
    """`model()` of a live module in another process: as fresh at each call as that of a task file.

    Each module is read from the bytes and not copied from the first: `copy.deepcopy` refuses some of what is carried
    here.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        # Read now, so that its imports are known to be the task's, and not kept: its memory would be there already when
        # that of a step begins to be counted.
        self._read()

    def __call__(self) -> nn.Module:
        return self._read()

    def _read(self) -> nn.Module:
        try:
            module: nn.Module = from_bytes(self._data)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise TaskError(
                f"the model cannot be made again in another process: {with_class(error)}. "
                "Put it into a task file, which each process runs, or pass isolate=False to find_max_batch, which "
                "measures in your own process"
            ) from error
        return module

    def __reduce__(self) -> tuple[Any, ...]:
        return _Carried, (self._data,)


# -- what is made again ----------------------------------------------------------------------------------------------


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle's pickler, which also takes parametrized and scripted modules, parameters with hooks, and locks."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = NotImplemented
        if isinstance(obj, nn.Module):
            reduced = _module_reduced(obj)
        elif isinstance(obj, nn.Parameter):
            reduced = _parameter_reduced(obj)
        elif isinstance(obj, threading.Thread):  # its locks could be made again, but it would not run
            raise pickle.PicklingError(f"cannot pickle a thread ({obj.name})")
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


class _Carrying:
    """The module that `torch.save` uses to pickle."""

    Pickler = _Pickler


def _module_reduced(module: nn.Module) -> Any:
    if isinstance(module, torch.jit.ScriptModule):
        buffer = io.BytesIO()
        with _scripting():
            torch.jit.save(module, buffer)
        return _scripted, (buffer.getvalue(),)
    # The class was made on the fly and refuses to be pickled; its original may have its own rules. Not
    # `parametrize.is_parametrized`: that reads an attribute, which a wrapper may look up in the wrapped object.
    made = type(module)
    if getattr(vars(made).get("__getstate__"), "__module__", None) != parametrize.__name__:
        return NotImplemented
    kind: Any = made.__bases__[0]
    return _unmade, (kind,), kind.__getstate__(module), None, None, _parametrize_again


def _unmade(kind: Any) -> Any:
    """An instance without its state."""
    return kind.__new__(kind)


def _parametrize_again(module: nn.Module, state: Any) -> None:
    """Set the state of a parametrized module, and restore the class that computes its tensors."""
    setting = getattr(module, "__setstate__", None)
    setting(state)  # type: ignore[misc]  # nn.Module has it
    carried: Any = module._modules.pop("parametrizations")
    for name in carried:
        # A stand-in for the tensor: only the property that replaces it is needed.
        module.register_parameter(name, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
    module._modules["parametrizations"] = carried


def _scripted(data: bytes) -> Any:
    with _scripting():
        return torch.jit.load(io.BytesIO(data), map_location="cpu")


@contextmanager
def _scripting() -> Iterator[None]:
    """Silence torch's deprecation warning, about which the user could do nothing here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _parameter_reduced(parameter: nn.Parameter) -> Any:
    """A parameter with its hooks, which torch leaves out: a step may do much in them, such as the optimizer's part."""
    hooks = tuple((parameter._backward_hooks or {}).values())
    after = tuple((getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values())
    if not hooks and not after:
        return NotImplemented
    make, arguments, *_ = parameter.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    return make, arguments, (hooks, after), None, None, _hook_again


def _hook_again(parameter: nn.Parameter, state: tuple[Iterable[Any], Iterable[Any]]) -> None:
    hooks, after = state
    for hook in hooks:
        parameter.register_hook(hook)
    for hook in after:
        parameter.register_post_accumulate_grad_hook(hook)


def _nothing() -> None:
    return None


def _weak_reference(to: Any) -> Any:
    return weakref.ref(_Gone() if to is None else to)


class _Gone:
    """The target of a reference whose target is gone."""

    def method(self) -> None:
        """The target of a reference to a method that is gone."""


def _weak_method(to: Any) -> Any:
    return weakref.WeakMethod(_Gone().method if to is None else to)


def _cached(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _cache_reduced(cached: Any) -> Any:
    copy: Any = None
    try:  # a function of an installed module is found by its name
        copy = pickle.loads(pickle.dumps(cached))
    except Exception:  # noqa: BLE001  # its class differs between versions of Python: the function is a method's or a script's
        copy = None
    if copy is cached:
        return cached.__reduce__()
    return _cached, (cached.__wrapped__, cached.cache_parameters())


_Pickler.dispatch_table = {
    **_Pickler.dispatch_table,
    type(threading.Lock()): lambda lock: (threading.Lock, ()),
    type(threading.RLock()): lambda lock: (threading.RLock, ()),
    threading.local: lambda local: (threading.local, ()),
    weakref.ref: lambda reference: (_weak_reference, (reference(),)),
    weakref.WeakMethod: lambda reference: (_weak_method, (reference(),)),
    weakref.WeakSet: lambda weak: (weakref.WeakSet, (list(weak),)),
    weakref.WeakKeyDictionary: lambda weak: (weakref.WeakKeyDictionary, (dict(weak),)),
    weakref.WeakValueDictionary: lambda weak: (weakref.WeakValueDictionary, (dict(weak),)),
    type(functools.lru_cache(_nothing)): _cache_reduced,
}


# -- what stays ------------------------------------------------------------------------------------------------------


class _Trial(_Pickler):
    """Pickles only to find out whether that works. The contents of tensors are left out."""

    def persistent_id(self, obj: Any) -> str | None:
        return "a tensor" if isinstance(obj, Tensor) and not isinstance(obj, nn.Parameter) else None


def what_stays(name: str, value: Any) -> str | None:
    """The innermost part of `value` that cannot be pickled, with its place and the reason; None if all of it can."""
    stuck = _stuck(name, value, set())
    if stuck is None:
        return None
    place, part, error = stuck
    kind = type(part)
    named = kind.__name__ if kind.__module__ in ("builtins", "_io") else f"{kind.__module__}.{kind.__qualname__}"
    return f"{place} ({named}): {with_class(error)}"


def _stuck(place: str, value: Any, seen: set[int]) -> tuple[str, Any, Exception] | None:
    if id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, LiveModel):
        return _stuck(place, value.module, seen)
    try:
        _Trial(io.BytesIO()).dump(value)
    except Exception as error:  # noqa: BLE001  # pickling calls the user's own methods
        inner = (_stuck(f"{place}{step}", part, seen) for step, part in _parts(value))
        return next((part for part in inner if part is not None), (place, value, error))
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value, each with the way to it."""
    if isinstance(value, threading.Thread):
        return  # with any contents, it would not run
    if isinstance(value, nn.Module):
        for name, part in vars(value).items():
            if name in ("_modules", "_parameters", "_buffers"):
                yield from ((f".{child}", held) for child, held in part.items())
            else:
                yield f".{name}", part
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from ((f" (argument {index})", part) for index, part in enumerate(value.args))
        yield from ((f" (argument {name})", part) for name, part in value.keywords.items())
        yield "", value.func
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with suppress(ValueError):  # the cell is empty: a name assigned later
                yield f" (its {name})", cell.cell_contents
        used = (name for name in value.__code__.co_names if name in value.__globals__)
        yield from ((f" (the global {name})", value.__globals__[name]) for name in used)
    elif hasattr(value, "__dict__"):
        yield from ((f".{name}", part) for name, part in vars(value).items())
