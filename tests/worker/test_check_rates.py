"""A rate that training does not see is refused, whoever overrides it, and the remedy that is told works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as schedules
from torch.utils.data import TensorDataset

from autobatch.errors import TaskError
from autobatch.tasks.task import Task
from autobatch.worker.check import check_task

CPU = torch.device("cpu")
RATE = 'optimizer.param_groups[0]["lr"]'


def _data() -> TensorDataset:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def _check(**changes: Any) -> tuple[str, ...]:
    known = {"model": lambda: nn.Linear(3, 2), "train_data": _data, "val_data": _data}
    return check_task(Task(**(known | changes)), CPU, 32).warnings


def _two_groups(model: nn.Module, lr: float) -> Optimizer:
    groups: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias], "lr": 10 * lr}]
    return SGD(groups, lr=lr)


class Noam:
    """As many write it: the rate from the model's width and the step, put into every group."""

    def __init__(self, optimizer: Optimizer, groups: slice = slice(None), begins: int = 0) -> None:
        self.optimizer, self.groups, self.begins, self.count = optimizer, groups, begins, 0
        self._set()

    def _set(self) -> None:
        self.count += 1
        if self.count > self.begins:
            for group in self.optimizer.param_groups[self.groups]:
                group["lr"] = 512**-0.5 * min(self.count**-0.5, self.count * 100**-1.5)

    def step(self) -> None:
        self._set()


def _cyclic(optimizer: Optimizer, total: int) -> Any:
    return schedules.CyclicLR(optimizer, base_lr=1e-4, max_lr=1e-2, cycle_momentum=False)


def _warm_one_cycle(optimizer: Optimizer, total: int) -> Any:
    warm = schedules.LinearLR(optimizer, 0.1, total_iters=5)
    return schedules.SequentialLR(optimizer, [warm, schedules.OneCycleLR(optimizer, 0.1, total_steps=total)], [5])


@pytest.mark.parametrize(
    ("scheduler", "remedy"),
    [
        (lambda o, total: schedules.OneCycleLR(o, max_lr=0.01, total_steps=total), f"pass OneCycleLR max_lr={RATE}"),
        (_cyclic, f"pass CyclicLR max_lr={RATE}, and as base_lr a share of it"),
        (_warm_one_cycle, f"pass OneCycleLR max_lr={RATE}"),
        (lambda o, total: Noam(o), f"compute it from {RATE}"),
        (lambda o, total: Noam(o, begins=30), f"compute it from {RATE}"),
    ],
    ids=["one cycle", "cyclic", "sequential", "own", "own after a while"],
)
@pytest.mark.parametrize("optimizer", [SGD, Adam, _two_groups])
def test_a_schedule_with_rates_of_its_own_is_refused_with_the_remedy(
    scheduler: Any, remedy: str, optimizer: Any
) -> None:
    def make(model: nn.Module, lr: float) -> Optimizer:
        made: Optimizer = optimizer(model, lr) if optimizer is _two_groups else optimizer(model.parameters(), lr=lr)
        return made

    told = (
        r"scheduler\(optimizer, total_steps\) sets its own learning rate and ignores the one that it is passed: at step"
    )
    with pytest.raises(TaskError, match=rf"{told} \d+ of 1000 .* as for lr = 0.002.*{re.escape(remedy)}"):
        _check(scheduler=scheduler, optimizer=make)


def _lr(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o, total: schedules.OneCycleLR(o, max_lr=_lr(o), total_steps=total),
        lambda o, total: schedules.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=total),
        lambda o, total: schedules.CyclicLR(o, 0.1 * _lr(o), _lr(o), cycle_momentum=False),
        lambda o, total: schedules.LambdaLR(o, lambda step: min(1.0, step / 100)),
        lambda o, total: schedules.CosineAnnealingLR(o, total, eta_min=1e-4),
        lambda o, total: schedules.ExponentialLR(o, 0.99),
        lambda o, total: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.01, total_iters=50), schedules.CosineAnnealingLR(o, total - 50)], [50]
        ),
        lambda o, total: schedules.ChainedScheduler(
            [schedules.LinearLR(o, 0.01, total_iters=50), schedules.StepLR(o, total // 3)]
        ),
        lambda o, total: schedules.CosineAnnealingWarmRestarts(o, 100),
    ],
)
@pytest.mark.parametrize("optimizer", [lambda model, lr: SGD(model.parameters(), lr=lr), _two_groups])
def test_a_schedule_that_begins_at_the_rate_it_is_given_passes(scheduler: Any, optimizer: Any) -> None:
    assert _check(scheduler=scheduler, optimizer=optimizer) == ()


