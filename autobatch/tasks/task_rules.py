"""What a task may contain, and what is wrong with it, as far as that can be checked without calling anything.

Problems are sentences, never exceptions, so that all of them can be listed at once. A value is checked for its type
and, if that is right, for its value. It is never compared or printed in another way (see shown.py).
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_args

from torch import nn
from torch.utils.data import DataLoader

from ..core.plan import LEAST_LR, MOST_LR, MOST_SAMPLES, Direction, Precision
from .shown import is_a, shown

# The positional parameters with which each function is called.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "model": (),
    "train_data": (),
    "val_data": (),
    "test_data": (),
    "loss": ("model", "batch"),
    "weight": ("batch",),
    "metric": ("model", "batch"),
    "evaluate": ("model", "loader"),
    "optimizer": ("model", "lr"),
    "scheduler": ("optimizer", "total_steps"),
    "before_step": ("batches",),
    "after_step": ("model", "step"),
    "training_step": ("model", "batch", "scale"),
    "collate": ("samples",),
    "train_loader": ("batch_size", "seed"),
    "sample_size": ("sample",),
}
REQUIRED = ("model", "train_data", "val_data")

# The names of the same things in other tools that are too different from ours to be found by similarity.
_OTHER_NAMES = {
    "validation_data": "val_data",
    "valid_data": "val_data",
    "training_data": "train_data",
    "clip_grad": "clip_grad_norm",
    "gradient_clip_val": "clip_grad_norm",
    "collate_fn": "collate",
    "loss_fn": "loss",
    "lr_scheduler": "scheduler",
}

# DataLoader arguments that autobatch sets itself, and what to write instead.
_OWNED_LOADER_ARGUMENTS = {
    "dataset": "return it from train_data() and val_data()",
    "batch_size": "it is what autobatch searches; put today's value into `baseline`",
    "shuffle": "training data is shuffled by the trial's seed",
    "sampler": "write train_loader(batch_size, seed) for your own sampler",
    "batch_sampler": "write train_loader(batch_size, seed) for your own sampler",
    "generator": "the order of the data is a function of the trial's seed",
    "drop_last": "every training batch is whole, every validation sample is scored",
    "collate_fn": "define collate(samples)",
}

_SETTINGS = (
    "direction",
    "precision",
    "channels_last",
    "compile",
    "accumulation",
    "clip_grad_norm",
    "loader",
    "baseline",
    "name",
    "path",
    "remarks",
)
# A file may not set `path`, which is its own place, and `remarks`, which come from code that makes a task.
FILE_NAMES = frozenset({*PARAMETERS, *_SETTINGS} - {"path", "remarks"})
# Fields that may be None. A required one that is None is missing, and is reported as such.
_MAY_BE_NONE = frozenset({*PARAMETERS, "clip_grad_norm", "baseline", "path"} - {"loss", "metric", "optimizer"})


def missing(values: Mapping[str, Any], defined: Iterable[str]) -> list[str]:
    required = [name for name in REQUIRED if name != "train_data" or values.get("train_loader") is None]
    absent = [name for name in required if values.get(name) is None]
    if not absent:
        return []
    names = ", ".join(defined)
    return [f"it must define {', '.join(absent)}; it defines {names or 'no functions'}"]


def misspellings(module: ModuleType, values: Mapping[str, Any]) -> list[str]:
    """A sentence for each name that is nearly one of ours, has the same kind of value, and would be ignored."""
    problems = []
    unset = FILE_NAMES - set(values)
    for name, value in vars(module).items():
        if name.startswith("_") or name in FILE_NAMES or value is None:
            continue
        # The name comes first: a value is only looked at if its name suggests it.
        meant = next((known for known in _close_names(name, unset) if _stands_for(module, value, known)), None)
        if meant is not None:
            problems.append(
                f"{name} would be ignored; did you mean {meant}? Rename it, or call it _{name} if it is a helper"
            )
    return problems


def _close_names(name: str, known: frozenset[str]) -> list[str]:
    """The names in `known` that `name` may stand for, the most likely first."""
    # Assumed: 0.8 accepts "optimiser" (0.89) and "test_dataset" (0.86), and ignores "make_model" (0.67).
    close = difflib.get_close_matches(name.lower(), known, n=len(known) or 1, cutoff=0.8)
    other = _OTHER_NAMES.get(name)
    return [other, *close] if other in known else close


def _stands_for(module: ModuleType, value: Any, known: str) -> bool:
    if known in PARAMETERS:
        return type(value) is FunctionType and value.__module__ == module.__name__
    return _setting_problem(known, value) is None


def value_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, value in values.items():
        if value is None and name in _MAY_BE_NONE:
            continue
        problem = _function_problem(name, value) if name in PARAMETERS else _setting_problem(name, value)
        if problem:
            problems.append(problem)
    baseline = values.get("baseline")
    if (
        is_a(baseline, Mapping)
        and values.get("accumulation") is False
        and _is_count(steps := baseline.get("accumulation_steps"))  # type: ignore[union-attr]
        and steps > 1
    ):
        problems.append("baseline has accumulation_steps, but accumulation = False says that a batch is never split")
    return problems


def _function_problem(name: str, value: Any) -> str | None:
    parameters = PARAMETERS[name]
    call = f"{name}({', '.join(parameters)})"
    if is_a(value, nn.Module) and name == "model":
        return (
            f"model must be a function that returns a new module at each call; found a {type(value).__name__}: "
            f"every trial would go on training its weights; write `def model(): return {type(value).__name__}(...)`"
        )
    if is_a(value, nn.Module) and type(value).__module__.startswith("torch.nn."):
        return (
            f"{name} must be a function {call}; found the module {type(value).__name__}: write "
            f"`def {call}: x, y = batch; return criterion(model(x), y)`"
        )
    if not callable(value):
        return f"{name} must be a function {call}; found {shown(value)}"
    try:
        signature = inspect.signature(value)
    except Exception:  # noqa: BLE001  # functions in C may have no signature, and a proxy may raise anything
        return None
    try:
        signature.bind(*parameters)
    except TypeError as error:
        return f"{name} is called as {call}; found {name}{_as_written(signature)}: {error}"
    return None


def _as_written(signature: inspect.Signature) -> str:
    """A signature with its defaults in a few words each, and without annotations, which are code too."""
    empty = inspect.Parameter.empty
    parameters = [
        parameter.replace(
            annotation=empty, default=empty if parameter.default is empty else _AsText(shown(parameter.default))
        )
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters))


class _AsText(str):
    """Text that is printed as it is where Python uses the repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _is_number(value: Any) -> bool:
    if not is_a(value, Real) or is_a(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above 1.8e308
        return False


def _is_count(value: Any) -> bool:
    return is_a(value, int) and not is_a(value, bool) and value >= 1


def _setting_problem(name: str, value: Any) -> str | None:
    """What is wrong with the value of a setting; None if nothing is."""
    if name in {"direction", "precision"}:
        allowed = get_args(Direction if name == "direction" else Precision)
        usable = is_a(value, str) and value in allowed
        return None if usable else _with_hint(f"{name} must be one of", value, allowed)
    if name in {"channels_last", "compile", "accumulation"}:
        return None if is_a(value, bool) else f"{name} must be True or False; found {shown(value)}"
    if name == "clip_grad_norm":
        usable = _is_number(value) and value > 0
        return None if usable else f"clip_grad_norm must be a number above zero; found {shown(value)}"
    if name == "name":
        usable = is_a(value, str) and value.strip() != ""
        return None if usable else f"name must be a text that is not empty; found {shown(value)}"
    if name == "remarks":
        usable = is_a(value, tuple) and all(is_a(remark, str) for remark in value)
        return None if usable else f"remarks must be a tuple of texts; found {shown(value)}"
    if name == "path":
        return None if is_a(value, Path) else f"path must be a pathlib.Path; found {shown(value)}"
    return _loader_problem(value) if name == "loader" else _baseline_problem(value)


_LONGEST_WORD = 60  # characters that are compared with the allowed words. Assumed: each of those is shorter.


def _with_hint(rule: str, value: Any, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(value[:_LONGEST_WORD].lower(), names, n=1) if is_a(value, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{rule} {', '.join(map(repr, names))}; found {shown(value)}{hint}"


def _loader_problem(loader: Any) -> str | None:
    if not is_a(loader, Mapping):
        return f"loader must be a dict of DataLoader arguments; found {shown(loader)}"
    allowed = set(inspect.signature(DataLoader).parameters) - set(_OWNED_LOADER_ARGUMENTS)
    problems = []
    for name in loader:
        if is_a(name, str) and name in _OWNED_LOADER_ARGUMENTS:
            problems.append(f"loader must not set {name!r}: {_OWNED_LOADER_ARGUMENTS[name]}")
        elif not is_a(name, str) or name not in allowed:
            problems.append(_with_hint("loader takes the DataLoader arguments", name, sorted(allowed)))
    return "; ".join(problems) or None


def _baseline_problem(baseline: Any) -> str | None:
    rule = 'baseline must be a dict such as {"batch_size": 32, "lr": 1e-3, "accumulation_steps": 1}'
    if not is_a(baseline, Mapping):
        return f"{rule}; found {shown(baseline)}"
    known = ("batch_size", "lr", "accumulation_steps")
    problems = [_with_hint("its keys are", key, known) for key in baseline if not is_a(key, str) or key not in known]
    problems += [f"{key!r} is missing" for key in ("batch_size", "lr") if key not in baseline]
    for key in ("batch_size", "accumulation_steps"):
        value = baseline.get(key, 1)
        if not _is_count(value):
            problems.append(f"{key!r} must be a whole number of at least 1; found {shown(value)}")
        elif value > MOST_SAMPLES:
            problems.append(f"{key!r} must be at most {MOST_SAMPLES}; found {shown(value)}")
    sizes = [size for key in ("batch_size", "accumulation_steps") if _is_count(size := baseline.get(key, 1))]
    if max(sizes, default=1) <= MOST_SAMPLES < math.prod(sizes):
        problems.append(f"batch_size x accumulation_steps must be at most {MOST_SAMPLES}; found {math.prod(sizes)}")
    lr = baseline.get("lr", 1.0)
    if not _is_number(lr) or lr <= 0:
        problems.append(f"'lr' must be a number above zero; found {shown(lr)}")
    elif not LEAST_LR <= lr <= MOST_LR:
        problems.append(f"'lr' must lie between {LEAST_LR:g} and {MOST_LR:g}; found {shown(lr)}")
    return f"{rule}: {'; '.join(problems)}" if problems else None
