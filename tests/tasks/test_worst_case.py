"""A probe is made of the largest samples that the data has, whatever makes them large and wherever they are."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from autobatch import Task
from autobatch.errors import TaskError
from autobatch.tasks import worst_case
from autobatch.tasks.data import num_samples
from autobatch.tasks.worst_case import WorstSamples, find_worst_case, largest_sample, loader_batch


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
    found = find_worst_case(data)
    longest = max(lengths)
    assert {lengths[index] for index in found.largest} == {longest}
    assert found.num_scanned == found.num_samples == len(lengths)
    assert found.assumption is None
    batch = WorstSamples(task(), data, found).batch(batch_size)
    assert batch.shape[1] == batch_size
    assert batch.shape[0] == longest


def test_data_of_one_size_costs_a_glance_and_data_that_varies_a_look_at_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worst_case, "_GLANCE_S", -1.0)  # a slow disk: over when the first samples have come
    fixed, ragged = Listed(sequences([7] * 5000)), Listed(sequences([7, 8, 7, 6] * 1250))
    ragged.samples[2500] = torch.zeros(99)
    found = find_worst_case(fixed)
    assert found.num_scanned == fixed.reads < 100
    assert found.assumption is not None
    assert found.assumption == f"all samples have the size of the {fixed.reads} of 5000 that were looked at"
    found = find_worst_case(ragged)
    assert (found.largest, found.num_scanned) == ((2500,), 5000)
    # One odd sample among many alike is beyond a glance, unless the task measures samples itself.
    fixed.samples[2500] = torch.zeros(99)
    assert find_worst_case(fixed, len).largest == (2500,)


def test_what_is_in_memory_is_seen_whole_in_the_time_of_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_case, "_GLANCE_S", math.inf)
    data = Listed(sequences([7] * 3000))
    data.samples[2500] = torch.zeros(99)
    assert find_worst_case(data).largest == (2500,)


def test_one_sample_that_stands_for_all_is_looked_at_a_few_times() -> None:
    data = Listed([torch.zeros(7)] * 5000)
    found = find_worst_case(data)
    assert data.reads < 100
    assert found.assumption is None


class Drawn(Dataset[Any]):
    """A random crop: another length each time that a sample is asked for."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(int(torch.randint(1, 1000, ()) + np.random.randint(0, 1000)))


class Shuffled(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (torch.zeros(int(length)) for length in torch.randperm(100) + 1)


@pytest.mark.parametrize("data", [Drawn(), Shuffled()])
def test_a_sample_that_is_drawn_is_drawn_the_same_when_a_probe_is_made_of_it(data: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = find_worst_case(data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    longest = len(WorstSamples(task(), data, found).batch(1))
    torch.manual_seed(3)
    assert len(largest_sample(data, find_worst_case(data))) == longest
    assert longest > 99


def test_of_a_stream_only_what_a_probe_is_made_of_is_held() -> None:
    alive: list[Any] = []

    class Noted(IterableDataset[Any]):
        def __iter__(self) -> Any:
            for length in range(1, 200):
                sample = torch.zeros(length)
                alive.append(weakref.ref(sample))
                yield sample
                del sample

    data = Noted()
    found = find_worst_case(data)
    alive.clear()
    samples = WorstSamples(task(), data, found)
    assert sum(sample() is not None for sample in alive) <= 2
    assert len(samples.batch(1)) == 199


def test_a_measure_that_is_no_number_is_the_users_to_mend() -> None:
    with pytest.raises(TaskError, match=r"sample_size\(sample\) gives a number; it gave nan for sample"):
        find_worst_case(Listed(sequences([1, 2])), lambda sample: math.nan)


class Image:
    """As PIL has it."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size


class Graph:
    def __init__(self, nodes: int) -> None:
        self.x = torch.zeros(nodes, 3)


class Bag:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def test_a_sorted_dataset_is_not_mistaken_for_one_of_one_size() -> None:
    found = find_worst_case(Listed(sequences([1] * 3000 + [2] * 3000)))
    assert found.varies
    assert min(found.largest) >= 3000


def test_the_tasks_own_measure_decides_alone() -> None:
    samples = [torch.zeros(9), torch.zeros(1), torch.zeros(5)]
    found = find_worst_case(Listed(samples), lambda sample: -len(sample))
    assert (found.largest, found.widest) == ((1,), ())


def test_a_batch_holds_the_widest_of_every_dimension_beside_the_largest() -> None:
    images = [torch.zeros(3, 20, 20), torch.zeros(3, 40, 4), torch.zeros(3, 4, 50), torch.zeros(3, 2, 2)]
    found = find_worst_case(Listed(images))
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
        (Image((2, 3)), Image((3, 3))),
        (Graph(4), Graph(5)),
        (Bag(2), Bag(3)),
    ],
)
def test_whatever_a_sample_is_made_of_the_larger_is_found(small: Any, large: Any) -> None:
    assert find_worst_case(Listed([small, large, small])).largest == (1,)


def test_samples_beyond_the_time_for_looking_are_an_assumption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_case, "_SCAN_S", 0.0)
    found = find_worst_case(Listed(sequences([1, 2, 3])), len)
    assert found.num_scanned == 1
    told = find_worst_case(Streamed(sequences([1, 2, 3]))).assumption
    assert told == "all samples have the size of the 1 of data without a length that were looked at"
    monkeypatch.setattr(worst_case, "_SCAN_S", math.inf)
    monkeypatch.setattr(worst_case, "perf_counter", iter(range(0, 100, 1)).__next__)
    monkeypatch.setattr(worst_case, "_SCAN_S", 2.5)
    told = find_worst_case(Listed(sequences([1, 2, 3, 4, 5]))).assumption
    assert told is not None
    assert "among the 3 of 5 that were looked at" in told


def test_a_loader_that_gives_too_few_samples_is_not_mistaken_for_a_fit() -> None:
    data = Listed(sequences([1] * 4))
    short = task(train_loader=lambda batch_size, seed: DataLoader(data, batch_size=batch_size))
    assert loader_batch(short, 4).shape == (4, 1)
    with pytest.raises(TaskError, match=r"the first had 4\. .*give the loader a `dataset` with a length"):
        loader_batch(short, 6)
    assert num_samples(data) == 4
