"""What people return from optimizer and scheduler that autobatch cannot use, and what it says to do instead."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedules
from torch.utils.data import TensorDataset

from autobatch.errors import TaskError, first_line, without_table
from autobatch.tasks.task import Task, blame
from autobatch.worker.check import check_task, peak_lr_fraction


def _data() -> TensorDataset:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def _check(**changes: Any) -> tuple[str, ...]:
    known = {"model": lambda: nn.Linear(3, 2), "train_data": _data, "val_data": _data}
    return check_task(Task(**(known | changes)), torch.device("cpu"), 32).warnings


def _cosine(optimizer: Any) -> Any:
    return schedules.CosineAnnealingLR(optimizer, 10)


def _pair(model: Any, lr: float) -> list[Any]:
    return [SGD([model.weight], lr=lr), Adam([model.bias], lr=lr)]


class Closed(SGD):
    """As sharpness-aware minimisation is often written."""

    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "needs a closure, which was not provided"
        return super().step(closure)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (_pair, r"it returned a list of SGD, Adam: autobatch steps one optimizer.* Return one whose parameter groups"),
        (
            lambda m, lr: tuple(_pair(m, lr)),
            r"it returned a tuple of SGD, Adam: .* training_step\(model, batch, scale\)",
        ),
        (
            lambda m, lr: dict(zip(("d", "g"), _pair(m, lr), strict=True)),
            r"it returned a dict of SGD, Adam: autobatch steps one optimizer",
        ),
        (lambda m, lr: ([SGD(m.parameters(), lr=lr)], []), r"a tuple of SGD: return the optimizer alone$"),
        (
            lambda m, lr: {
                "optimizer": (made := SGD(m.parameters(), lr=lr)),
                "lr_scheduler": {"scheduler": _cosine(made)},
            },
            r"a dict of SGD, CosineAnnealingLR: return the optimizer alone, and the schedule from scheduler\(optimizer",
        ),
        (
            lambda m, lr: ([made := SGD(m.parameters(), lr=lr)], [_cosine(made)]),
            r"a tuple of SGD, CosineAnnealingLR: return the optimizer alone, and the schedule from scheduler",
        ),
        (
            lambda m, lr: torch.optim.AdamW,
            r"it returned the class AdamW: make one, as in `return torch\.optim\.AdamW\(",
        ),
        (lambda m, lr: None, r"it returned NoneType: is its `return` missing\?"),
        (
            lambda m, lr: torch.optim.LBFGS(m.parameters(), lr=lr),
            r"LBFGS\.step\(\) needs closure: .* passes no closure",
        ),
        (lambda m, lr: Closed(m.parameters(), lr=lr), r"(?s)AssertionError: needs a closure.* such as AdamW or SGD$"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_told_with_the_remedy(optimizer: Any, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        _check(optimizer=optimizer)


class Epochs:
    """As of a package whose schedules are told the epoch."""

    def step(self, epoch: int, metric: float | None = None) -> None:
        raise AssertionError("it is not called")


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (
            lambda o, total: schedules.ReduceLROnPlateau(o),
            r"ReduceLROnPlateau goes by a metric, .* such as CosineAnnealingLR\(optimizer, total_steps\)",
        ),
        (lambda o, total: Epochs(), r"Epochs\.step\(\) needs epoch, and autobatch calls step\(\) without arguments"),
        (lambda o, total: [_cosine(o), _cosine(o)], r"it returned a list: join several with .*ChainedScheduler"),
        (lambda o, total: None, r"it returned NoneType: is its `return` missing\?"),
    ],
)
def test_a_schedule_that_cannot_be_used_is_told_with_the_remedy(scheduler: Any, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        _check(scheduler=scheduler)
    task = Task(model=lambda: nn.Linear(3, 2), train_data=_data, val_data=_data, scheduler=scheduler)
    with pytest.raises(TaskError, match=told):
        peak_lr_fraction(task)


# -- functions that exit ---------------------------------------------------------------------------------------


def _exits(*arguments: Any) -> Any:
    sys.exit(3)


def _parses(*arguments: Any) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.parse_args([])


@pytest.mark.parametrize("exits", [_exits, _parses])
@pytest.mark.parametrize(
    "name",
    [
        "model",
        "train_data",
        "loss",
        "metric",
        "evaluate",
        "optimizer",
        "scheduler",
        "before_step",
        "after_step",
        "training_step",
        "collate",
    ],
)
def test_a_function_that_exits_is_told_as_that(name: str, exits: Any) -> None:
    code = 3 if exits is _exits else 2
    told = rf"(?s){name}\(.*failed: it called sys\.exit\({code}\), itself or through argparse: .*__main__.*in _"
    with pytest.raises(TaskError, match=told):
        _check(**{name: exits})


def test_a_dataset_that_exits_is_told_as_that() -> None:
    class Exits(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            raise SystemExit("no such image")

    with pytest.raises(TaskError, match=r"train_data\(\) failed: it called sys\.exit\('no such image'\)"):
        _check(train_data=lambda: Exits(torch.zeros(64, 3)))


# -- messages of torch's dispatcher ---------------------------------------------------------------------------------


def test_of_the_dispatchers_table_the_first_sentence_is_told() -> None:
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(NotImplementedError) as caught:
        sparse.median()
    assert len(str(caught.value).splitlines()) > 20
    sentence = "Could not run 'aten::median' with arguments from the 'SparseCPU' backend."
    assert first_line(caught.value) == sentence
    told = str(blame("loss(model, batch)", caught.value, Path("/x/model.py")))
    assert told.splitlines()[0] == f"loss(model, batch) of model.py failed: NotImplementedError: {sentence}"
    assert "registered at" not in told
    outer = ValueError("in a layer")
    outer.__cause__ = caught.value
    assert f"caused by NotImplementedError: {sentence}" in str(blame("loss", outer, None))


@pytest.mark.parametrize("text", ["", "a bug. And more of it", "CPU: it is registered. At least", "one\n\ntwo. three"])
def test_other_messages_are_told_whole(text: str) -> None:
    assert without_table(text) == text


def test_the_remedy_for_several_optimizers_works() -> None:
    def optimizer(model: Any, lr: float) -> Any:
        return SGD([{"params": [model.weight], "lr": lr}, {"params": [model.bias], "lr": 10 * lr}])

    assert _check(optimizer=optimizer) == ()
    with pytest.raises(TaskError, match=re.escape('[{"params": ..., "lr": lr}, {"params": ..., "lr": 10 * lr}]')):
        _check(optimizer=_pair)