def test_a_schedule_that_overrides_one_group_of_two_is_a_warning() -> None:
    (warning,) = _check(scheduler=lambda optimizer, total: Noam(optimizer, slice(1)), optimizer=_two_groups)
    assert "sets its own learning rate in 1 of the 2 parameter groups" in warning
    assert "a search moves only the others" in warning


def test_a_group_that_the_optimizer_keeps_at_one_rate_is_meant_so() -> None:
    def optimizer(model: nn.Module, lr: float) -> Optimizer:
        groups: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}]
        return SGD(groups, lr=lr)

    assert _check(optimizer=optimizer, scheduler=lambda o, total: schedules.CosineAnnealingLR(o, total)) == ()


def test_a_schedule_that_lets_a_part_of_the_rate_through_is_a_warning() -> None:
    (warning,) = _check(scheduler=lambda o, total: schedules.CosineAnnealingLR(o, total, eta_min=5e-4))
    assert re.search(r"lets 67% of a change of the learning rate through \(at step .* of 1000 it is", warning)


@given(share=st.floats(0.0, 1.0))
@settings(max_examples=25)
def test_what_arrives_of_a_rate_is_refused_below_a_half_and_told_below_nine_tenths(share: float) -> None:
    def scheduler(optimizer: Optimizer, total: int) -> Any:
        own = _lr(optimizer)

        class Mixed:
            def step(self) -> None:
                optimizer.param_groups[0]["lr"] = share * own + (1 - share) * 1e-3

        mixed = Mixed()
        mixed.step()
        return mixed

    if share < 0.499:
        with pytest.raises(TaskError, match="sets its own learning rate"):
            _check(scheduler=scheduler)
    elif 0.501 < share < 0.899:
        assert len(_check(scheduler=scheduler)) == 1
    elif share > 0.901:
        assert _check(scheduler=scheduler) == ()


# -- hooks, training steps, optimizers ------------------------------------------------------------------------


class Held:
    """A file's global optimizer, for hooks to write to."""

    made: Optimizer

    def optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        self.made = SGD(model.parameters(), lr=lr)
        return self.made

    def set(self, rate: Callable[[float], float]) -> None:
        for group in self.made.param_groups:
            group["lr"] = rate(group["lr"])


def _hook(held: Held, rate: Callable[[float], float]) -> Any:
    return lambda model, step: held.set(rate)


def _step(held: Held, rate: Callable[[float], float]) -> Any:
    def training_step(model: nn.Module, batch: Any, scale: float) -> Any:
        held.set(rate)
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        (loss * scale).backward()
        return loss.detach()

    return training_step


@pytest.mark.parametrize("scheduler", [None, lambda o, total: schedules.LambdaLR(o, lambda step: min(1, step / 100))])
@pytest.mark.parametrize(
    ("name", "make", "who"),
    [
        ("after_step", _hook, "after_step(model, step)"),
        ("training_step", _step, "training_step(model, batch, scale)"),
    ],
)
def test_a_hook_or_a_training_step_that_sets_the_rate_is_refused(
    scheduler: Any, name: str, make: Any, who: str
) -> None:
    held = Held()
    with pytest.raises(TaskError, match=rf"{re.escape(who)} sets its own learning rate.* at step 2 .* it is 0.05"):
        _check(optimizer=held.optimizer, scheduler=scheduler, **{name: make(held, lambda lr: 0.05)})
    # The remedy: what is there is multiplied.
    assert _check(optimizer=held.optimizer, scheduler=scheduler, **{name: make(held, lambda lr: 0.9 * lr)}) == ()


