"""A module, its data and its Trainer's settings put together as a `Task`, which our own loop trains.

Not Lightning's: a trial is paused at any step and resumed in another process, timed step by step, and probed on the
largest samples; Lightning's loop can be stopped only from inside. What is the module's is called as Lightning calls it
(steps.py, optimizer.py); `self.trainer` is a stand-in (stand_in.py). What that leaves out is in docs/lightning.md.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.plan import LEAST_LR, MOST_LR, MOST_SAMPLES, Direction
from ...errors import TaskError
from ..data import Collated, CountingCollate, DeviceLoader, seed_everything
from ..state import preserve_generators
from ..task import Task
from .library import overrides
from .loaders import TrainData, train_data_of, val_data_of
from .monitor import Score, score_of
from .optimizer import AfterStep, BeforeStep, RateIn, Schedules, at_rate, configured, moved_to, rate_in, unscheduled
from .settings import TrainerSettings, remarks_on_callbacks, watched_by
from .stand_in import TrainerStandIn
from .steps import end_step, forward_alone, logged_in_validation, score_in, training_loss

# Hooks that take the step out of our hands, and what to do about each.
_REFUSED_HOOKS = {
    "optimizer_step": "let configure_optimizers() return a schedule for a warm-up that is done there, and "
    "on_before_optimizer_step() do what is done to gradients",
    "backward": "write what is done to the loss into training_step(), and what is done to gradients into "
    "on_after_backward()",
}
_LEFT_OUT_HOOKS = ("on_fit_end", "on_train_end", "on_save_checkpoint", "on_load_checkpoint")
_SHOWN = 2  # validation samples of the batch that shows what is logged; batch norm takes no batch of one


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a user passes, or what a file of theirs defines.

    Attributes:
        root: the library it is of.
        make: gives a module, fresh where it is made by its class.
        datamodule: of the library, or a pair of loaders; None where the module has its own.
        settings: of the Trainer.
        monitor, direction: of the score; None where nobody says.
        baseline: in place of what the module and the loader say.
        name: for titles and folders.
        path: of the file it is from.
        remarks: sentences on what was assumed.
    """

    root: str
    make: Callable[[], Any]
    datamodule: Any = None
    settings: TrainerSettings = field(default_factory=TrainerSettings)
    monitor: str | None = None
    direction: Direction | None = None
    baseline: dict[str, Any] | None = None
    name: str
    path: Path | None = None
    remarks: tuple[str, ...] = ()

    def module(self, train_size: int | None = None) -> Any:
        """A module with a stand-in for its trainer, set up to train."""
        module = self.make()
        datamodule = None if isinstance(self.datamodule, tuple) else self.datamodule
        module.trainer = TrainerStandIn(self.root, module, self.settings, datamodule, train_size)
        if datamodule is not None:
            datamodule.trainer = module.trainer
        if overrides(module, self.root, "setup"):
            module.setup("fit")
        if overrides(module, self.root, "configure_model"):
            module.configure_model()
        return module


