"""A module's own steps and hooks, in the order in which Lightning calls them: of training, and of an evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import TaskError
from ..data import Collated, to_device
from .hooks import call_hook, end_backward
from .library import overrides, part_of_library
from .loaders import Parts
from .monitor import Score
from .stand_in import TrainerStandIn


def transferred(module: Any, root: str, batch: Any, loader: int = 0) -> Any:
    """The batch after the hooks around its transfer, those of the data module or else the module's."""
    of_data = module.trainer.datamodule
    for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
        if of_data is not None and overrides(of_data, root, name, base="LightningDataModule"):
            owner = of_data
        elif overrides(module, root, name):
            owner = module
        else:
            continue
        device = [module.device] if name == "transfer_batch_to_device" else []
        batch = getattr(owner, name)(batch, *device, loader)
    return batch


# -- training ---------------------------------------------------------------------------------------------------------


def training_loss(module: Any, root: str, batch: Any) -> Tensor:
    """The loss of one micro-batch, by the module's own `training_step`.

    Raises:
        TaskError: it returns no loss.
    """
    trainer: TrainerStandIn = module.trainer
    now = trainer._now
    _know_metrics(module)
    now.stage = "train"
    end_backward(module, root)
    _end_batch(module, root)
    if not trainer.has_started:
        trainer.has_started = True
        for name in ("on_fit_start", "on_train_start"):
            call_hook(module, root, name)
        call_hook(module, root, "on_train_epoch_start")
    batch = transferred(module, root, batch)
    results = trainer._results
    results.batch, results.batch_size, results.dataloader_idx = batch, None, None
    index = trainer.batch_in_epoch
    call_hook(module, root, "on_train_batch_start", batch, index)
    module._current_fx_name = "training_step"
    try:
        output = module.training_step(*_arguments(root, module.training_step, batch, index))
    finally:
        module._current_fx_name = None
        results.batch = results.batch_size = None
    trainer.batches += 1
    trainer.batch_in_epoch += 1
    trainer.samples += _size_of(root, batch)
    loss = _loss_in(module, output)
    call_hook(module, root, "on_before_backward", loss)
    now.waits_for_backward = True
    if overrides(module, root, "on_train_batch_end"):
        now.ended_batch = (output, batch, index)
    return loss


def _know_metrics(module: Any) -> None:
    """Have `self.log` look for the module's metrics once in a process: it knows them by their identity.

    A trial that was paused brings that knowledge from the process before.
    """
    now = module.trainer._now
    if not now.knows_metrics:
        now.knows_metrics, module._metric_attributes = True, None


