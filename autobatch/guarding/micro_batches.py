"""Cutting a batch of any structure into micro-batches, and the ways in which that may be done.

A shape does not show what a sample is. The rows of a tensor may be samples, but also the time steps of a batch with
time first; a list may have an image for each sample, or the fields of all samples. So there may be several ways to cut
a batch, and `guard.py` then tests them with the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..errors import TaskError
from ..tasks.data import Batch, shape_of

# A user's `split(batch, micro_batch_size)`.
Split = Callable[[Any, int], Any]
PASS_SPLIT = "pass split=, a function (batch, micro_batch_size) that gives the micro-batches"


class Cut(Protocol):
    """A way to cut a batch of a known number of samples."""

    @property
    def count(self) -> int:
        """The number of samples in the batch."""

    def pieces(self, size: int) -> list[tuple[Batch, int]]:
        """Micro-batches of at most `size` samples, as few as possible, each with its number of samples."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Every tensor of the batch is cut along dimension 0, or lists with an entry for each sample by their entries.

    Attributes:
        batch: the batch to cut.
        count: its number of samples.
        by: "rows" if lists of tensors are the fields of all samples; "entries" if the batch itself is a list of
            samples; "lists" if the lists of this length in it have an entry for each sample.
        is_sure: whether the shapes allow no other way.
    """

    batch: Batch
    count: int
    by: Literal["rows", "entries", "lists"]
    is_sure: bool = False

    def pieces(self, size: int) -> list[tuple[Batch, int]]:
        """The batch in pieces whose sizes differ by at most one.

        A last piece of a single sample would be refused by batch norm, and would need another compilation.
        """
        return [
            (self._taken(self.batch, slice(start, stop), "batch"), stop - start)
            for start, stop in pairwise(_even(self.count, size))
        ]

    def take(self, samples: Sequence[int]) -> Batch:
        """The samples with these numbers, as a batch.

        Raises:
            TaskError: the batch has a part that cannot be cut in this way.
        """
        return self._taken(self.batch, list(samples), "batch")

    def _taken(self, value: Any, where: slice | list[int], path: str) -> Any:
        if isinstance(value, (Tensor, np.ndarray)):
            return self._rows(value, where, path)
        if isinstance(value, Mapping):
            items = {key: self._taken(entry, where, f"{path}[{key!r}]") for key, entry in value.items()}
            return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
        if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
            if hasattr(value, "_fields"):
                fields = zip(value._fields, value, strict=True)
                return type(value)(*(self._taken(entry, where, f"{path}.{name}") for name, entry in fields))
            is_own = self.by == ("entries" if value is self.batch else "lists")
            if len(value) == self.count and ((is_own and _is_of_entries(value)) or not _holds_tensors(value)):
                return value[where] if isinstance(where, slice) else type(value)(value[index] for index in where)
            return type(value)(self._taken(entry, where, f"{path}[{index}]") for index, entry in enumerate(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value) if field.init]
            changes = {name: self._taken(getattr(value, name), where, f"{path}.{name}") for name in names}
            return dataclasses.replace(value, **changes)
        if _is_graph_batch(value):
            graphs = value.to_data_list()
            if len(graphs) != self.count:
                raise self._mismatch(path, f"holds {len(graphs)} graphs")
            chosen = graphs[where] if isinstance(where, slice) else [graphs[index] for index in where]
            return type(value).from_data_list(chosen)
        if hasattr(value, "to"):  # packed sequences, graphs of other libraries: their rows are not samples
            raise TaskError(
                f"to split a batch, its tensors are in tuples, lists, mappings or dataclasses; {path} is a "
                f"{type(value).__name__}: {PASS_SPLIT}"
            )
        return value

    def _rows(self, value: Any, where: slice | list[int], path: str) -> Any:
        if value.ndim == 0:
            return value
        if shape_of(value)[0] != self.count:
            raise self._mismatch(path, f"has shape {shape_of(value)}")
        if isinstance(value, Tensor) and value.is_nested:
            rows = value.unbind()
            chosen = rows[where] if isinstance(where, slice) else [rows[index] for index in where]
            return torch.nested.as_nested_tensor(list(chosen), layout=value.layout)
        return value[where]

    def _mismatch(self, path: str, found: str) -> TaskError:
        return TaskError(
            f"to split a batch of {self.count} samples (counted by its first tensor), each tensor in it has a row for "
            f"every sample, or is a single value; {path} {found}: {PASS_SPLIT}"
        )


def ways_to_cut(batch: Batch) -> list[Parts]:
    """The ways in which the batch can be cut, by rows before by entries. An only way is certain if the shapes show it.

    They show it if a tensor with rows of numbers comes with one of single numbers, such as labels; if a tensor or a
    graph batch counts its own samples; if a list has a text for each sample; and if two lists have an entry for each.

    Raises:
        TaskError: there is no way. The message says what the batch contains.
    """
    rows = next((count for node in _nodes(batch) if (count := _row_count(node)) is not None), None)
    found = [] if rows is None else [Parts(batch, rows, "rows")]
    found += [Parts(batch, len(batch), "entries")] if _is_of_entries(batch) else []
    lists = dict.fromkeys(len(node) for node in islice(_nodes(batch), 1, None) if _is_of_entries(node))
    found += [Parts(batch, count, "lists") for count in lists]
    problems, ways = list[TaskError](), list[Parts]()
    for way in found:
        try:
            way.take([0])
        except TaskError as error:
            problems.append(error)
        else:
            ways.append(way)
    if problems and not ways:
        raise problems[0]
    if not ways:
        Parts(batch, 1, "rows").take([0])  # names an unknown object
        raise TaskError(f"a batch holds at least one tensor with a batch dimension; found {type(batch).__name__}")
    if len(ways) == 1:
        ways = [dataclasses.replace(ways[0], is_sure=_is_seen(batch, ways[0]))]
    return ways


@dataclass(frozen=True, slots=True)
class BySplit:
    """The user's own function cuts the batch: into single samples, to count them, or into larger pieces."""

    batch: Batch
    split: Split
    count: int

    @classmethod
    def of(cls, batch: Batch, split: Split) -> BySplit:
        """The batch with its samples counted.

        Raises:
            TaskError: `split` returns no list of batches.
        """
        return cls(batch, split, len(_listed(split, batch, 1)))

    def pieces(self, size: int) -> list[tuple[Batch, int]]:
        """The result of `split`.

        Raises:
            TaskError: it leaves samples out, or returns larger pieces than requested.
        """
        bounds = _even(self.count, size)
        asked = max((stop - start for start, stop in pairwise(bounds)), default=size)
        found = [(piece, len(_listed(self.split, piece, 1))) for piece in _listed(self.split, self.batch, asked)]
        counts = [count for _, count in found]
        if sum(counts) != self.count or max(counts) > asked:
            raise TaskError(
                f"split(batch, micro_batch_size) gives every sample once, at most micro_batch_size at a time; of "
                f"{self.count} samples, as split(batch, 1) gives them, split(batch, {asked}) made micro-batches of "
                f"{', '.join(map(str, counts))}"
            )
        return found