def task_of(project: Project) -> Task:
    """The task of a project: made in the process that trains it, since its data is read for it.

    Raises:
        TaskError: listing what trials cannot do.
    """
    with preserve_generators():
        seed_everything(0)  # as `load_data` does: a split that is drawn is the same in every process
        first = project.module()
        _require_usable(project.root, first)
        train, val = _loaders(project, first)
        owners = [one for one in (project.datamodule, first) if one is not None and not isinstance(one, tuple)]
        train_data = train_data_of(train, owners)
        val_data, collate = val_data_of(val(), project.settings.limit_val_batches, train_data)
        rate = rate_in(first, project.root)
        made = configured(first, project.root)
        score = _score(project, first, val_data, collate or train_data.collate)
    trains = _Trains(project, rate, score, train_data.size)
    remarks = (*project.remarks, *project.settings.remarks, *score.assumed, *_remarks_on(project.root, first, made))
    schedules = [config for config in made.schedules if not config.reduce_on_plateau]
    by_norm = project.settings.clip_val is not None and project.settings.clip_algorithm == "norm"
    return Task(
        model=trains.model,
        train_data=None if train_data.dataset is None else partial(_same, train_data.dataset),
        train_loader=train_data.loader,
        val_data=partial(_same, val_data),
        collate=collate,
        loader=train_data.arguments,
        loss=trains.loss,
        evaluate=trains.evaluate,
        direction=score.direction,
        optimizer=trains.optimizer,
        scheduler=trains.scheduler if schedules else None,
        clip_grad_norm=project.settings.clip_val if by_norm and not _has_gradient_hooks(project.root, first) else None,
        precision=project.settings.precision,
        after_step=trains.after_step,
        baseline=project.baseline or _baseline(project, train_data, rate),
        name=project.name,
        path=project.path,
        remarks=remarks,
    )


def _same(value: Any) -> Any:
    return value