class WarmsUp(SGD):
    """An optimizer that sets its own rate, as if it had read a paper."""

    def __init__(self, parameters: Any, lr: float, own: bool) -> None:
        super().__init__(parameters, lr=lr)
        self.own, self.count = own, 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 0.01 * self.count if self.own else group["lr"] * 1.1
        return super().step(closure)


def test_an_optimizer_that_sets_its_own_rate_is_refused() -> None:
    with pytest.raises(TaskError, match=r"optimizer\.step\(\) sets its own learning rate .* lr = 0.001 as for"):
        _check(optimizer=lambda model, lr: WarmsUp(model.parameters(), lr, True))
    assert _check(optimizer=lambda model, lr: WarmsUp(model.parameters(), lr, False)) == ()


def test_a_hook_that_fails_is_told_before_the_search() -> None:
    def after_step(model: nn.Module, step: int) -> None:
        raise KeyError("no such layer")

    with pytest.raises(TaskError, match=r"after_step\(model, step\) failed: KeyError: 'no such layer'"):
        _check(after_step=after_step)


def test_a_warm_up_from_a_fixed_rate_beside_a_hook_passes() -> None:
    def scheduler(optimizer: Optimizer, total: int) -> Any:
        lr, count = _lr(optimizer), [0]

        class WarmUp:
            def step(self) -> None:
                optimizer.param_groups[0]["lr"] = 1e-4 + (lr - 1e-4) * min(1.0, count[0] / 100)
                count[0] += 1

        made = WarmUp()
        made.step()
        return made

    held = Held()
    assert _check(optimizer=held.optimizer, scheduler=scheduler, after_step=_hook(held, lambda lr: lr)) == ()


class Frozen(nn.Module):
    """A model whose body is trained later; it knows its optimizer, as a hook needs it to."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.body.requires_grad_(False)
        self.optimizer: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(x))
        return scores


def _of_head(model: Any, lr: float) -> Optimizer:
    model.optimizer = Adam(model.head.parameters(), lr)
    return model.optimizer  # type: ignore[no-any-return]


def _thaw(model: Any, step: int) -> None:
    model.body.requires_grad_(True)
    if len(model.optimizer.param_groups) == 1:
        model.optimizer.add_param_group({"params": list(model.body.parameters())})


def _step_and_thaw(model: Any, batch: Any, scale: float) -> None:
    _thaw(model, 0)
    (nn.functional.cross_entropy(model(batch[0]), batch[1]) * scale).backward()


@pytest.mark.parametrize("when", [{"after_step": _thaw}, {"training_step": _step_and_thaw}], ids=["hook", "step"])
@pytest.mark.parametrize(
    ("scheduler", "what"),
    [
        (lambda o, total: schedules.OneCycleLR(o, _lr(o), total_steps=total), "OneCycleLR failed (KeyError: 'init"),
        (lambda o, total: schedules.LambdaLR(o, lambda step: 1 - step / total), "LambdaLR failed (ValueError: zip()"),
        (
            lambda o, total: schedules.SequentialLR(o, [schedules.LambdaLR(o, lambda step: 1.0)] * 2, [5]),
            "SequentialLR failed (ValueError: zip()",
        ),
    ],
    ids=["one cycle", "lambda", "sequential"],
)
def test_a_group_that_its_schedule_does_not_know_is_refused_with_the_remedy(
    when: Any, scheduler: Any, what: str
) -> None:
    with pytest.raises(TaskError, match=rf"{re.escape(what)}.*group was added after it.* Leave out add_param_group"):
        _check(model=Frozen, optimizer=_of_head, scheduler=scheduler, **when)

    def thaw(model: Any, step: int) -> None:
        model.body.requires_grad_(True)

    _check(model=Frozen, optimizer=lambda m, lr: Adam(m.parameters(), lr), scheduler=scheduler, after_step=thaw)


def test_a_group_that_its_schedule_has_no_need_to_know_passes() -> None:
    cosine = schedules.CosineAnnealingLR
    assert _check(model=Frozen, optimizer=_of_head, scheduler=cosine, after_step=_thaw) == ()
