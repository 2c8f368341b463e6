"""How samples become batches: their order, how they are collated, how they reach the device.

The order is a function of (seed, position): sample number p of a trial is entry `p mod n` of the permutation of epoch
`p // n`. An optimizer step takes the next `effective_batch_size` samples of that stream. So a resumed trial sees the
same samples as an uninterrupted one, and 2 x 16 accumulated sees the same as 1 x 32. No step is short: the stream goes
on into the next epoch. Iterable datasets and a task's own `train_loader` keep their own order, and are skipped forward
on resume.

Of several ranks that take a step together, rank r takes every N-th sample of the same stream, so N ranks of 16 see the
same as one process of N x 16. Of iterable data it takes every N-th sample; a `train_loader` divides the data itself.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate, get_worker_info

from ..core.plan import Plan
from ..errors import AutobatchError, TaskError
from .fixed_seeds import fixed_seeds_undone
from .state import preserve_generators, rng_state, set_rng_state
from .task import Task, blame
from .task_file import line_of

Batch = Any  # what the user's dataset and collate make


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device: model initialisation, dropout and augmentation follow this seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_host(seed: int) -> None:
    """Seed the generators of the host, which reading a sample may use: 8 us instead of the 5.7 ms of `seed_everything`.

    (Measured, torch 2.13 on a slow machine: `torch.manual_seed` formats the stack for each device not yet in use.)
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def to_device(batch: Batch, device: torch.device, layout: torch.memory_format | None = None) -> Batch:
    """The same structure with all its tensors on `device`: tensors, mappings, sequences, dataclasses, or `.to()`.

    Args:
        layout: of tensors with four dimensions, which are images; None to leave it.
    """
    if isinstance(batch, torch.Tensor):
        if layout is not None and batch.ndim == 4:
            return batch.to(device, non_blocking=True, memory_format=layout)
        return batch.to(device, non_blocking=True)
    if isinstance(batch, PackedSequence):  # a named tuple whose batch_sizes must stay on the host
        return batch.to(device)  # type: ignore[arg-type]  # torch types `dtype` alone; tensors' own arguments work
    if isinstance(batch, Mapping):
        moved = {key: to_device(value, device, layout) for key, value in batch.items()}
        return moved if type(batch) is dict else type(batch)(moved)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device, layout) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device, layout) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: to_device(getattr(batch, name), device, layout) for name in fields})
    move = getattr(batch, "to", None)  # BatchEncoding, graph batches
    return move(device) if callable(move) else batch


class Collated(NamedTuple):
    """A batch, and how many samples were collated into it.

    No shape shows that number for lists of images, batches with time first, graphs, or two views of each sample. It is
    a tuple because a DataLoader pins tuples, and sends them from its workers, as they are.
    """

    batch: Batch
    samples: int


class CountingCollate:
    """A collate function that returns batches with their number of samples; a class, so that it reaches spawned
    workers.
    """

    def __init__(self, collate: Callable[[list[Any]], Batch] | None) -> None:
        self.collate = collate or default_collate

    def __call__(self, samples: list[Any]) -> Collated:
        return Collated(self.collate(samples), len(samples))


