"""The check of the optimizer and the schedule, each at two learning rates."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import TaskError
from ..tasks.task import Task
from .check_data import Findings
from .check_rates import check_schedule, check_steps, has_writers
from .check_step import some
from .gradients import clip_norm
from .made import NO_CLOSURES, arguments_of_step, hint_on_step, not_an_optimizer
from .modes import to_train
from .training import autocast


def made_optimizer(findings: Findings, model: nn.Module) -> torch.optim.Optimizer | None:
    """The task's optimizer, ready to train; None if it cannot be made."""
    task = findings.task
    with findings.attempt("optimizer(model, lr)"):
        optimizer = _require_optimizer(task.optimizer(model, task.baseline_config()[0].lr))
        to_train(optimizer)
        return optimizer
    return None


def check_optimizer(findings: Findings, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """Take a step and run the schedule, at two learning rates.

    `batch` is the one whose gradients the parameters hold; None if they hold none.
    """
    task = findings.task
    lr = task.baseline_config()[0].lr
    with findings.attempt("optimizer(model, lr)"):
        groups, doubled = optimizer.param_groups, _require_optimizer(task.optimizer(model, 2 * lr)).param_groups
        if [group.get("lr") for group in groups] == [group.get("lr") for group in doubled]:
            raise TaskError(
                f"optimizer(model, lr) must use the lr it is given; its groups have lr = "
                f"{', '.join(str(group.get('lr')) for group in groups)} for lr = {lr} as for lr = {2 * lr}"
            )
        covered = {id(parameter) for group in groups for parameter in group["params"]}
        left_out = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in covered]
        if left_out:
            findings.warnings.append(f"optimizer(model, lr) leaves out {len(left_out)} parameters ({some(left_out)})")
    has_stepped = False
    with findings.attempt("optimizer.step()", lambda error: hint_on_step(error, model)):
        if batch is not None and task.clip_grad_norm is not None:
            clip_norm(model.parameters(), task.clip_grad_norm)
        optimizer.step()
        has_stepped = True
    if not has_stepped:
        return

    def make(rate: float) -> torch.optim.Optimizer:
        made = _require_optimizer(task.optimizer(model, rate))
        to_train(made)
        return made

    scheduled = None
    if task.scheduler is not None:
        with findings.attempt("scheduler(optimizer, total_steps)", hint_on_step):
            scheduled = check_schedule(findings, make, lr)
        if scheduled is None:
            return
    if batch is not None and has_writers(task, optimizer):
        what = "training_step(model, batch, scale)" if task.after_step is None else "after_step(model, step)"
        with findings.attempt(what):
            check_steps(findings, model, make, lr, partial(_backward, task, model, batch), scheduled)


def _backward(task: Task, model: nn.Module, batch: Any) -> None:
    if task.training_step is not None:
        task.training_step(model, batch, 1.0)
        return
    with autocast(next(model.parameters()).device, task.precision):
        loss = task.loss(model, batch)
    loss.backward()


def _require_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TaskError(not_an_optimizer(optimizer))
    if needs := arguments_of_step(optimizer):
        raise TaskError(f"{type(optimizer).__name__}.step() needs {needs}: {NO_CLOSURES}")
    return optimizer
