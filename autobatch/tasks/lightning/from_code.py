"""A LightningModule that a verb was given in code, as a task to be made in the process that trains it."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, get_args

from torch import nn

from ...core.plan import Direction
from ...errors import SettingError
from ..carry import LiveModel
from ..later import TaskLater
from .library import overrides, require_one_library
from .project import Project, task_of
from .settings import TrainerSettings, settings_of


def project_of_module(
    module: nn.Module,
    datamodule: Any,
    trainer: Any,
    monitor: str | None,
    direction: Direction | None,
    *,
    is_measured: bool,
) -> TaskLater | str:
    """The task to be made of a module; or why it cannot be trained as it stands, in words.

    Args:
        module: the user's own object, which is not touched: it travels as bytes.
        datamodule: a LightningDataModule, or a pair of loaders; None where the module has its own.
        trainer: the user's Trainer; None for Lightning's defaults.
        monitor, direction: of the score; None where nobody says.
        is_measured: the caller says what a sample of the module's input is, by arguments that are for any model.

    Raises:
        TaskError: what is passed does not go together, or says what trials cannot do.
    """
    parts: dict[str, tuple[object, str]] = {f"the module {type(module).__name__}": (module, "LightningModule")}
    is_pair = isinstance(datamodule, (tuple, list))
    if is_pair and len(datamodule) != 2:
        raise SettingError(
            f"datamodule= is a LightningDataModule, or (train_loader, val_loader); got {len(datamodule)} loaders"
        )
    if datamodule is not None and not is_pair:
        parts["datamodule="] = (datamodule, "LightningDataModule")
    if trainer is not None:
        parts["trainer="] = (trainer, "Trainer")
    root = require_one_library(parts)
    if direction is not None and direction not in get_args(Direction):
        raise SettingError(f"direction is one of {', '.join(get_args(Direction))}; got {direction!r}")
    if datamodule is None and (is_measured or not overrides(module, root, "train_dataloader")):
        return _lacks_data(module)
    settings = TrainerSettings() if trainer is None else settings_of(trainer)
    assumed = ["each trial begins with the weights of the module that was passed, under every seed alike"]
    if trainer is None:
        assumed.append(
            "no Trainer was passed, so its defaults are assumed: 32-bit, no clipping, no accumulation (trainer=)"
        )
    project = Project(
        root=root,
        make=LiveModel(module),
        datamodule=tuple(datamodule) if is_pair else _without_trainer(datamodule),
        settings=settings,
        monitor=monitor,
        direction=direction,
        name=type(module).__name__,
        remarks=tuple(assumed),
    )
    told = {"model": module, "datamodule": project.datamodule}
    return TaskLater(name=project.name, make=partial(task_of, project), parts=told)


def _lacks_data(module: nn.Module) -> str:
    name = type(module).__name__
    return (
        f"{name} has no train_dataloader(), and no datamodule= was passed, so there is nothing to train on: pass "
        "datamodule=dm, a LightningDataModule, or datamodule=(train_loader, val_loader)"
    )


def _without_trainer(datamodule: Any) -> Any:
    """The same data module, without the Trainer that it was used with: that stays where it is."""
    if datamodule is None:
        return None
    found = copy.copy(datamodule)
    found.trainer = None
    return found