def tensors_of(batch: Batch) -> Iterator[torch.Tensor | np.ndarray[Any, Any]]:
    """Every tensor and array in a batch of any structure, except inside other objects."""
    if isinstance(batch, (torch.Tensor, np.ndarray)):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence):
        for value in batch:
            yield from tensors_of(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from tensors_of(getattr(batch, field.name))


def rows_of(batch: Batch) -> int | None:
    """The length of dimension 0 that all tensors of a batch share; None if they do not. Rows need not be samples."""
    lengths = {shape_of(tensor)[0] for tensor in tensors_of(batch) if tensor.ndim}
    return lengths.pop() if len(lengths) == 1 else None


def shape_of(tensor: torch.Tensor | np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The shape; for a nested tensor, whose other dimensions have no single length, dimension 0 alone."""
    if isinstance(tensor, torch.Tensor) and tensor.is_nested:
        return (tensor.size(0),)
    return tuple(map(int, tensor.shape))


def collate_samples(task: Task, samples: list[Any]) -> Batch:
    """One batch of these samples, by the task's `collate` or torch's default."""
    return (task.collate or default_collate)(samples)


def goes_on(data: object) -> str:
    """Why data cannot be read again, and what to do; to follow a colon."""
    return (
        f"{type(data).__name__}.__iter__{line_of(getattr(type(data), '__iter__', None))} goes on where it stopped "
        "before, or is at its end. Open files and make iterators inside __iter__, so that each call begins anew"
    )


def num_samples(data: object) -> int | None:
    """The number of samples in a dataset; None for an iterable dataset without a length."""
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


# The most seconds for counting the samples of data without a length. Assumed: start-up can take two more.
_COUNTING_S = 2.0


def counted_samples(task: Task, data: Any) -> int | None:
    """The number of samples in training data without a length, by an iteration over it; None if that takes long.

    Args:
        task: its `train_loader`, if there is one, is called for batches of one sample.
        data: an iterable dataset; ignored if the task has a `train_loader`.
    """
    started = perf_counter()
    count = 0
    for _ in data if task.train_loader is None else task.train_loader(1, 0):
        count += 1
        if perf_counter() - started > _COUNTING_S:
            return None
    return count


def counting_loader(loader: Any) -> Any:
    """The same DataLoader with `Collated` batches; a loader that may change its batches is returned as it is."""
    of_torch = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if not of_torch or loader.batch_sampler is None or type(loader)._get_iterator is not DataLoader._get_iterator:
        return loader
    counting = copy.copy(loader)
    counting.collate_fn = CountingCollate(loader.collate_fn)
    return counting


def load_data(task: Task, name: str) -> Any:
    """The result of the task's function `name`: "train_data", "val_data" or "test_data".

    It always runs under one seed. So a random split is the same in every process, and that of `train_data` is the
    complement of that of `val_data`.

    Raises:
        TaskError: the function raises. The error has the user's own frames.
    """
    with preserve_generators():
        seed_everything(0)
        try:
            return getattr(task, name)()
        except AutobatchError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the user's code may raise anything
            raise blame(f"{name}()", error, task.path) from None


class SampleStream(Sampler[list[tuple[int, int]]]):
    """Batches of (position, index), endlessly, as a function of the seed; see the module's docstring.

    Args:
        num_samples: of the data.
        batch_size: the number of samples of one rank.
        seed: of the order.
        start: the position of the first batch of all ranks together.
        rank, ranks: this rank takes every `ranks`-th position, from `start + rank` on.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.num_samples, self.batch_size, self.seed, self.start = num_samples, batch_size, seed, start
        self.rank, self.ranks = rank, ranks

    def permutation(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The order of the samples in an epoch: 8 bytes for each, where a list of integers takes 36."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.num_samples, generator=generator).numpy()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position, epoch, order = self.start, -1, np.zeros(1, dtype=np.int64)
        while True:
            batch = []
            end = position + self.ranks * self.batch_size
            for p in range(position + self.rank, end, self.ranks):
                if p // self.num_samples != epoch:
                    epoch = p // self.num_samples
                    order = self.permutation(epoch)
                batch.append((p, int(order[p % self.num_samples])))
            position = end
            yield batch


class _EveryNth(IterableDataset[Any]):
    """This rank's sample out of each `ranks` samples of an iterable dataset. An incomplete group at the end is dropped.

    So all ranks have equally many. Each still reads all samples.
    """

    def __init__(self, data: Any, rank: int, ranks: int) -> None:
        self.data, self.rank, self.ranks = data, rank, ranks

    def __iter__(self) -> Iterator[Any]:
        samples = iter(self.data)
        return (group[self.rank] for group in zip(*[samples] * self.ranks, strict=False))


# Far above any batch that fits. A permutation of this many indices is still only 8 MiB.
_DATASET_LENGTH = 2**20


class SampleDataset(Dataset[Any]):
    """A dataset of `length` times the same sample, for batches of any size: a stand-in for data."""

    def __init__(self, sample: Any, length: int = _DATASET_LENGTH) -> None:
        self.sample, self.length = sample, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} of {self.length} samples")
        return self.sample


class _Streamed(Dataset[Any]):
    """The user's dataset, read by (position, index).

    In a loader's worker process the random generators are seeded by the position, because another worker may get a
    batch after a resume. In the trainer's own process they are left alone, unless a sample sets a seed itself: their
    state is in the checkpoint.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Any]:
        if get_worker_info() is not None:
            seed_host(self._seed_at(keys))
        indices = [index for _, index in keys]
        fetch = getattr(self.data, "__getitems__", None)
        before = torch.initial_seed()
        samples = fetch(indices) if fetch else [self.data[index] for index in indices]
        if get_worker_info() is None and torch.initial_seed() != before:
            # A sample sets a seed, for example to be cropped the same each time: dropout would then be the same under
            # every seed.
            seed_everything(self._seed_at(keys))
        return samples

    def _seed_at(self, keys: list[tuple[int, int]]) -> int:
        return (self.seed * 1_000_003 + keys[0][0]) % 2**63


# Arguments that a DataLoader accepts only if it has workers.
_OF_WORKERS = ("persistent_workers", "prefetch_factor", "timeout", "multiprocessing_context", "worker_init_fn")


def _arguments(task: Task, change: Mapping[str, Any] | None) -> dict[str, Any]:
    """The task's DataLoader arguments with this change, without those that the change makes useless."""
    arguments = {**task.loader, **(change or {})}
    if change is not None and not arguments.get("num_workers"):
        arguments = {name: value for name, value in arguments.items() if name not in _OF_WORKERS}
    return arguments


def _epochs(
    task: Task, data: Any, batch_size: int, seed: int, loader: Mapping[str, Any] | None
) -> Iterator[Iterable[Batch]]:
    """One iterable of batches per epoch, for data that has its own order."""
    epoch = 0
    while True:
        if task.train_loader is not None:
            with fixed_seeds_undone(seed + epoch):  # up to its first batch: many loaders are generators
                batches = iter(task.train_loader(batch_size, seed + epoch))
                first = list(islice(batches, 1))
            yield chain(first, batches)
        else:
            # A separate generator, as below: a resumed trial sets up its epochs after its generators were restored.
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            yield DataLoader(
                data,
                batch_size=batch_size,
                drop_last=True,
                collate_fn=task.collate,
                generator=generator,
                **_arguments(task, loader),
            )
        epoch += 1


def training_batches(
    task: Task,
    data: Any,
    plan: Plan,
    *,
    seed: int,
    start_step: int = 0,
    loader: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> Iterator[Batch]:
    """Micro-batches on the host, endlessly, from optimizer step `start_step` on.

    Args:
        task: has `collate`, `loader` and `train_loader`.
        data: the result of `task.train_data()`; ignored if the task has a `train_loader`.
        plan: `batch_size` samples per micro-batch, `accumulation_steps` micro-batches per optimizer step.
        seed: of the order.
        start_step: how many optimizer steps were already taken under this plan and seed.
        loader: DataLoader arguments that replace those of the task. A `train_loader` takes none.
        rank: the number of this process among the `plan.ranks` that take a step together. It gets its share.

    Raises:
        TaskError: an epoch has no batch.
    """
    if task.train_loader is None and not isinstance(data, IterableDataset):
        start = start_step * plan.effective_batch_size
        yield from DataLoader(
            _Streamed(data, seed),
            batch_sampler=SampleStream(len(data), plan.batch_size, seed=seed, start=start, rank=rank, ranks=plan.ranks),
            collate_fn=task.collate,
            generator=torch.Generator().manual_seed(seed),  # otherwise each loader draws from the trial's own generator
            **_arguments(task, loader),
        )
        return
    mine = _EveryNth(data, rank, plan.ranks) if plan.ranks > 1 and task.train_loader is None else data
    skip = start_step * plan.accumulation_steps
    before = rng_state() if skip else None
    given = False
    for epoch in _epochs(task, mine, plan.batch_size, seed, loader):
        empty = True
        for batch in epoch:
            empty, given = False, True
            if skip:
                skip -= 1
                if (
                    not skip and before is not None
                ):  # the trial's own state: skipped samples have drawn again, or set a seed
                    set_rng_state(before)
                continue
            yield batch
        if empty and given:
            begin = "gave batches in one epoch and none in the next"
            if task.train_loader is None:
                raise TaskError(f"train_data() {begin}: {goes_on(data)}")
            raise TaskError(
                f"train_loader(batch_size, seed){line_of(task.train_loader)} {begin}: create what "
                "can be read only once inside the function, so that each call begins anew"
            )
        if empty:
            raise TaskError(f"the training data gives no whole batch of {plan.batch_size} samples")


class DeviceLoader:
    """A loader whose batches arrive on the device. A task's `evaluate(model, loader)` iterates over it."""

    def __init__(
        self, batches: Iterable[Collated], device: torch.device, layout: torch.memory_format | None = None
    ) -> None:
        self.batches, self.device, self.layout = batches, device, layout

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.counted())

    def counted(self) -> Iterator[Collated]:
        """The same batches with their numbers of samples."""
        return (Collated(to_device(batch, self.device, self.layout), samples) for batch, samples in self.batches)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # raises a TypeError if there is no length


def val_loader(task: Task, data: Any, batch_size: int) -> DataLoader[Collated]:
    """Batches of an evaluation set on the host, in its own order. The last one may be short."""
    collate = CountingCollate(task.collate)
    return DataLoader(data, batch_size=batch_size, shuffle=False, collate_fn=collate, **task.loader)