def _loss_in(module: Any, output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None and not isinstance(output, Mapping):
        # Lightning leaves such a batch out: its loss is zero, and so is its gradient.
        parts = [parameter.flatten()[:1].sum() * 0.0 for parameter in module.parameters() if parameter.requires_grad]
        return torch.stack(parts).sum()
    if not isinstance(loss, Tensor):
        found = f"a dict of {', '.join(map(repr, output))}" if isinstance(output, Mapping) else type(output).__name__
        raise TaskError(
            f"training_step must return the loss, a tensor or a dict with one as 'loss'; it returned {found}"
        )
    if loss.ndim and loss.numel() == 1:
        loss = loss.squeeze()
    return loss


def _arguments(root: str, step: Any, batch: Any, index: int, loader: int | None = None) -> list[Any]:
    takes = part_of_library(root, "utilities.signature_utils.is_param_in_hook_signature")
    found = [batch]
    if takes(step, "batch_idx", min_args=2):
        found.append(index)
    if loader is not None and takes(step, "dataloader_idx", min_args=3):
        found.append(loader)
    return found


def _size_of(root: str, batch: Any) -> int:
    try:
        return int(part_of_library(root, "utilities.data.extract_batch_size")(batch))
    except Exception:  # noqa: BLE001  # Lightning's own error class: a batch of nothing that it knows the size of
        return 1


def _end_batch(module: Any, root: str) -> None:
    now = module.trainer._now
    if now.ended_batch is not None:
        ended, now.ended_batch = now.ended_batch, None
        call_hook(module, root, "on_train_batch_end", *ended)


def end_step(module: Any, root: str, step: int) -> None:
    """What follows an optimizer step: its batch is over, and maybe its epoch."""
    trainer: TrainerStandIn = module.trainer
    trainer.step = step + 1
    _end_batch(module, root)
    over = trainer.epochs_by(trainer.step)
    while trainer.epoch < over:
        call_hook(module, root, "on_train_epoch_end")
        trainer._results.reset()
        trainer.epoch += 1
        trainer.batch_in_epoch = 0
        if trainer.step < trainer.total_steps:
            call_hook(module, root, "on_train_epoch_start")


# -- evaluation -------------------------------------------------------------------------------------------------------


def logged_in_validation(module: Any, root: str, batches: Iterable[Collated]) -> dict[str, Any]:
    """What the module logs over an evaluation, each aggregated as Lightning does, by its name.

    The module is in eval mode and no gradient is kept, which is the caller's part.
    """
    trainer: TrainerStandIn = module.trainer
    now = trainer._now
    _know_metrics(module)
    # Read once an evaluation; a training's own metrics go on afterwards.
    before, now.stage, now.results["val"] = now.stage, "val", None
    results = trainer._results
    indices: dict[int, int] = {}
    one: int | None
    synced = _metrics_alone(module)
    several = False
    try:
        for name in ("on_validation_model_eval", "on_validation_start", "on_validation_epoch_start"):
            call_hook(module, root, name)
        for batch, _ in batches:
            parts = batch.parts if isinstance(batch, Parts) else ((0, batch),)
            several = several or (isinstance(batch, Parts) and batch.loaders > 1)
            for loader, part in parts:
                index = indices[loader] = indices.get(loader, -1) + 1
                _validate(module, root, part, index, loader if several else None)
        call_hook(module, root, "on_validation_epoch_end")
        logged: dict[str, Any] = {}
        for one in [*sorted(indices), None] if several else [None]:
            results.dataloader_idx = one
            logged |= results.metrics(on_step=False)["callback"]
        now.callback_metrics = dict(logged)
        call_hook(module, root, "on_validation_end")
        call_hook(module, root, "on_validation_model_train")
        return logged
    finally:
        for metric, on_compute, to_sync in synced:
            metric.sync_on_compute, metric._to_sync = on_compute, to_sync
        # Metrics of the module's own that were logged begin anew, as after an epoch.
        results.dataloader_idx = None
        results.reset()
        now.stage, now.results["val"] = before, None


def _metrics_alone(module: Any) -> list[tuple[Any, bool, bool]]:
    """Have torchmetrics' objects compute without the other ranks, of which none evaluates; what they were set to."""
    kind = getattr(sys.modules.get("torchmetrics"), "Metric", None)
    found = [] if kind is None else [one for one in module.modules() if isinstance(one, kind)]
    before = [(one, one.sync_on_compute, one._to_sync) for one in found]
    for one in found:
        one.sync_on_compute = one._to_sync = False
    return before


def _validate(module: Any, root: str, batch: Any, index: int, loader: int | None) -> None:
    batch = transferred(module, root, batch, loader or 0)
    results = module.trainer._results
    results.batch, results.batch_size, results.dataloader_idx = batch, None, loader
    call_hook(module, root, "on_validation_batch_start", batch, index, loader or 0)
    module._current_fx_name = "validation_step"
    try:
        output = module.validation_step(*_arguments(root, module.validation_step, batch, index, loader))
    finally:
        module._current_fx_name = None
    call_hook(module, root, "on_validation_batch_end", output, batch, index, loader or 0)
    results.batch = results.batch_size = results.dataloader_idx = None


def score_in(logged: Mapping[str, Any], score: Score, logged_in_training: Iterable[str]) -> float:
    """The monitored metric.

    Raises:
        TaskError: it was not logged.
    """
    if score.monitor in logged:
        return float(logged[score.monitor])
    names = ", ".join(sorted(logged)) or "nothing"
    if score.monitor in set(logged_in_training):
        raise TaskError(
            f"{score.monitor} is logged in training and not in validation, and a score is of data that was not trained "
            f"on; validation logs {names}: name one of those as monitor="
        )
    raise TaskError(
        f"{score.monitor} is the score, and is never logged in validation, which logs {names}: log it in "
        f'validation_step with self.log("{score.monitor}", ...), or name another one as monitor='
    )


def forward_alone(module: Any, root: str, batch: Any) -> Tensor:
    """A forward pass without gradients, as prediction has it; a zero that says that it ran."""
    batch = transferred(module, root, to_device(batch, module.device))
    if overrides(module, root, "predict_step"):
        module.predict_step(*_arguments(root, module.predict_step, batch, 0))
    else:
        module.trainer._now.stage = "val"
        module._current_fx_name = "validation_step"
        try:
            module.validation_step(*_arguments(root, module.validation_step, batch, 0))
        finally:
            module._current_fx_name = None
            module.trainer._now.stage = "train"
            module.trainer._now.results["val"] = None
    return torch.zeros((), device=module.device)
