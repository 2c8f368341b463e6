"""What a data set keeps is nobody's state: it is told where reading changes it, and not where something comes to be."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from autobatch import Task
from autobatch.worker.check import check_task

X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Data:
    """Of the user's, which keeps something as it is read."""

    def __init__(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        pass

    def note(self, index: int) -> None:
        pass

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.note(index)
        return X[index], Y[index]


class Curriculum(Data):
    def prepare(self) -> None:
        self.calls = 0

    def note(self, index: int) -> None:
        self.calls += 1


class Recent(Data):
    def prepare(self) -> None:
        self.recent: deque[int] = deque([-1, -2], maxlen=2)

    def note(self, index: int) -> None:
        self.recent.append(index)


class Means(Data):
    def prepare(self) -> None:
        self.stats = {"sum": torch.zeros(5), "weights": [np.zeros(2)]}

    def note(self, index: int) -> None:
        self.stats["sum"] += X[index]  # type: ignore[operator]


class Left(Data):
    def prepare(self) -> None:
        self.left = set(range(5))

    def note(self, index: int) -> None:
        self.left.discard(index)


class Inner:
    def __init__(self) -> None:
        self.level = 0.0


class Nested(Data):
    def prepare(self) -> None:
        self.policy = Inner()

    def note(self, index: int) -> None:
        self.policy.level += 0.1


class Stream(IterableDataset[Any]):
    epoch = 0

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Any:
        self.epoch += 1
        yield from zip(X, Y, strict=True)


class BeginsAnew(IterableDataset[Any]):
    """Its own iterator, which knows where it is."""

    def __init__(self) -> None:
        self.index = 0

    def __iter__(self) -> BeginsAnew:
        self.index = 0
        return self

    def __next__(self) -> Any:
        if self.index == len(X):
            raise StopIteration
        self.index += 1
        return X[self.index - 1], Y[self.index - 1]


class Cached(Data):
    """Nothing that changes a sample."""

    def prepare(self) -> None:
        self.cache: dict[int, Tensor] = {}
        self.by_place: list[Tensor | None] = [None] * len(X)
        self.file: object = None
        self.seen: list[int] = []
        self.large = torch.zeros(100_000)
        self.paths = [f"{number}" for number in range(20_000)]

    def note(self, index: int) -> None:
        self.cache[index] = self.by_place[index] = X[index]
        self.file = self.file or object()
        self.seen.append(index)
        self.large[index] = 1.0
        self.made = True


class Augmented(Data):
    """Its draws go on, as is advised in place of a seed."""

    def prepare(self) -> None:
        self.draws = np.random.default_rng(0), random.Random(1), torch.Generator().manual_seed(2)

    def note(self, index: int) -> None:
        numpy, python, of_torch = self.draws
        numpy.normal()
        python.random()
        torch.rand((), generator=of_torch)


def told(train: Any, val: Any = None) -> list[str]:
    task = Task(
        model=lambda: torch.nn.Linear(5, 2),
        train_data=lambda: train,
        val_data=lambda: val or TensorDataset(X, Y),
    )
    warnings = check_task(task, torch.device("cpu"), 8).warnings
    return [warning for warning in warnings if warning.startswith("reading ")]


CHANGES = [
    (Curriculum, "`Curriculum.calls`"),
    (Recent, "`Recent.recent`"),
    (Means, "`Means.stats`"),
    (Left, "`Left.left`"),
    (Nested, "`Inner.level`"),
    (Stream, "`Stream.epoch`"),
]


@pytest.mark.parametrize(("made", "name"), CHANGES)
def test_what_reading_changes_is_named(made: Any, name: str) -> None:
    (warning,) = told(made())
    assert warning.startswith(f"reading train_data() changes {name}, which no trial begins with anew")


@pytest.mark.parametrize("around", [lambda data: Subset(data, range(20)), lambda data: ConcatDataset([data, data])])
def test_it_is_found_inside_of_other_data_sets(around: Any) -> None:
    (warning,) = told(around(Curriculum()))
    assert "changes `Curriculum.calls`," in warning


def test_that_of_the_validation_data_too() -> None:
    (warning,) = told(TensorDataset(X, Y), Curriculum())
    assert warning.startswith("reading val_data() changes")


@pytest.mark.parametrize("made", [Data, Cached, Augmented, BeginsAnew, lambda: list(zip(X, Y, strict=True))])
def test_what_comes_to_be_and_draws_that_go_on_are_not(made: Any) -> None:
    assert told(made()) == []
