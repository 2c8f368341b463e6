"""A Lightning project in a file: what in it is the module, the data and the Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_args

from ...core.plan import Direction
from ...errors import TaskError
from ..carry import from_bytes, to_bytes
from ..shown import is_a
from ..task import Task
from ..task_rules import value_problems
from .library import require_one_library, root_of
from .project import Project, task_of
from .settings import TrainerSettings, settings_of

_DATA_NAMES = ("datamodule",)


def project_in(module: ModuleType, file: Path) -> Task | None:
    """The task of the LightningModule that a file defines; None where it defines none.

    The file may say by a name which of several it is: `model`, `datamodule`, `trainer`, each an object, a class or a
    function without arguments, and `monitor`, `direction`, `baseline` and `name`.

    Raises:
        TaskError: there are several, or it cannot be made or trained.
    """
    from ..later import made_of

    names = vars(module)
    if not any(map(_is_lightnings, names.values())):
        return None
    if "model" in names and not _is_of(names["model"], "LightningModule"):
        return None
    if "model" not in names and not _classes(module, "LightningModule") and not _objects(names, "LightningModule"):
        return None
    return made_of(file.name, partial(_task, module, file), file)


def _is_lightnings(value: Any) -> bool:
    """Whether a name of a file is a module or a data module of Lightning's, or its class."""
    return root_of(value, "LightningModule") is not None or root_of(value, "LightningDataModule") is not None


def _is_of(value: Any, name: str) -> bool:
    """Whether something is, or makes, one of Lightning's; of a function nobody knows before it is called."""
    return type(value) is FunctionType or root_of(value, name) is not None


def _task(module: ModuleType, file: Path) -> Task:
    names = vars(module)
    make = _maker(module, file, "LightningModule", ("model",))
    assert make is not None
    first = make()
    root = require_one_library({"model": (first, "LightningModule")})
    datamodule = _datamodule(module, file, first)
    trainer = _maker(module, file, "Trainer", ("trainer",))
    settings, remarks = TrainerSettings(), []
    parts: dict[str, tuple[object, str]] = {type(first).__name__: (first, "LightningModule")}
    if datamodule is not None and not isinstance(datamodule, tuple):
        parts[type(datamodule).__name__] = (datamodule, "LightningDataModule")
    if trainer is None:
        remarks.append(
            f'{file.name} has no Trainer at its top level (what stands under `if __name__ == "__main__":` is not '
            "run), so its defaults are assumed: 32-bit, no clipping, no accumulation. `def trainer(): return "
            "L.Trainer(...)` says otherwise"
        )
    else:
        made = trainer()
        parts["trainer"] = (made, "Trainer")
        settings = settings_of(made)
    require_one_library(parts)
    if isinstance(make, partial):
        remarks.append("each trial begins with the weights of the file's `model`, under every seed alike")
    return task_of(
        Project(
            root=root,
            make=_First(first, make),
            datamodule=datamodule,
            settings=settings,
            monitor=_text(names, "monitor"),
            direction=_direction(names),
            baseline=_baseline(names),
            name=_text(names, "name") or file.stem,
            path=file,
            remarks=tuple(remarks),
        )
    )


class _First:
    """Makes modules, and gives the one that was made to look at as the first of them."""

    def __init__(self, first: Any, make: Callable[[], Any]) -> None:
        self._first, self._make = first, make

    def __call__(self) -> Any:
        first, self._first = self._first, None
        return self._make() if first is None else first


def _maker(module: ModuleType, file: Path, kind: str, said: tuple[str, ...]) -> Callable[[], Any] | None:
    """What makes the file's module, data module or Trainer; None where it defines none."""
    names = vars(module)
    for name in said:
        if name in names and _is_of(names[name], kind):
            return _maker_of(names[name], name, kind)
    objects = _objects(names, kind)
    if len(objects) > 1:
        raise _several(file, kind, list(objects), said[0])
    if objects:
        (name, value), *_ = objects.items()
        return _maker_of(value, name, kind)
    if kind == "Trainer":
        return None
    classes = _classes(module, kind)
    if len(classes) > 1:
        raise _several(file, kind, [one.__name__ for one in classes], said[0])
    return _maker_of(classes[0], classes[0].__name__, kind) if classes else None


def _several(file: Path, kind: str, found: list[str], said: str) -> TaskError:
    return TaskError(
        f"{file.name} defines {len(found)} {kind}s: {', '.join(found)}. Say which is meant by a line such as "
        f"`{said} = {found[0]}`"
    )


def _maker_of(value: Any, name: str, kind: str) -> Callable[[], Any]:
    if is_a(value, type) or type(value) is FunctionType:
        required = [
            parameter.name
            for parameter in inspect.signature(value).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if required:
            said = {"LightningModule": "model", "LightningDataModule": "datamodule", "Trainer": "trainer"}[kind]
            raise TaskError(
                f"{name} needs {', '.join(required)} to be made: give them defaults, or add a function that makes it, "
                f"as `def {said}(): return {name}({required[0]}=...)`"
            )
        make: Callable[[], Any] = value
        return make
    if kind == "LightningModule":
        return partial(from_bytes, to_bytes(value))  # the file's own stays as it is
    return partial(_same, value)


def _same(value: Any) -> Any:
    return value


def _objects(names: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The file's own objects of a class, one of several names by its first."""
    found: dict[str, Any] = {}
    for name, value in names.items():
        is_one = not is_a(value, type) and root_of(value, kind) is not None
        if is_one and all(value is not other for other in found.values()):
            found[name] = value
    return found


def _classes(module: ModuleType, kind: str) -> list[type]:
    """The classes that the file itself defines, without those that others of it derive from."""
    own = [
        value
        for value in vars(module).values()
        if is_a(value, type) and value.__module__ == module.__name__ and root_of(value, kind) is not None
    ]
    unlike: list[type] = []
    for one in own:
        if one not in unlike and not any(other is not one and issubclass(other, one) for other in own):
            unlike.append(one)
    return unlike


def _datamodule(module: ModuleType, file: Path, first: Any) -> Any:
    """The data module that the file defines, or a pair of its loaders; None where the module has its own."""
    make = _maker(module, file, "LightningDataModule", _DATA_NAMES)
    if make is not None:
        return make()
    loaders = [vars(module).get(name) for name in ("train_dataloader", "val_dataloader")]
    if not any(map(callable, loaders)):
        return None
    if not all(map(callable, loaders)):
        there = "train_dataloader" if callable(loaders[0]) else "val_dataloader"
        other = "val_dataloader" if callable(loaders[0]) else "train_dataloader"
        raise TaskError(f"{file.name} defines {there}() and no {other}(): both are needed")
    train, val = loaders
    return train(), val()  # type: ignore[misc]  # they are functions


def _text(names: Mapping[str, Any], name: str) -> str | None:
    value: Any = names.get(name)
    return value if is_a(value, str) and value.strip() else None


def _direction(names: Mapping[str, Any]) -> Direction | None:
    value = names.get("direction")
    if value is not None and value not in get_args(Direction):
        raise TaskError("; ".join(value_problems({"direction": value})))
    return value


def _baseline(names: Mapping[str, Any]) -> dict[str, Any] | None:
    value = names.get("baseline")
    if value is None:
        return None
    if problems := value_problems({"baseline": value}):
        raise TaskError("; ".join(problems))
    return dict(value)
