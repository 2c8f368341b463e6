"""A project's own loaders, as a task's data: its dataset and collate function, or the loader made at another size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    default_collate,
)

from ...errors import TaskError
from .optimizer import holders, put, value_of

# DataLoader arguments that a loader made at another size keeps, and that a task's own loaders are given.
_KEPT = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)
_SIZE_NAME = "batch_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainData:
    """Training data in one of a task's two forms.

    Attributes:
        dataset: what is shuffled by the trial's seed; or
        loader: (batch_size, seed) -> batches, of a loader that has an order of its own. One of the two is there.
        collate: of the dataset; None for torch's.
        arguments: of a DataLoader.
        batch_size: today's; None where nothing says it.
        size: samples; None where nobody knows.
    """

    dataset: Any = None
    loader: Callable[[int, int], Iterable[Any]] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    arguments: Mapping[str, Any]
    batch_size: int | None
    size: int | None


def train_data_of(make: Callable[[], Any], owners: list[Any]) -> TrainData:
    """The training data of a project.

    Args:
        make: gives its training loader.
        owners: what may have a `batch_size` that the loader goes by: the data module, the module.

    Raises:
        TaskError: it has no loader, or one whose batch size cannot be changed.
    """
    loader = make()
    said = next((size for size in (value_of(owner, _SIZE_NAME) for owner in owners) if _is_size(size)), None)
    if loader is None:
        raise TaskError("train_dataloader() returns None: is its `return` missing?")
    plain = isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler
    if plain:
        batch_size, size = loader.batch_size, _size_of(loader.dataset)
        if isinstance(loader.sampler, RandomSampler) and not loader.sampler.replacement and _takes_all(loader):
            return TrainData(
                dataset=loader.dataset,
                collate=collate_of(loader),
                arguments=arguments_of(loader),
                batch_size=batch_size,
                size=size,
            )
        return TrainData(loader=_Rebuilt(make), arguments={}, batch_size=batch_size, size=size)
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset) and loader.batch_size:
        return TrainData(
            dataset=loader.dataset,
            collate=collate_of(loader),
            arguments=arguments_of(loader),
            batch_size=loader.batch_size,
            size=_size_of(loader.dataset),
        )
    if said is None:
        kind = type(loader).__name__
        if isinstance(loader, DataLoader):
            kind = f"a DataLoader with a {type(loader.batch_sampler).__name__}"
        raise TaskError(
            f"train_dataloader() returns {kind}, whose batch size is its own: give the data module (or the module) an "
            "attribute `batch_size`, and make the loader from it, so that another size can be set"
        )
    return TrainData(loader=_Sized(make, owners), arguments={}, batch_size=said, size=_loader_size(loader))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _takes_all(loader: Any) -> bool:
    return len(loader.sampler) == len(loader.dataset)


def _size_of(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _loader_size(loader: Any) -> int | None:
    return _size_of(getattr(loader, "dataset", None)) if hasattr(loader, "dataset") else None


def collate_of(loader: Any) -> Callable[[list[Any]], Any] | None:
    """The loader's collate function; None for torch's own."""
    return None if loader.collate_fn is default_collate else loader.collate_fn


def arguments_of(loader: Any) -> dict[str, Any]:
    """What a loader was made with and a task's loaders are given too, as far as it is not the default."""
    defaults = inspect.signature(DataLoader).parameters
    found = {name: getattr(loader, name, None) for name in _KEPT}
    kept = {name: value for name, value in found.items() if value is not None and value != defaults[name].default}
    if not kept.get("num_workers"):
        for name in ("prefetch_factor", "persistent_workers"):
            kept.pop(name, None)
    return kept