def _listed(split: Split, batch: Batch, size: int) -> list[Batch]:
    found = split(batch, size)
    pieces = [] if isinstance(found, (Tensor, Mapping, str)) or not hasattr(found, "__iter__") else list(found)
    if not pieces:
        raise TaskError(
            f"split(batch, micro_batch_size) gives a list of batches, at least one; split(batch, {size}) gave "
            f"{'an empty one' if isinstance(found, (list, tuple)) else f'a {type(found).__name__}'}"
        )
    return pieces


def _even(count: int, size: int) -> list[int]:
    """Where pieces of at most `size` begin, and where the last one ends."""
    pieces = -(-count // size)
    return [count * index // pieces for index in range(pieces + 1)]


# How many entries of a list determine its kind. Assumed: those of a batch's fields differ among the first few.
_FIRST_ENTRIES = 8


def kind_of(value: Any) -> tuple[Any, ...]:
    """The structure of a batch without any lengths: batches of one kind are cut in one way."""
    name = type(value).__name__
    if isinstance(value, (Tensor, np.ndarray)):
        return name, str(value.dtype), value.ndim
    if isinstance(value, Mapping):
        return name, *((key, kind_of(entry)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return name, *dict.fromkeys(map(kind_of, value[:_FIRST_ENTRIES]))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return name, *(kind_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return (name,)


def _are_alike(values: Sequence[Any]) -> bool:
    """Whether entries may be of one sample each: all of one kind, as the fields of a batch seldom are."""
    return len(set(map(kind_of, values))) == 1


def _nodes(value: Any, kept_whole: int | None = None) -> Iterator[Any]:
    """The parts of a batch, itself first, without those in a list with an entry for each of `kept_whole` samples."""
    yield value
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        inside = [] if kept_whole is not None and len(value) == kept_whole and _is_of_entries(value) else list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        inside = []
    for part in inside:
        yield from _nodes(part, kept_whole)


def _row_count(node: Any) -> int | None:
    """The number of samples in a part of a batch if its rows are samples; None for a part without rows."""
    if isinstance(node, (Tensor, np.ndarray)):
        return shape_of(node)[0] if node.ndim else None
    if isinstance(node, PackedSequence):
        return int(node.batch_sizes[0])
    return int(node.num_graphs) if _is_graph_batch(node) else None


def _is_of_entries(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence)
    return is_list and not hasattr(value, "_fields") and _holds_tensors(value) and _are_alike(value)


def _is_seen(batch: Batch, way: Parts) -> bool:
    """Whether the shapes show that the only way to cut a batch is the right one."""
    if way.by != "rows":
        nodes = list(_nodes(batch, kept_whole=way.count))
        lists = sum(_is_of_entries(node) and len(node) == way.count for node in nodes)
        return lists + sum(_row_count(node) == way.count for node in nodes) > 1
    ranks = set()
    for node in _nodes(batch):
        if _is_graph_batch(node) or (isinstance(node, Tensor) and node.is_nested):
            return True
        if isinstance(node, (list, tuple)) and len(node) == way.count and not _holds_tensors(node):
            return True
        if isinstance(node, (Tensor, np.ndarray)):
            ranks.add(node.ndim)
    return 1 in ranks and max(ranks) > 1


def _is_graph_batch(value: Any) -> bool:
    """Whether it is a torch_geometric batch, which can be separated into the graphs that were collated."""
    return hasattr(value, "to_data_list") and hasattr(type(value), "from_data_list") and hasattr(value, "num_graphs")


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _holds_tensors(list(value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return hasattr(value, "to") or isinstance(value, np.ndarray) or dataclasses.is_dataclass(value)
