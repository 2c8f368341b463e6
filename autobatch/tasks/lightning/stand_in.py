"""What a module finds as `self.trainer` in a trial: not Lightning's Trainer, but an object that answers what it would.

Its own attributes say where in the training a trial stands, and travel with it in its checkpoint. What no checkpoint
needs, or could hold, is in `_now`.
"""

from __future__ import annotations

import types
import weakref
from typing import Any

import torch
from torch import nn

from ...errors import TaskError
from .library import part_of_library
from .settings import TrainerSettings

# The length of the schedule where nobody has said it yet. Assumed: any would do, since it is made again then.
UNSAID_STEPS = 1000


class NotInTrials(TaskError, AttributeError):
    """A part of Lightning's Trainer that a trial does without."""


class TrainerStandIn:
    """The `trainer` of one trial's module.

    Args:
        root: the library that the module is of.
        module: the module; not kept alive by this.
        settings: of the user's Trainer.
        datamodule: the user's, or None.
        train_size: samples of the training data; None where nobody knows.
    """

    def __init__(
        self, root: str, module: nn.Module, settings: TrainerSettings, datamodule: Any, train_size: int | None
    ) -> None:
        self._now: Any
        self.total_steps = UNSAID_STEPS
        self.step = self.batches = self.batch_in_epoch = self.epoch = self.samples = 0
        self.has_started = self.has_length = False
        # Opaque to checkpoints: a module of the standard library's makes it.
        self._now = types.SimpleNamespace(
            root=root,
            module=weakref.ref(module),
            settings=settings,
            datamodule=datamodule,
            train_size=train_size,
            stage="train",
            results={"train": None, "val": None},
            # Weak, as both lead back to the module.
            optimizer=lambda: None,
            schedules=lambda: None,
            logger=None,
            callback_metrics={},
            waits_for_backward=False,
            knows_metrics=False,
            ended_batch=None,
        )

    # -- where it stands ----------------------------------------------------------------------------------------------

    def begin(self, total_steps: int) -> None:
        """Have the training be so long."""
        self.total_steps, self.has_length = max(1, total_steps), True

    def epochs_by(self, step: int) -> int:
        """How many epochs are over after so many optimizer steps.

        Of a Trainer with `max_epochs` a trial is all of them in short, so that a schedule over epochs spans the trial
        as it spans the training. Else, and where there is no schedule, an epoch is once through the data.
        """
        settings, size = self._now.settings, self._now.train_size
        if self.has_length and settings.max_epochs is not None and settings.max_steps is None:
            return int(step * settings.max_epochs // self.total_steps)
        return self.samples // size if size else 0

    @property
    def current_epoch(self) -> int:
        return self.epoch

    @property
    def global_step(self) -> int:
        return self.step

    @property
    def estimated_stepping_batches(self) -> int:
        return self.total_steps

    @property
    def max_steps(self) -> int:
        if self._now.settings.max_steps is None:
            return -1
        return self.estimated_stepping_batches

    @property
    def max_epochs(self) -> int | None:
        if self._now.settings.max_steps is not None:
            return -1
        epochs: int | None = self._now.settings.max_epochs
        return epochs

    @property
    def num_training_batches(self) -> int:
        steps = self.estimated_stepping_batches * self.accumulate_grad_batches
        return max(1, steps // (self._now.settings.max_epochs or 1))

    # -- what the user has set ----------------------------------------------------------------------------------------

    @property
    def accumulate_grad_batches(self) -> int:
        return int(self._now.settings.accumulation_steps)

    @property
    def gradient_clip_val(self) -> float | None:
        largest: float | None = self._now.settings.clip_val
        return largest

    @property
    def gradient_clip_algorithm(self) -> Any:
        if self._now.settings.clip_val is None:
            return None
        return part_of_library(self._now.root, "utilities.GradClipAlgorithmType")(self._now.settings.clip_algorithm)

    @property
    def precision(self) -> str:
        return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self._now.settings.precision]

    @property
    def datamodule(self) -> Any:
        return self._now.datamodule

    @property
    def lightning_module(self) -> Any:
        return self._now.module()

    @property
    def model(self) -> Any:
        return self._now.module()

    @property
    def optimizers(self) -> list[Any]:
        optimizer = self._now.optimizer()
        return [] if optimizer is None else [optimizer]

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        schedules = self._now.schedules()
        return [] if schedules is None else list(schedules.configs)

    # -- one process, that trains or validates ------------------------------------------------------------------------

    is_global_zero = True
    world_size = num_devices = num_nodes = 1
    global_rank = local_rank = node_rank = 0
    min_epochs = min_steps = None
    sanity_checking = testing = predicting = barebones = fast_dev_run = False
    overfit_batches = 0.0
    log_every_n_steps = 50
    check_val_every_n_epoch = 1
    should_stop = False
    interrupted = False
    progress_bar_callback = early_stopping_callback = checkpoint_callback = None
    log_dir = None

    @property
    def training(self) -> bool:
        return bool(self._now.stage == "train")

    @property
    def validating(self) -> bool:
        return bool(self._now.stage == "val")

    @property
    def evaluating(self) -> bool:
        return self.validating

    @property
    def callbacks(self) -> list[Any]:
        return []

    @property
    def callback_metrics(self) -> dict[str, Any]:
        return dict(self._now.callback_metrics)

    logged_metrics = progress_bar_metrics = callback_metrics

    @property
    def logger(self) -> Any:
        """One that takes everything and writes nothing."""
        if self._now.logger is None:
            self._now.logger = part_of_library(self._now.root, "loggers.logger.DummyLogger")()
        return self._now.logger

    @property
    def loggers(self) -> list[Any]:
        return [self.logger]

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a trial is one of many."""

    # -- what the library asks of it ----------------------------------------------------------------------------------

    @property
    def _results(self) -> Any:
        """What `self.log` writes into: the library's own collection, which knows how a metric is aggregated."""
        results, stage = self._now.results, self._now.stage
        if results[stage] is None:
            kind = part_of_library(self._now.root, "trainer.connectors.logger_connector.result._ResultCollection")
            results[stage] = kind(training=stage == "train")
        return results[stage]

    @property
    def _logger_connector(self) -> Any:
        return _Connector()

    @property
    def _accelerator_connector(self) -> Any:
        return types.SimpleNamespace(is_distributed=False)

    @property
    def strategy(self) -> Any:
        module = self._now.module()
        return _Strategy(self.optimizers, next(module.parameters()).device if module is not None else None)

    @property
    def precision_plugin(self) -> Any:
        return _Precision()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotInTrials(
            f"the module asks for `trainer.{name}`, which there is none of in a trial: its steps are run without "
            "Lightning's Trainer. Do without it where `trainer` lacks it, as by getattr(self.trainer, "
            f"{name!r}, None)"
        )


class _Connector:
    """Of the Trainer's connectors what `self.log` calls."""

    _current_fx: str | None = None

    def should_reset_tensors(self, _: str) -> bool:
        return False  # they are reset where an epoch ends


class _Strategy:
    """Of the Trainer's strategy what modules call: for one process."""

    def __init__(self, optimizers: list[Any], root_device: Any) -> None:
        self._lightning_optimizers, self.root_device = optimizers, root_device
        self.is_global_zero = True

    # Static, so that it is the same each time: `self.log` compares how a metric is reduced with how it was before.
    @staticmethod
    def reduce(tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    def broadcast(self, obj: Any, *_: Any, **__: Any) -> Any:
        return obj

    def barrier(self, *_: Any, **__: Any) -> None:
        """There is nobody to wait for."""


class _Precision:
    """Of the Trainer's precision plugin what clips gradients."""

    def clip_gradients(self, optimizer: torch.optim.Optimizer, clip_val: float = 0.0, algorithm: Any = "norm") -> None:
        if clip_val <= 0:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if getattr(algorithm, "value", algorithm) == "value":
            nn.utils.clip_grad_value_(parameters, clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, clip_val)
