"""Many small trainings at once: one model for each learning rate and seed, their parameters stacked into one tensor.

A small model's step is mostly the time it takes to say what to do, so a hundred of them in one `torch.vmap` cost little
more than one. What is trained is what a trial trains: the weights that `task.model()` gives under the seed, the batches
of the seed, the own loss, optimizer and schedule of the task; a test compares one of a stack with a trial. A task with
dropout draws other masks than a trial would. Not for tasks with a `training_step`, an `after_step`, an
optimizer that looks at more than one element at a time, or a model with a branch on its data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autobatch.core.plan import Plan
from autobatch.tasks.data import seed_everything, training_batches, val_loader
from autobatch.tasks.task import Task

EVAL_BATCH = 1024

Scores = list[float | None]


class Stack:
    """Models of every (learning rate, seed) under one plan, trained in step with each other.

    Attributes:
        models: a carrier for each rate: a model whose parameters are those of all seeds, (seeds, ...).
        leaves: for each parameter, the stacked tensors of all rates; what the optimizers move.
        alive: (rates, seeds), whether the loss has been finite so far.
    """

    def __init__(self, task: Task, plan: Plan, lrs: Sequence[float], seeds: Sequence[int], total_steps: int) -> None:
        self.task, self.lrs, self.seeds = task, lrs, seeds
        fresh = []
        for seed in seeds:
            seed_everything(seed)
            fresh.append(task.model())
        self.base = fresh[0].train()
        parameters = [dict(model.named_parameters()) for model in fresh]
        buffers = [dict(model.named_buffers()) for model in fresh]
        self.buffers = {
            name: torch.stack([torch.stack([each[name] for each in buffers])] * len(lrs)) for name in buffers[0]
        }
        self.models = [_carrier(fresh[0], parameters) for _ in lrs]
        carried = [dict(model.named_parameters()) for model in self.models]
        self.leaves: dict[str, list[Tensor]] = {name: [of_rate[name] for of_rate in carried] for name in carried[0]}
        self.optimizers = [task.optimizer(model, lr) for model, lr in zip(self.models, lrs, strict=True)]
        schedule = task.scheduler
        self.schedules = [schedule(optimizer, total_steps) for optimizer in self.optimizers] if schedule else []
        self.validation, data = task.val_data(), task.train_data() if task.train_data else None
        self.batches = [training_batches(task, data, plan, seed=seed) for seed in seeds]
        self.alive = torch.ones(len(lrs), len(seeds), dtype=torch.bool)

    def step(self) -> None:
        """One optimizer step of every model."""
        batch = _stacked([next(batches) for batches in self.batches])
        named = {name: torch.stack(of_rates) for name, of_rates in self.leaves.items()}
        over_seeds = torch.vmap(self._loss, randomness="different")
        losses = torch.vmap(over_seeds, in_dims=(0, 0, None), randomness="different")(named, self.buffers, batch)
        self.alive &= losses.detach().isfinite()
        losses.sum().backward()
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            if self.task.clip_grad_norm is not None:
                _clip(model, self.task.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for schedule in self.schedules:
            schedule.step()

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any) -> Tensor:
        return self.task.loss(self._forward(parameters, buffers), batch)

    def _forward(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        return lambda *inputs: functional_call(self.base, (parameters, buffers), inputs)

    def scores(self) -> list[Scores]:
        """The validation scores, [rate][seed]; None for those that have diverged."""
        self.base.eval()
        with torch.no_grad():
            found = [[self._score(rate, seed) for seed in range(len(self.seeds))] for rate in range(len(self.lrs))]
        self.base.train()
        return found

    def _score(self, rate: int, seed: int) -> float | None:
        if not self.alive[rate, seed]:
            return None
        parameters = {name: of_rates[rate][seed] for name, of_rates in self.leaves.items()}
        model = self._forward(parameters, {name: value[rate, seed] for name, value in self.buffers.items()})
        loader = val_loader(self.task, self.validation, EVAL_BATCH)
        if self.task.evaluate is not None:
            score = float(self.task.evaluate(model, [batch for batch, _ in loader]))
        else:
            values = [torch.as_tensor(self.task.metric(model, batch)).double() for batch, _ in loader]
            score = float(torch.cat(values).mean())
        return score if math.isfinite(score) else None


def train_stacked(
    task: Task, plan: Plan, lrs: Sequence[float], seeds: Sequence[int], rungs: Sequence[int]
) -> list[list[Scores]]:
    """The scores [rate][seed][rung] of a row of a table; `rungs` are optimizer steps, the last ends the schedule."""
    stack = Stack(task, plan, lrs, seeds, rungs[-1])
    curves: list[list[Scores]] = [[[] for _ in seeds] for _ in lrs]
    done = 0
    for until in rungs:
        for _ in range(until - done):
            stack.step()
        done = until
        for row, scores in zip(curves, stack.scores(), strict=True):
            for curve, score in zip(row, scores, strict=True):
                curve.append(score)
    return curves


def _carrier(model: nn.Module, parameters: Sequence[dict[str, nn.Parameter]]) -> nn.Module:
    """A copy of the model with the parameters of all, stacked, in place of its own."""
    carrier = copy.deepcopy(model)
    for name in parameters[0]:
        owner, _, leaf = name.rpartition(".")
        stacked = torch.stack([each[name].detach() for each in parameters])
        setattr(carrier.get_submodule(owner), leaf, nn.Parameter(stacked))
    return carrier


def _stacked(batches: Sequence[Any]) -> Any:
    """Batches that are tensors, or tuples of them, with one dimension more."""
    if isinstance(batches[0], Tensor):
        return torch.stack(list(batches))
    return tuple(torch.stack(parts) for parts in zip(*batches, strict=True))


def _clip(model: nn.Module, most: float) -> None:
    """`clip_grad_norm_` for each of the models stacked in one."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *([1] * (gradient.ndim - 1))))