class _Rebuilt:
    """`train_loader(batch_size, seed)` by the user's loader with another size: its sampler, collate and workers."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self, batch_size: int, seed: int) -> Any:
        loader = self._make()
        for drawing in (loader.sampler, loader):
            generator = getattr(drawing, "generator", None)
            if generator is not None:
                generator.manual_seed(seed)
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(seed)
        return made_at_size(loader, batch_size, drop_last=True)


def made_at_size(loader: Any, batch_size: int, *, drop_last: bool) -> DataLoader[Any]:
    """The same loader with another batch size: its dataset, sampler, collate function and workers."""
    is_stream = isinstance(loader.dataset, IterableDataset)
    return DataLoader(
        loader.dataset,
        batch_size=batch_size,
        sampler=None if is_stream else loader.sampler,
        collate_fn=loader.collate_fn,
        drop_last=drop_last,
        generator=loader.generator,
        **arguments_of(loader),
    )


class _Sized:
    """`train_loader(batch_size, seed)` by the user's own function, after their `batch_size` was set."""

    def __init__(self, make: Callable[[], Any], owners: list[Any]) -> None:
        self._make, self._owners = make, owners

    def __call__(self, batch_size: int, seed: int) -> Any:
        for owner in self._owners:
            if list(holders(owner, _SIZE_NAME)):
                put(owner, _SIZE_NAME, batch_size)
        loader = self._make()
        sampler: Any = getattr(loader, "batch_sampler", None)
        found = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        if _is_size(found) and found != batch_size:
            raise TaskError(
                f"train_dataloader() makes batches of {found} samples after `batch_size` was set to {batch_size}: make "
                "the loader from that attribute"
            )
        drawing: Any
        for drawing in (loader, sampler, getattr(loader, "sampler", None)):
            if hasattr(drawing, "set_epoch"):
                drawing.set_epoch(seed)
            generator = getattr(drawing, "generator", None)
            if generator is not None:
                generator.manual_seed(seed)
        return loader


# -- validation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ValSample:
    """A sample of a validation set, and which of the loaders it is of."""

    loader: int
    sample: Any


@dataclass(frozen=True, slots=True)
class Parts:
    """A batch of validation samples, those of each loader collated by its own function."""

    parts: tuple[tuple[int, Any], ...]
    loaders: int


class _Marked(Dataset[ValSample]):
    """A validation set whose samples say which loader they are of."""

    def __init__(self, data: Any, loader: int) -> None:
        self.data, self.loader = data, loader

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> ValSample:
        return ValSample(self.loader, self.data[index])


class Collate:
    """Collates training samples by one function, and validation samples by that of their loader."""

    def __init__(self, train: Callable[[list[Any]], Any] | None, val: list[Callable[[list[Any]], Any] | None]) -> None:
        self._train, self._val = train, val

    def __call__(self, samples: list[Any]) -> Any:
        if not samples or not isinstance(samples[0], ValSample):
            return (self._train or default_collate)(samples)
        found: dict[int, list[Any]] = {}
        for one in samples:
            found.setdefault(one.loader, []).append(one.sample)
        parts = tuple(
            (loader, (self._val[loader] or default_collate)(collected)) for loader, collected in found.items()
        )
        return Parts(parts, len(self._val))


def val_data_of(loaders: Any, limit: int | float, train: TrainData) -> tuple[Any, Callable[[list[Any]], Any] | None]:
    """The validation data as one dataset, and the collate function of the task.

    Args:
        loaders: what `val_dataloader()` returns.
        limit: batches of each that are used, or a share of them.
        train: which shares the collate function.

    Raises:
        TaskError: there are none, or something else than DataLoaders.
    """
    found = list(_flat(loaders))
    if not found or limit == 0:
        why = "limit_val_batches=0 leaves no" if found else "there is no"
        raise TaskError(
            f"{why} validation data, so nothing could be scored: write val_dataloader() beside train_dataloader(), or "
            "pass datamodule=(train_loader, val_loader)"
        )
    for loader in found:
        if not isinstance(loader, DataLoader):
            raise TaskError(
                f"val_dataloader() must return a DataLoader, or a list of them; found {type(loader).__name__}"
            )
    sets = [_limited(loader, limit) for loader in found]
    collates = [collate_of(loader) for loader in found]
    # Compared and not by identity: a method of a data module is another object each time.
    if len(found) == 1 and (collates[0] == train.collate or train.dataset is None):
        return sets[0], collates[0]
    if any(isinstance(data, IterableDataset) for data in sets):
        raise TaskError(
            "validation data that is read as a stream (an IterableDataset) must be one loader, with the collate_fn of "
            "the training loader: make it a Dataset with a length and an index"
        )
    marked = [_Marked(data, index) for index, data in enumerate(sets)]
    return ConcatDataset(marked) if len(marked) > 1 else marked[0], Collate(train.collate, collates)


def _flat(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        for loader in loaders:
            yield from _flat(loader)
    elif loaders is not None:
        yield loaders


def _limited(loader: Any, limit: int | float) -> Any:
    if limit == 1.0 and isinstance(limit, float):
        return loader.dataset
    size = _size_of(loader.dataset)
    if size is None or isinstance(loader.dataset, IterableDataset):
        return loader.dataset
    kept = int(size * limit) if isinstance(limit, float) else limit * (loader.batch_size or 1)
    return Subset(loader.dataset, range(max(1, min(size, kept))))
