"""Cutting a batch into micro-batches, whatever structure it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..errors import TaskError
from ..tasks.data import Batch, tensors_of


def count_samples(batch: Batch) -> int:
    """Samples in a batch: the first dimension of the first tensor in it that has one.

    Raises:
        TaskError: there is no such tensor.
    """
    if isinstance(batch, PackedSequence):  # its tensors run over time steps, not over sequences
        return int(batch.batch_sizes[0])
    for tensor in tensors_of(batch):
        if tensor.ndim:
            return int(tensor.shape[0])
    raise TaskError(f"a batch holds at least one tensor with a batch dimension; found {type(batch).__name__}")


def micro_batches(batch: Batch, count: int, size: int) -> list[tuple[Batch, int]]:
    """The batch of `count` samples in pieces of at most `size`, as few as there can be, each with its own count.

    Their sizes differ by one at most: a last piece of a single sample would be refused by batch norm, and be a shape of
    its own to compile for.

    Raises:
        TaskError: the batch holds something that cannot be cut.
    """
    pieces = -(-count // size)
    starts = [count * index // pieces for index in range(pieces + 1)]
    return [(cut_batch(batch, count, slice(start, stop)), stop - start) for start, stop in pairwise(starts)]


def cut_batch(value: Batch, count: int, where: slice, path: str = "batch") -> Batch:
    """The same structure with some of its `count` samples: tensors and arrays cut along dimension 0.

    A list or tuple with one entry a sample and no tensor in it, such as of strings, is cut too. Whatever else belongs
    to no sample (single values, lists of another length) is in every piece.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim == 0:
            return value
        if value.shape[0] == count:
            return value[where]
        raise TaskError(
            f"to split a batch of {count} samples (counted by its first tensor), each tensor in it has a row for every "
            f"sample, or is a single value; {path} has shape {tuple(value.shape)}"
        )
    if isinstance(value, Mapping):
        items = {key: cut_batch(entry, count, where, f"{path}[{key!r}]") for key, entry in value.items()}
        return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        if hasattr(value, "_fields"):
            fields = zip(value._fields, value, strict=True)
            return type(value)(*(cut_batch(entry, count, where, f"{path}.{name}") for name, entry in fields))
        if len(value) == count and not _holds_tensors(value):
            return value[where]
        return type(value)(cut_batch(entry, count, where, f"{path}[{index}]") for index, entry in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        changes = {name: cut_batch(getattr(value, name), count, where, f"{path}.{name}") for name in names}
        return dataclasses.replace(value, **changes)
    if hasattr(value, "to"):  # graphs, packed sequences: tensors are in it, whose rows are not samples
        raise TaskError(
            f"to split a batch, its tensors are in tuples, lists, mappings or dataclasses; {path} is a "
            f"{type(value).__name__}: let the batch hold tensors, and build it from them in loss(model, batch)"
        )
    return value


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _holds_tensors(list(value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return hasattr(value, "to") or isinstance(value, np.ndarray) or dataclasses.is_dataclass(value)
