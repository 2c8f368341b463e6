"""Whether training uses the rate that it is passed: what the optimizer holds, step by step, at two rates.

A search over learning rates is useless if something else sets them: a schedule with its own peak, a hook that writes to
the parameter groups, an optimizer that warms up by itself. All of these show in the same place, the groups at the
moment of a step. So the check looks there, and not for the cause.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import TaskError
from ..tasks.task import Task
from .check_data import Findings
from .made import names_of, not_a_schedule
from .modes import to_train
from .rates import following, held_by, of_groups

# Resolution of the schedule's dry run. Assumed: a warm-up of 0.1 % of training is still seen.
DRY_RUN_STEPS = 1000
# Real steps at each of the two rates. Assumed: code that writes rates into the groups does so from the first step on,
# and a warm-up from zero has left it by the second.
_REAL_STEPS = 3
# The share of a doubled rate that must arrive, over all steps together: below the first figure the task is refused,
# below the second it is warned of. Assumed: below half, the searched rate matters less than the fixed part; a cosine
# that ends at a fixed tenth of the rate lets .91 through.
_ENOUGH, _PLENTY = 0.5, 0.9

Rates = Sequence[tuple[float, ...]]  # of each step, of each parameter group

_SCHEDULER = "scheduler(optimizer, total_steps)"
_OF_THE_OPTIMIZER = 'optimizer.param_groups[0]["lr"]'
_REMEDIES = {
    "OneCycleLR": f"pass OneCycleLR max_lr={_OF_THE_OPTIMIZER}",
    "CyclicLR": f"pass CyclicLR max_lr={_OF_THE_OPTIMIZER}, and as base_lr a share of it",
}


def scheduled_rates(task: Task, optimizer: torch.optim.Optimizer, total_steps: int) -> tuple[Any, Rates]:
    """The task's schedule, run to its end on an optimizer without gradients, and the rates of its steps.

    Raises:
        TaskError: it is no schedule, or it sets rates that cannot be used.
    """
    assert task.scheduler is not None
    schedule: Any = task.scheduler(optimizer, total_steps)
    if (problem := not_a_schedule(schedule)) is not None:
        raise TaskError(problem)
    # torch warns of a schedule that steps before its optimizer has. Without gradients a step changes nothing.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    to_train(optimizer)
    optimizer.step()
    rates: list[tuple[float, ...]] = []
    for step in range(total_steps):
        rates.append(held_by(optimizer))
        if not math.isfinite(total := sum(rates[-1])) or total < 0:
            raise TaskError(f"scheduler(optimizer, {total_steps}) sets the learning rate to {total} at step {step}")
        schedule.step()
    if not any(map(any, rates)):
        raise TaskError(f"scheduler(optimizer, {total_steps}) keeps the learning rate at 0 for the whole schedule")
    return schedule, rates


@dataclass(frozen=True, slots=True)
class TwoRates:
    """The rates of the same steps at `lr` and at twice `lr`.

    Attributes:
        lr: the lower one.
        once, twice: what the optimizer held at each.
        first: the number of the first step, of `DRY_RUN_STEPS`.
    """

    lr: float
    once: Rates
    twice: Rates
    first: int = 0

    def arrives(self, group: int) -> float:
        """The share of the doubling that arrives in a group's steps; 1 for a group whose rate is always zero."""
        total = sum(step[group] for step in self.once)
        change = sum(abs(after[group] - before[group]) for before, after in zip(self.once, self.twice, strict=True))
        return change / total if total else 1.0

    def only(self, step: int) -> TwoRates:
        """The rates of this step alone."""
        return TwoRates(self.lr, self.once[step : step + 1], self.twice[step : step + 1], first=step)

    def example(self, group: int) -> str:
        """The largest rate that is less than half of what it should be, in words."""
        steps = range(len(self.once))
        short = [
            at for at in steps if abs(self.twice[at][group] - self.once[at][group]) < _ENOUGH * self.once[at][group]
        ]
        step = max(short or steps, key=lambda at: self.once[at][group])
        once, twice = f"{self.once[step][group]:.4g}", f"{self.twice[step][group]:.4g}"
        return (
            f"at step {self.first + step} of {DRY_RUN_STEPS} it is {once} for lr = {self.lr:g} "
            f"{'as' if once == twice else f'and {twice}'} for lr = {2 * self.lr:g}"
        )

    def refuse(self, findings: Findings, who: str, lost: Sequence[int], groups: Sequence[int], remedy: str) -> None:
        """Report that `who` overrides the groups `lost` of those that should follow the rate: as a warning, if not all.

        Raises:
            TaskError: it overrides all of `groups`.
        """
        if not lost:
            return
        if len(lost) == len(groups):
            raise TaskError(
                f"{who} sets its own learning rate and ignores the one that it is passed: {self.example(lost[0])}. All "
                f"rates would train alike: {remedy}"
            )
        findings.warnings.append(
            f"{who} sets its own learning rate in {len(lost)} of the {len(groups)} parameter groups that "
            f"optimizer(model, lr) gives a rate ({self.example(lost[0])}), and a search moves only the others: {remedy}"
        )