def _require_usable(root: str, module: Any) -> None:
    problems = []
    name = type(module).__name__
    if not module.automatic_optimization:
        problems.append(
            f"{name} sets automatic_optimization = False, so its training_step takes the optimizer's steps itself: "
            "there is no single step whose batch and rate could be varied. Let training_step return the loss and "
            "Lightning step, or write a task file with training_step(model, batch, scale) (docs/task-files.md)"
        )
    problems += [
        f"{name} has a {hook}() of its own, which trials do not call: {remedy}"
        for hook, remedy in _REFUSED_HOOKS.items()
        if overrides(module, root, hook)
    ]
    for hook in ("training_step", "configure_optimizers"):
        if not overrides(module, root, hook):
            problems.append(f"{name} has no {hook}(): write it")
    if not overrides(module, root, "validation_step"):
        problems.append(
            f"{name} has no validation_step(), so nothing could be scored: write one that logs a metric, as "
            'self.log("val_loss", loss)'
        )
    if len(problems) == 1:
        raise TaskError(problems[0])
    if problems:
        raise TaskError("\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, 1)))


def _has_gradient_hooks(root: str, module: Any) -> bool:
    """Whether the module looks at gradients before they are clipped, or clips them its own way."""
    hooks = ("on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping")
    return any(overrides(module, root, hook) for hook in hooks)


def _loaders(project: Project, module: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What gives the training and the validation loaders."""
    if isinstance(project.datamodule, tuple):
        train, val = project.datamodule
        return partial(_same, train), partial(_same, val)
    owner = module if project.datamodule is None else project.datamodule
    base = "LightningModule" if project.datamodule is None else "LightningDataModule"
    if not overrides(owner, project.root, "train_dataloader", base=base):
        whose = type(owner).__name__
        raise TaskError(
            f"{whose} has no train_dataloader(), so there is nothing to train on: write train_dataloader() and "
            "val_dataloader() in it, or give the data by a LightningDataModule or by two loaders "
            "(datamodule=dm, datamodule=(train_loader, val_loader))"
        )
    if project.datamodule is not None:
        owner.prepare_data()
        owner.setup("fit")
    elif overrides(owner, project.root, "prepare_data"):
        owner.prepare_data()
    val = owner.val_dataloader if overrides(owner, project.root, "val_dataloader", base=base) else partial(_same, None)
    return owner.train_dataloader, val


def _score(project: Project, module: Any, val_data: Any, collate: Any) -> Score:
    watched = (*watched_by(_own_callbacks(module)), *project.settings.watched)
    return score_of(
        project.monitor, project.direction, watched, _logged_names(project, module, val_data, collate, bool(watched))
    )


def _own_callbacks(module: Any) -> list[Any]:
    """What the module's `configure_callbacks()` adds to the Trainer's."""
    found = module.configure_callbacks()
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _logged_names(project: Project, module: Any, val_data: Any, collate: Any, is_said: bool) -> Iterable[str]:
    """What validation logs, found on its first samples where nobody names a metric."""
    if project.monitor is not None or is_said:
        return
    samples = (
        list(islice(iter(val_data), _SHOWN))
        if _is_stream(val_data)
        else [val_data[index] for index in range(min(_SHOWN, len(val_data)))]
    )
    module.eval()
    with torch.no_grad():
        batch = CountingCollate(collate)(samples)
        yield from logged_in_validation(module, project.root, [batch])
    module.train()


def _is_stream(data: Any) -> bool:
    return not hasattr(data, "__getitem__") or not hasattr(data, "__len__")


def _baseline(project: Project, train: TrainData, rate: RateIn) -> dict[str, Any] | None:
    if train.batch_size is None or not LEAST_LR <= rate.lr <= MOST_LR:
        return None
    steps = project.settings.accumulation_steps
    if train.batch_size * steps > MOST_SAMPLES:
        return None
    return {"batch_size": train.batch_size, "lr": rate.lr, "accumulation_steps": steps}


def _remarks_on(root: str, module: Any, made: Any) -> list[str]:
    found = remarks_on_callbacks(_own_callbacks(module))
    plateaus = [config.monitor for config in made.schedules if config.reduce_on_plateau]
    if plateaus:
        found.append(
            f"ReduceLROnPlateau goes by {plateaus[0]} after each epoch of the whole training; trials are shorter, and "
            "keep the rate that it begins with"
        )
    hooks = [hook for hook in _LEFT_OUT_HOOKS if overrides(module, root, hook)]
    if hooks:
        found.append(f"hooks that trials do not call: {', '.join(hooks)}")
    return found


class _Trains:
    """The functions of the task."""

    def __init__(self, project: Project, rate: RateIn, score: Score, train_size: int | None) -> None:
        self._project, self._rate, self._score, self._train_size = project, rate, score, train_size
        self._root = project.root

    def model(self) -> nn.Module:
        module: nn.Module = self._project.module(self._train_size)
        return module

    def loss(self, model: Any, batch: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward_alone(model, self._root, batch)
        return training_loss(model, self._root, batch)

    def optimizer(self, model: Any, lr: float) -> torch.optim.Optimizer:
        optimizer = unscheduled(at_rate(model, self._root, self._rate, lr).optimizer)
        model.trainer._now.optimizer = weakref.ref(optimizer)
        settings = self._project.settings
        clips = overrides(model, self._root, "configure_gradient_clipping") or (
            settings.clip_val is not None
            and (settings.clip_algorithm != "norm" or _has_gradient_hooks(self._root, model))
        )
        optimizer.register_step_pre_hook(BeforeStep(model, self._root, lr, clips=clips))
        optimizer.register_step_post_hook(AfterStep(model, self._root))
        return optimizer

    def scheduler(self, optimizer: torch.optim.Optimizer, total_steps: int) -> Schedules:
        made_at = BeforeStep.of(optimizer)
        model: Any = made_at.module
        model.trainer.begin(total_steps)
        # Made once more, now that the length is known that they may go by.
        made = at_rate(model, self._root, self._rate, made_at.lr)
        configs = [config for config in moved_to(optimizer, made) if not config.reduce_on_plateau]
        schedules = Schedules(model, self._root, configs)
        model.trainer._now.schedules = weakref.ref(schedules)
        return schedules

    def after_step(self, model: Any, step: int) -> None:
        end_step(model, self._root, step)

    def evaluate(self, model: Any, loader: Iterable[Any]) -> float:
        logged = logged_in_validation(model, self._root, _counted(loader))
        in_training = (metric.meta.name for metric in (model.trainer._now.results["train"] or {}).values())
        return score_in(logged, self._score, in_training)


def _counted(loader: Any) -> Iterable[Collated]:
    return loader.counted() if isinstance(loader, DeviceLoader) else (Collated(batch, 0) for batch in loader)
