"""The batch that needs the most memory, made of the largest samples in the data.

An epoch meets them sooner or later, and a batch size that was found on average samples fails there. The task can say
how large a sample is (`sample_size`). Otherwise the samples show it: the total of their numbers, and the extent of
every dimension of every part. A collate that pads makes a batch as long as its longest text *and* as wide as its widest
image, which may be two samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, cycle, islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, IterableDataset

from ..core.facts import WorstCase
from ..errors import TaskError
from .data import Batch, Collated, collate_samples, counting_loader, goes_on, rows_of, seed_host, shape_of, tensors_of
from .state import preserve_generators
from .task import Task

# How many samples from all over the data, and for how many seconds, to look at if they all have one size. Assumed: if
# lengths vary, they mostly differ among this many; data in memory is seen completely in that time.
_GLANCE, _GLANCE_S = 64, 1.0
_SCAN_S = 10.0  # assumed: the most seconds for the rest; reading 10,000 images takes longer, and is seldom needed
# Distinct samples in a probe. The rest of the batch repeats them. Assumed: more of them say no more about memory.
_PROBE_SAMPLES = 32


def find_worst_case(data: Any, sample_size: Callable[[Any], Any] | None = None) -> WorstCase:
    """Where the largest samples are: of all samples, if their sizes vary and `_SCAN_S` is enough to look at each.

    By `sample_size` if there is one, otherwise by the extents of the sample's tensors, arrays, texts and lists.

    Raises:
        TaskError: `sample_size` returns no number.
    """
    started = perf_counter()
    seen = _Seen()
    is_iterable = isinstance(data, IterableDataset)
    num_samples = None if is_iterable else len(data)
    with preserve_generators():
        samples = _stream(data) if num_samples is None else _fetched(data, _spread(num_samples))
        num_scanned, first, is_one_object = 0, None, True
        for index, sample in samples:
            if sample_size is not None:
                size = float(sample_size(sample))
                if math.isnan(size):
                    raise TaskError(f"sample_size(sample) gives a number; it gave nan for sample {index}")
                seen.add(index, size, {})
            else:
                extents: dict[Extent, int] = {}
                seen.add(index, float(_measure(sample, (), extents)), extents)
            first = sample if num_scanned == 0 else first
            is_one_object = is_one_object and sample is first
            num_scanned += 1
            seconds = perf_counter() - started
            if sample_size is None and not seen.varies and num_scanned >= _GLANCE:
                if is_one_object:
                    num_scanned = num_samples or num_scanned  # one sample stands for all: all are equal
                if is_one_object or seconds > _GLANCE_S:
                    break
            if seconds > _SCAN_S:
                break
        else:
            num_samples = num_scanned  # all samples, also if the data has no length
    return WorstCase(
        largest=tuple(sorted(seen.largest)[:_PROBE_SAMPLES]),
        widest=tuple(sorted(set(seen.widest.values()) - seen.largest)),
        num_scanned=num_scanned,
        num_samples=num_samples,
        varies=seen.varies,
        seconds=perf_counter() - started,
    )


def _fetched(data: Any, indices: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Samples with their indices, each read under its own seed: a random crop is the same at each call."""
    for index in indices:
        seed_host(index)
        yield index, data[index]


def _stream(data: Any) -> Iterator[tuple[int, Any]]:
    """Samples with their positions, read under one seed: a shuffled stream has the same order each time."""
    seed_host(0)
    return enumerate(data)


Extent = tuple[str | int, ...]  # which dimension of which part of a sample


class _Seen:
    """The largest samples so far."""

    def __init__(self) -> None:
        self.largest: set[int] = set()
        self.widest: dict[Extent, int] = {}
        self.varies = False
        self._size = -math.inf
        self._extents: dict[Extent, int] = {}

    def add(self, index: int, size: float, extents: dict[Extent, int]) -> None:
        if self.largest and (size != self._size or extents != self._extents):
            self.varies = True
        if size > self._size:
            self._size = size
            self.largest.clear()
        if size == self._size:
            self.largest.add(index)
        for extent, length in extents.items():
            if length > self._extents.get(extent, -1):
                self._extents[extent], self.widest[extent] = length, index


