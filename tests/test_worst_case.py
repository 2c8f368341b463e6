"""A probe is made of the largest samples that the data has, whatever makes them large and wherever they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from autobatch import Task, worst_case
from autobatch.data import num_samples
from autobatch.errors import TaskError
from autobatch.worst_case import WorstSamples, find_worst_case, loader_batch


class Listed(Dataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples, self.reads = samples, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.samples[index]


class Streamed(IterableDataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        return iter(self.samples)


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {"model": lambda: torch.nn.Linear(1, 1), "train_data": list, "val_data": list}
    return Task(**(fields | {"collate": pad_sequence} | changes))


def sequences(lengths: list[int]) -> list[torch.Tensor]:
    return [torch.full((length,), float(index)) for index, length in enumerate(lengths)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 20), st.booleans())
def test_the_longest_is_in_every_batch_and_fills_it(lengths: list[int], batch_size: int, streamed: bool) -> None:
    data: Any = Streamed(sequences(lengths)) if streamed else Listed(sequences(lengths))
    found = find_worst_case(task(), data)
    longest = max(lengths)
    if found.varies:  # of 200 samples all are looked at, unless the first glance shows one length
        assert {lengths[index] for index in found.largest} == {longest}
        assert found.num_scanned == found.num_samples == len(lengths)
        assert found.assumption is None
    batch = WorstSamples(task(), data, found).batch(batch_size)
    assert batch.shape[1] == batch_size
    if found.varies or len(set(lengths)) == 1:
        assert batch.shape[0] == longest


def test_data_of_one_size_costs_a_glance_and_data_that_varies_a_look_at_all_of_it() -> None:
    fixed, ragged = Listed(sequences([7] * 5000)), Listed(sequences([7, 8, 7, 6] * 1250))
    ragged.samples[2500] = torch.zeros(99)
    assert find_worst_case(task(), fixed).num_scanned == fixed.reads < 100
    found = find_worst_case(task(), ragged)
    assert (found.largest, found.num_scanned) == ((2500,), 5000)
    # One odd sample among many alike is beyond a glance, unless the task measures samples itself.
    fixed.samples[2500] = torch.zeros(99)
    assert find_worst_case(task(sample_size=len), fixed).largest == (2500,)


def test_a_sorted_dataset_is_not_mistaken_for_one_of_one_size() -> None:
    found = find_worst_case(task(), Listed(sequences([1] * 3000 + [2] * 3000)))
    assert found.varies
    assert min(found.largest) >= 3000


def test_the_tasks_own_measure_decides_alone() -> None:
    samples = [torch.zeros(9), torch.zeros(1), torch.zeros(5)]
    sized = task(sample_size=lambda sample: -len(sample))
    found = find_worst_case(sized, Listed(samples))
    assert (found.largest, found.widest) == ((1,), ())


def test_a_batch_holds_the_widest_of_every_dimension_beside_the_largest() -> None:
    images = [torch.zeros(3, 20, 20), torch.zeros(3, 40, 4), torch.zeros(3, 4, 50), torch.zeros(3, 2, 2)]
    found = find_worst_case(task(), Listed(images))
    assert (found.largest, found.widest) == ((0,), (1, 2))
    shapes = WorstSamples(task(collate=lambda samples: [tuple(s.shape) for s in samples]), Listed(images), found)
    assert shapes.batch(4) == [(3, 20, 20), (3, 40, 4), (3, 4, 50), (3, 20, 20)]
    assert shapes.batch(1) == [(3, 20, 20)]


@dataclass
class Pair:
    source: list[int]
    target: str


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((torch.zeros(3), 1), (torch.zeros(4), 1)),
        ({"ids": [1, 2]}, {"ids": [1, 2, 3]}),
        (np.zeros(3), np.zeros((3, 2))),
        (Pair([1], "a"), Pair([1], "ab")),
        ([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)]),  # boxes of an image
        (b"a", b"ab"),
        (pack_sequence([torch.zeros(2)]), pack_sequence([torch.zeros(3)])),
        ([[1, 2], [3]], [[1, 2], [3, 4]]),
    ],
)
def test_whatever_a_sample_is_made_of_the_larger_is_found(small: Any, large: Any) -> None:
    assert find_worst_case(task(), Listed([small, large, small])).largest == (1,)


def test_samples_beyond_the_time_for_looking_are_an_assumption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_case, "_SCAN_S", 0.0)
    found = find_worst_case(task(sample_size=len), Listed(sequences([1, 2, 3])))
    assert found.num_scanned == 1
    found = find_worst_case(task(), Streamed(sequences([1, 2, 3])))
    assert found.assumption is None  # one sample does not vary
    monkeypatch.setattr(worst_case, "_SCAN_S", math.inf)
    monkeypatch.setattr(worst_case, "perf_counter", iter(range(0, 100, 1)).__next__)
    monkeypatch.setattr(worst_case, "_SCAN_S", 2.5)
    told = find_worst_case(task(), Listed(sequences([1, 2, 3, 4, 5]))).assumption
    assert told is not None
    assert "among the 3 of 5 that were looked at" in told


def test_a_loader_that_gives_too_few_samples_is_not_mistaken_for_a_fit() -> None:
    data = Listed(sequences([1] * 4))
    short = task(train_loader=lambda batch_size, seed: DataLoader(data, batch_size=batch_size))
    assert loader_batch(short, 4).shape == (4, 1)
    with pytest.raises(TaskError, match=r"the first had 4\. .*give the loader a `dataset` with a length"):
        loader_batch(short, 6)
    assert num_samples(data) == 4
