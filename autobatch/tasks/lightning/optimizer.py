"""What `configure_optimizers` of a module returns, at the rate and for the length that a trial asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import TaskError
from .hooks import call_hook, end_backward
from .library import overrides, part_of_library
from .stand_in import TrainerStandIn

# Where Lightning's own finder looks for the rate, in its order.
RATE_NAMES = ("lr", "learning_rate")
# What a schedule keeps in a parameter group that is a rate, or a share of one that must follow it.
_RATES_OF_GROUP = ("lr", "initial_lr", "max_lr", "min_lr")
_RATES_OF_SCHEDULE = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateIn:
    """Where the learning rate is set.

    Attributes:
        name: of the attribute, or the hyperparameter; None where it is in the optimizer's groups alone.
        lr: what it is today; of several groups that of the first, whose ratios are kept.
    """

    name: str | None
    lr: float


@dataclass(frozen=True, slots=True)
class Configured:
    """What `configure_optimizers` returned."""

    optimizer: torch.optim.Optimizer
    schedules: list[Any]


def configured(module: Any, root: str) -> Configured:
    """The module's one optimizer and its schedules, as the library reads them.

    Raises:
        TaskError: there is none, or more than one.
    """
    made = module.configure_optimizers()
    if made is None:
        raise TaskError(
            "configure_optimizers() returns None, so nothing would be trained: return an optimizer, as "
            "`return torch.optim.AdamW(self.parameters(), lr=self.lr)`"
        )
    optimizers, schedulers, monitor = part_of_library(root, "core.optimizer._configure_optimizers")(made)
    configs = part_of_library(root, "core.optimizer._configure_schedulers_automatic_opt")(schedulers, monitor)
    if len(optimizers) != 1:
        names = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
        raise TaskError(
            f"configure_optimizers() returns {len(optimizers)} optimizers ({names}): a search moves one rate, of one "
            "optimizer. Return one whose parameter groups are what those have ([{'params': ..., 'lr': lr}, {'params': "
            "..., 'lr': 10 * lr}]), whose ratios are kept; for networks that train in turn, write a task file "
            "(docs/task-files.md)"
        )
    return Configured(optimizers[0], configs)


def holders(module: Any, name: str) -> Iterator[Any]:
    """What holds an attribute of that name: the module's hyperparameters, and the module itself."""
    hparams = getattr(module, "hparams", None)
    if isinstance(hparams, Mapping) and name in hparams:
        yield hparams
    if name in vars(module) or (hasattr(type(module), name) and not callable(getattr(module, name))):
        yield module


def value_of(module: Any, name: str) -> Any:
    """What an attribute or hyperparameter of that name holds; None where there is none."""
    for holder in holders(module, name):
        return holder[name] if isinstance(holder, Mapping) else getattr(holder, name)
    return None


def put(module: Any, name: str, value: Any) -> None:
    """Set an attribute of that name wherever it is held."""
    for holder in list(holders(module, name)):
        if isinstance(holder, Mapping):
            holder[name] = value  # type: ignore[index]  # Lightning's AttributeDict
        else:
            setattr(holder, name, value)


def rate_in(module: Any, root: str) -> RateIn:
    """Where the rate of a module is set, found by setting it; the module is left with another optimizer's hooks.

    Raises:
        TaskError: the optimizer has no rate.
    """
    for name in RATE_NAMES:
        before = value_of(module, name)
        if not isinstance(before, (int, float)) or isinstance(before, bool) or not before > 0:
            continue
        once = rates_of(configured(module, root).optimizer)
        put(module, name, 2 * before)
        try:
            twice = rates_of(configured(module, root).optimizer)
        finally:
            put(module, name, before)
        if once != twice:
            return RateIn(name=name, lr=float(before))
    rates = [rate for rate in rates_of(configured(module, root).optimizer) if rate > 0]
    if not rates:
        raise TaskError("configure_optimizers() returns an optimizer without a learning rate: give it one")
    return RateIn(name=None, lr=rates[0])


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rates of an optimizer's groups, whatever a schedule has made of them."""
    return [_rate_of(group) for group in optimizer.param_groups]


def _rate_of(group: Mapping[str, Any]) -> float:
    """The rate of a group whatever a schedule has made of it: of `OneCycleLR` its highest."""
    return float(group.get("max_lr", group.get("initial_lr", group.get("lr"))) or 0.0)