def _measure(part: Any, where: Extent, extents: dict[Extent, int]) -> int:
    """How many numbers (or characters) a part of a sample has. The extents of its dimensions go into `extents`."""
    if isinstance(part, PackedSequence):
        part = part.data
    if isinstance(part, torch.Tensor | np.ndarray):
        shape = shape_of(part)
        for dimension, length in enumerate(shape):
            extents[*where, dimension] = length
        return part.numel() if isinstance(part, torch.Tensor) and part.is_nested else math.prod(shape)
    if isinstance(part, str | bytes):
        extents[*where, "length"] = len(part)
        return len(part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        part = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if isinstance(part, Mapping):
        return sum(_measure(value, (*where, str(key)), extents) for key, value in part.items())
    if isinstance(part, tuple):
        return sum(_measure(value, (*where, f"[{index}]"), extents) for index, value in enumerate(part))
    if isinstance(part, list):  # of like things, as many as there are
        extents[*where, "length"] = len(part)
        if part and isinstance(part[0], int | float):
            return len(part)
        inside: dict[Extent, int] = {}
        total = 0
        for value in part:
            one: dict[Extent, int] = {}
            total += _measure(value, (*where, "[*]"), one)
            for extent, length in one.items():
                inside[extent] = max(length, inside.get(extent, 0))
        extents.update(inside)
        return total
    return _measure_object(part, where, extents)


def _measure_object(part: Any, where: Extent, extents: dict[Extent, int]) -> int:
    """The same for other kinds: images that have a `size`, graphs, containers, objects with attributes."""
    size = getattr(part, "size", None)
    if isinstance(size, tuple) and all(isinstance(extent, int) for extent in size):
        extents.update({(*where, dimension): extent for dimension, extent in enumerate(size)})
        return math.prod(size)
    if hasattr(part, "to_dict") and callable(part.to_dict):  # graphs
        inside = part.to_dict()
        return _measure(inside, where, extents) if isinstance(inside, Mapping) else 1
    if hasattr(type(part), "__len__"):
        extents[*where, "length"] = len(part)
        return len(part)
    known = (torch.Tensor, np.ndarray, str, bytes, list)  # no other objects, which may hold themselves
    attributes = {name: value for name, value in getattr(part, "__dict__", {}).items() if isinstance(value, known)}
    return max(1, _measure(attributes, where, extents))


def _spread(count: int) -> Iterator[int]:
    """All indices below `count`, with every first few of them spread evenly: data is often sorted by length."""
    step = max(1, round(count * (math.sqrt(5) - 1) / 2))  # the golden section: Knuth, Sorting and Searching, 6.4
    while math.gcd(step, count) != 1:
        step += 1
    return (position * step % count for position in range(count))


def _samples_at(data: Any, wanted: set[int]) -> dict[int, Any]:
    """The samples at these indices or positions, as they were when they were measured."""
    with preserve_generators():
        if isinstance(data, IterableDataset):  # the others are released: they would count in a probe's memory
            passed = islice(_stream(data), 1 + max(wanted, default=-1))
            return {position: sample for position, sample in passed if position in wanted}
        return dict(_fetched(data, sorted(wanted)))


def largest_sample(data: Any, worst_case: WorstCase) -> Any:
    """One of the largest samples of `data`."""
    return _samples_at(data, {worst_case.largest[0]})[worst_case.largest[0]]


class WorstSamples:
    """The samples of a `WorstCase`, to make batches from."""

    def __init__(self, task: Task, data: Any, worst_case: WorstCase) -> None:
        self._task = task
        samples = _samples_at(data, {*worst_case.largest, *worst_case.widest})
        if lost := {*worst_case.largest, *worst_case.widest} - set(samples):
            raise TaskError(
                f"data must give the same samples each time: it gave {worst_case.num_scanned:,} when it was read first "
                f"and no sample {min(lost):,} when it was read again: {goes_on(data)}"
            )
        self._largest = [samples[index] for index in worst_case.largest]
        self._widest = [samples[index] for index in worst_case.widest]

    def batch(self, batch_size: int) -> Batch:
        """A batch of exactly `batch_size`: one of the largest samples, each of the widest, and more of the largest."""
        first, rest = self._largest[:1], cycle(self._largest[1:] + self._largest[:1])
        return collate_samples(self._task, list(islice(chain(first, self._widest, rest), batch_size)))


def _lengths(batch: Batch) -> Iterator[int]:
    """The lengths of every dimension of every tensor in a batch, and of every list."""
    for tensor in tensors_of(batch):
        yield from shape_of(tensor)
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        yield len(batch)
    for part in batch if isinstance(batch, (list, tuple)) else ():
        if isinstance(part, (list, tuple, Mapping)):
            yield from _lengths(part)


def loader_batch(task: Task, batch_size: int, *, seed: int = 0) -> Batch:
    """The first batch of the task's own `train_loader`.

    Samples that a DataLoader collates are counted. A batch of any other iterable should have the requested size, unless
    its rows show otherwise: a sample may have several rows, for example two views.

    Raises:
        TaskError: it has another number of samples than requested.
    """
    assert task.train_loader is not None
    return _first_batch(iter(counting_loader(task.train_loader(batch_size, seed))), batch_size, seed)


def checked_loader_batch(task: Task, batch_size: int) -> Batch:
    """The first batch of a `train_loader`, checked with another size too unless its samples are counted.

    Args:
        task: has a `train_loader`.
        batch_size: the size of the batch.

    Raises:
        TaskError: it ignores the batch size, or can be read only once.
    """
    assert task.train_loader is not None
    loader = task.train_loader(batch_size, 0)
    batches = iter(counting_loader(loader))
    batch = _first_batch(batches, batch_size, 0)
    if isinstance(loader, DataLoader):
        return batch
    of_another = batch_size - 1 if batch_size > 1 else 2
    another = iter(task.train_loader(of_another, 0))
    if another is batches:
        raise TaskError(
            "train_loader(batch_size, seed) must begin anew at each call; it returned the same iterator twice, which "
            "can be read only once: make it inside the function"
        )
    if rows_of(batch) is not None and list(_lengths(next(another, None))) == list(_lengths(batch)):
        raise _of_another_size(batch_size, 0, f"{rows_of(batch)}, as that of batch_size={of_another} had")
    return batch


def _first_batch(batches: Iterator[Any], batch_size: int, seed: int) -> Batch:
    first = next(batches, None)
    if isinstance(first, Collated):
        batch, samples = first
    else:
        batch, rows = first, rows_of(first)
        may_be = rows is None or (rows > 0 and rows % batch_size == 0) or batch_size in _lengths(batch)
        samples = batch_size if batch is not None and may_be else rows or 0
    if samples != batch_size:
        raise _of_another_size(batch_size, seed, str(samples))
    return batch


def _of_another_size(batch_size: int, seed: int, samples: str) -> TaskError:
    return TaskError(
        f"train_loader(batch_size={batch_size}, seed={seed}) gives batches of that many samples; the first had "
        f"{samples}. If the data holds no more, give the loader a `dataset` with a length"
    )
