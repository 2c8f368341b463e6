"""A LightningModule, with its data module and its Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.plan import Direction
from ...errors import SettingError
from ..libraries import NO_LIBRARIES, libraries_of
from . import live_module
from .door import ARGUMENTS, OF_SOME, Door, GivenTask, is_a

if TYPE_CHECKING:
    from torch import nn


def _takes(given: object) -> bool:
    return any(is_a(given, root, "LightningModule") for root in ("lightning.pytorch", "pytorch_lightning"))


def _opened(
    given: nn.Module,
    *,
    datamodule: Any = None,
    trainer: Any = None,
    monitor: str | None = None,
    direction: Direction | None = None,
    **of_model: Any,
) -> GivenTask:
    import torch  # it is there where a module is

    from ..lightning.from_code import project_of_module

    if of_model and datamodule is not None:
        said = " and ".join(f"{name}=" for name in ARGUMENTS if name in of_model)
        raise SettingError(f"{said}: with datamodule= the module and its Trainer say it: leave one of them out")
    later = project_of_module(given, datamodule, trainer, monitor, direction, is_measured=bool(of_model))
    if isinstance(later, str):  # why it can only be measured: as a model without its data
        bare = live_module.DOOR.opened(given, **of_model)
        return GivenTask(
            name=bare.name, task=bare.task, is_live=True, assumed=bare.assumed, guess=bare.guess, only_measured=later
        )
    libraries = NO_LIBRARIES if torch.accelerator.is_available() else libraries_of((given, datamodule))
    return GivenTask(name=later.name, later=later, libraries=libraries)


DOOR = Door(what="a LightningModule", takes=_takes, opened=_opened, also=tuple(OF_SOME))