def unscheduled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same, at the rate that it was made with: a schedule sets its first rate as it is made."""
    for group in optimizer.param_groups:
        if "lr" in group:
            group["lr"] = _rate_of(group)
    return optimizer


def at_rate(module: Any, root: str, where: RateIn, lr: float) -> Configured:
    """What `configure_optimizers` makes at the rate `lr`."""
    if where.name is not None:
        put(module, where.name, lr)
        return configured(module, root)
    return scaled(configured(module, root), lr / where.lr)


def scaled(made: Configured, factor: float) -> Configured:
    """The same, with all rates multiplied by a factor: those of the groups, and those that schedules start from."""
    for group in made.optimizer.param_groups:
        for name in _RATES_OF_GROUP:
            if isinstance(group.get(name), (int, float)):
                group[name] = group[name] * factor
    for schedule in _with_parts(config.scheduler for config in made.schedules):
        for name in _RATES_OF_SCHEDULE:
            rates = vars(schedule).get(name)
            if isinstance(rates, list):
                setattr(schedule, name, [rate * factor for rate in rates])
    return made


def _with_parts(schedules: Iterable[Any], depth: int = 3) -> Iterator[Any]:
    for schedule in schedules:
        yield schedule
        parts = getattr(schedule, "_schedulers", ()) if depth else ()
        yield from _with_parts(parts if isinstance(parts, (list, tuple)) else (), depth - 1)


def moved_to(optimizer: torch.optim.Optimizer, made: Configured) -> list[Any]:
    """The schedules of `made`, which was made last, set to work on an optimizer that was made before it.

    Raises:
        TaskError: the two optimizers are not of the same parameter groups.
    """
    mine = {frozenset(map(id, group["params"])): group for group in optimizer.param_groups}
    theirs = [frozenset(map(id, group["params"])) for group in made.optimizer.param_groups]
    if set(mine) != set(theirs):
        raise TaskError(
            "configure_optimizers() returns other parameter groups at its second call than at its first: let it depend "
            "on the module alone"
        )
    # In the order that the schedule goes by.
    optimizer.param_groups[:] = [mine[ids] for ids in theirs]
    for group, made_group in zip(optimizer.param_groups, made.optimizer.param_groups, strict=True):
        group.update({name: value for name, value in made_group.items() if name != "params"})
    for schedule in _with_parts(config.scheduler for config in made.schedules):
        for name, value in list(vars(schedule).items()):
            if value is made.optimizer:
                setattr(schedule, name, optimizer)
    return made.schedules


class Schedules:
    """The schedules of a module, as one with a `step()` for each optimizer step: each at its interval.

    Args:
        module: whose they are.
        root: its library.
        configs: of the library, as it reads them.
    """

    def __init__(self, module: Any, root: str, configs: list[Any]) -> None:
        self.steps = self.epochs = 0
        self._module = module
        self._has_own_step = overrides(module, root, "lr_scheduler_step")
        self.configs = configs
        self._schedulers = [config.scheduler for config in configs]
        self._intervals = [(config.interval, config.frequency) for config in configs]

    def step(self) -> None:
        self.steps += 1
        self._step("step", self.steps)
        over = self._module.trainer.epochs_by(self.steps)
        while self.epochs < over:
            self.epochs += 1
            self._step("epoch", self.epochs)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "epochs": self.epochs, "parts": [one.state_dict() for one in self._schedulers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.epochs = state["steps"], state["epochs"]
        for one, own in zip(self._schedulers, state["parts"], strict=True):
            one.load_state_dict(own)

    def _step(self, interval: str, count: int) -> None:
        for schedule, (own, frequency) in zip(self._schedulers, self._intervals, strict=True):
            if own != interval or count % frequency:
                continue
            if self._has_own_step:
                self._module.lr_scheduler_step(schedule, None)
            else:
                schedule.step()


class BeforeStep:
    """What happens to the gradient between the backward pass and the optimizer's step: hooks, and the clip.

    Args:
        module: that is trained. It refers to the optimizer weakly, so that this is no ring.
        root: its library.
        lr: the rate that the optimizer was made at.
        clips: whether the gradient is clipped here.
    """

    def __init__(self, module: nn.Module, root: str, lr: float, *, clips: bool) -> None:
        self.module, self.lr = module, lr
        self._root, self._clips = root, clips

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> BeforeStep:
        """The one that was registered with an optimizer."""
        return next(hook for hook in optimizer._optimizer_step_pre_hooks.values() if isinstance(hook, cls))

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not _has_gradients(optimizer):
            return
        module: Any = self.module
        trainer: TrainerStandIn = module.trainer
        end_backward(module, self._root)
        call_hook(module, self._root, "on_before_optimizer_step", optimizer)
        if self._clips:
            module._current_fx_name = "configure_gradient_clipping"
            module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            module._current_fx_name = None


class AfterStep:
    """The hook that is called while the gradients that were stepped on are still there."""

    def __init__(self, module: nn.Module, root: str) -> None:
        self._module, self._root = module, root

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _has_gradients(optimizer):
            call_hook(self._module, self._root, "on_before_zero_grad", optimizer)


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of it is one of training: a schedule is tried out on steps without gradients."""
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
