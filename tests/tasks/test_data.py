"""The order of samples is a function of (seed, step), and every kind of batch reaches the device."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from autobatch import Task
from autobatch.core.plan import Plan
from autobatch.errors import TaskError
from autobatch.tasks.data import SampleStream, rows_of, to_device, training_batches, val_loader

Pair = namedtuple("Pair", ["left", "right"])
CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass
class Graph:
    nodes: torch.Tensor
    label: str


class Numbers(Dataset[torch.Tensor]):
    def __init__(self, size: int = 10, noisy: bool = False) -> None:
        self.size, self.noisy = size, noisy

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index)) + (torch.rand(()) / 2 if self.noisy else 0)


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.arange(7.0))


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "model": lambda: torch.nn.Linear(1, 1),
        "train_data": Numbers,
        "val_data": Numbers,
        "loss": lambda model, batch: model(batch[:, None]).mean(),
        "metric": lambda model, batch: model(batch[:, None])[:, 0],
    }
    return Task(**(fields | changes))


sizes = st.integers(1, 40)


@given(n=sizes, batch=sizes, seed=st.integers(0, 9), skip=st.integers(0, 5))
@settings(max_examples=60)
def test_a_stream_started_later_is_the_rest_of_the_stream(n: int, batch: int, seed: int, skip: int) -> None:
    whole = list(islice(SampleStream(n, batch, seed=seed), skip + 4))
    assert list(islice(SampleStream(n, batch, seed=seed, start=skip * batch), 4)) == whole[skip:]
    assert all(len(indices) == batch for indices in whole)


@given(n=sizes, one=sizes, other=sizes, seed=st.integers(0, 9))
@settings(max_examples=60)
def test_every_batch_size_sees_the_same_samples_in_the_same_order(n: int, one: int, other: int, seed: int) -> None:
    def samples(batch: int) -> list[int]:
        stream = SampleStream(n, batch, seed=seed)
        return [i for keys in islice(stream, 2 * n // batch + 1) for _, i in keys][: 2 * n]

    assert samples(one) == samples(other)
    assert sorted(samples(one)[:n]) == sorted(samples(one)[n:]) == list(range(n))


@given(
    n=sizes, batch=st.integers(1, 9), ranks=st.integers(1, 5), start=st.integers(0, 60), accumulation=st.integers(1, 3)
)
@settings(max_examples=60)
def test_ranks_share_out_what_one_process_of_all_their_batches_sees(
    n: int, batch: int, ranks: int, start: int, accumulation: int
) -> None:
    plan = Plan(batch_size=batch, accumulation_steps=accumulation, ranks=ranks)
    start *= plan.effective_batch_size
    whole = list(islice(SampleStream(n, batch * ranks, seed=3, start=start), 4))
    shares = [
        list(islice(SampleStream(n, batch, seed=3, start=start, rank=rank, ranks=ranks), 4)) for rank in range(ranks)
    ]
    for step, keys in enumerate(whole):
        mine = [share[step] for share in shares]
        assert all(len(one) == batch for one in mine)
        assert sorted(key for one in mine for key in one) == sorted(keys)


def test_ranks_take_turns_in_an_iterable_dataset_and_end_an_epoch_together() -> None:
    plan = Plan(batch_size=2, ranks=2)
    first, second = (take(training_batches(task(), Stream(), plan, seed=0, rank=rank), 2) for rank in range(2))
    assert first == [[0, 2], [0, 2]]  # of 8, as 3 samples each make one batch of two
    assert second == [[1, 3], [1, 3]]


def test_another_seed_is_another_order() -> None:
    first, second = (next(iter(SampleStream(50, 50, seed=seed))) for seed in (1, 2))
    assert first != second


def take(iterator: Any, count: int) -> list[list[float]]:
    return [batch.tolist() for batch in islice(iterator, count)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_batches_that_would_have_come_augmentation_included(workers: int) -> None:
    loaded = task(loader={"num_workers": workers})
    data, plan = Numbers(noisy=workers > 0), Plan(batch_size=3, accumulation_steps=2)
    whole = take(training_batches(loaded, data, plan, seed=5), 8)
    assert take(training_batches(loaded, data, plan, seed=5, start_step=2), 4) == whole[4:]


def test_the_loader_leaves_the_generators_of_the_trial_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    next(training_batches(task(), Numbers(), Plan(batch_size=2), seed=1))
    assert torch.equal(torch.rand(2), expected)


def test_an_iterable_dataset_goes_round_and_is_skipped_forward() -> None:
    plan = Plan(batch_size=3)
    assert take(training_batches(task(), Stream(), plan, seed=0), 3) == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert take(training_batches(task(), Stream(), plan, seed=0, start_step=1), 1) == [[3, 4, 5]]


def test_a_loader_of_the_users_own_gets_another_seed_each_epoch() -> None:
    seeds = []

    def train_loader(batch_size: int, seed: int) -> Any:
        seeds.append(seed)
        return DataLoader(Numbers(4), batch_size=batch_size)

    take(training_batches(task(train_loader=train_loader), None, Plan(batch_size=2), seed=7), 5)
    assert seeds == [7, 8, 9]


def test_no_whole_batch_in_an_epoch_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(TaskError, match="no whole batch of 8 samples"):
        next(training_batches(task(), Stream(), Plan(batch_size=8), seed=0))


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(4, 2),
        (torch.zeros(4), ["a"] * 4),
        [torch.zeros(4), torch.zeros(4)],
        {"x": torch.zeros(4), "name": "text", "deep": {"y": (torch.zeros(4),)}},
        Pair(torch.zeros(4), torch.ones(4)),
        Graph(nodes=torch.zeros(4, 2), label="molecule"),
        pack_sequence([torch.zeros(n, 2) for n in (5, 3, 2, 1)]),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_a_batch_of_any_shape_moves_whole(batch: Any) -> None:
    moved = to_device(batch, META)
    assert type(moved) is type(batch)
    if isinstance(moved, PackedSequence):
        assert moved.data.device == META
        assert moved.batch_sizes.device == CPU
    assert to_device(batch, CPU) is not None


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        ((torch.zeros(4, 2), torch.tensor(1.0), ["text"]), 4),
        ({"x": np.zeros((3, 2)), "deep": Graph(nodes=torch.zeros(3), label="three")}, 3),
        ((torch.zeros(4, 2), torch.zeros(3)), None),
        (pack_sequence([torch.zeros(3), torch.zeros(2)]), None),
        ("text", None),
    ],
)
def test_rows_are_what_all_tensors_share(batch: Any, rows: int | None) -> None:
    assert rows_of(batch) == rows


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_once_in_order_and_counted(workers: int) -> None:
    found = list(val_loader(task(loader={"num_workers": workers}), Numbers(5), 2))
    assert [(batch.tolist(), samples) for batch, samples in found] == [([0, 1], 2), ([2, 3], 2), ([4], 1)]