def check_schedule(findings: Findings, make: Callable[[float], torch.optim.Optimizer], lr: float) -> TwoRates:
    """Run the schedule at two rates and check that it follows them. Returns the rates that it sets.

    Args:
        findings: gets the warnings.
        make: makes a new optimizer of the task for the checked model, at a rate.
        lr: the lower of the two.

    Raises:
        TaskError: the schedule cannot be run, or it sets its own rates.
    """
    optimizers = make(lr), make(2 * lr)
    groups = following(held_by(optimizers[0]), held_by(optimizers[1]))
    schedule, once = scheduled_rates(findings.task, optimizers[0], DRY_RUN_STEPS)
    _, twice = scheduled_rates(findings.task, optimizers[1], DRY_RUN_STEPS)
    names = set(names_of(schedule))
    known = [_REMEDIES[name] for name in _REMEDIES if name in names]
    remedy = " and ".join(known) or f"compute it from {_OF_THE_OPTIMIZER}, which is the rate that autobatch passes"
    if len(optimizers[0].param_groups) > 1:
        remedy += ', or, group by group, [group["lr"] for group in optimizer.param_groups]'
    rates = TwoRates(lr, once, twice)
    lost = [group for group in groups if rates.arrives(group) < _ENOUGH]
    rates.refuse(findings, _SCHEDULER, lost, groups, remedy)
    weak = [group for group in groups if _ENOUGH <= rates.arrives(group) < _PLENTY]
    if weak:
        findings.warnings.append(
            f"{_SCHEDULER} lets {rates.arrives(weak[0]):.0%} of a change of the learning rate through "
            f"({rates.example(weak[0])}): {remedy}"
        )
    return rates


def has_writers(task: Task, optimizer: torch.optim.Optimizer) -> bool:
    """Whether anything but the schedule could write to the groups: the user's code that runs at each step."""
    is_torchs = type(optimizer).__module__.startswith("torch.optim.")
    return task.after_step is not None or task.training_step is not None or not is_torchs


def check_steps(
    findings: Findings,
    model: nn.Module,
    make: Callable[[float], torch.optim.Optimizer],
    lr: float,
    backward: Callable[[], object],
    scheduled: TwoRates | None,
) -> None:
    """Take a few whole steps at two rates, and check that the optimizer holds the rates that the schedule sets.

    Args:
        findings, make, lr: as in `check_schedule`.
        model: the model of the optimizers. It is trained.
        backward: gives its parameters a gradient, as the task does.
        scheduled: the rates that the schedule sets; None if there is none.

    Raises:
        TaskError: a hook, a training step or the optimizer itself sets the rate.
    """
    made: list[tuple[float, ...]] = []
    held: list[tuple[float, ...]] = []
    writers: dict[str, None] = {}
    for rate in (lr, 2 * lr):
        optimizer = make(rate)
        made.append(held_by(optimizer))
        held.append(_held_in_the_end(findings.task, model, optimizer, backward, writers))
    if not writers:
        return
    last = _REAL_STEPS - 1
    meant = TwoRates(lr, made[:1], made[1:]) if scheduled is None else scheduled.only(last)
    rates = TwoRates(lr, held[:1], held[1:], first=last)
    groups = following(*made)
    lost = [group for group in groups if rates.arrives(group) < _ENOUGH * meant.arrives(group)]
    remedy = 'multiply what group["lr"] holds, or write scheduler(optimizer, total_steps)'
    rates.refuse(findings, " and ".join(writers), lost, groups, remedy)


def _held_in_the_end(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[], object],
    writers: dict[str, None],
) -> tuple[float, ...]:
    """What the optimizer holds at the last of a few steps, taken like the trainer's; records who wrote rates."""
    schedule = task.scheduler(optimizer, DRY_RUN_STEPS) if task.scheduler is not None else None
    groups = len(optimizer.param_groups)
    # As in the trainer: a stateful object is the trial's own copy.
    hook = copy.deepcopy(task.after_step) if hasattr(task.after_step, "state_dict") else task.after_step

    def watched(who: str, work: Callable[[], object]) -> None:
        before = held_by(optimizer)
        work()
        if held_by(optimizer) != before:
            writers[who] = None

    held: tuple[float, ...] = ()
    for step in range(_REAL_STEPS):
        model.zero_grad(set_to_none=True)
        watched("training_step(model, batch, scale)", backward)
        if task.precision == "fp16":  # without a scaler the gradients, and then the weights, may overflow
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
        held = held_by(optimizer)
        to_train(optimizer)
        watched("optimizer.step()", optimizer.step)
        if schedule is not None:
            with of_groups(optimizer, schedule, groups):
                schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if hook is not None:
            watched("after_step(model, step)", partial(hook, model, step))
    return held
