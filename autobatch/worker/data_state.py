"""Whether a data set changes as it is read: what it keeps is nobody's state, so that trials do not begin with it anew.

A dataset is loaded once in a process and read by all of its trials. What only comes to be (a cache that fills, a file
that is opened at the first sample) changes no sample, and a generator's draws go on as they should. A number that is
another one after reading, such as a counter, may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import IterableDataset

from ..errors import TooLarge
from ..tasks.object_record import Node, Record
from ..tasks.object_writer import Writer

# Bytes of a tensor or an array that is looked at, and eight times the items of a container. Assumed: above it stand the
# samples themselves or a cache of them, and what is looked at takes milliseconds.
_LARGEST = 1 << 16
_GENERATORS = ("torch generator", "python generator", "numpy generator")
_ABSENT: Node = ["nothing"]


@contextmanager
def warning_of_changes(warnings: list[str], name: str, data: Any) -> Iterator[None]:
    """A warning about what reading `data` inside changes in it.

    Args:
        warnings: where it goes.
        name: of the function that gave the data, "train_data" or "val_data".
        data: the dataset, as it was loaded.
    """
    before = _written(data, None) if _begun(data) else None
    yield
    now = _written(data, before) if before is not None and _begun(data) else None
    if before is None or now is None:
        return
    if changed := _changed(before.record, now.record):
        listed = ", ".join(f"`{attribute}`" for attribute in changed)
        warnings.append(
            f"reading {name}() changes {listed}, which no trial begins with anew and no checkpoint keeps: where a "
            "sample depends on it, trials differ by what was read before them. Let a sample follow from its index and "
            "from random numbers, or keep this in the model, in the loss or in collate (without loader workers): "
            "there each trial has its own"
        )


def _begun(data: Any) -> bool:
    """Have a stream begin, so that its place in an epoch, which `__iter__` sets, is the same at each look."""
    if not isinstance(data, IterableDataset):
        return True
    try:
        next(iter(data), None)
    except Exception:  # noqa: BLE001  # of the user's code, which is about to be told of by those who read the samples
        return False
    return True


def _written(data: Any, before: Writer | None) -> Writer | None:
    writer = Writer({}, tensors="sum", largest=_LARGEST, before=before)
    try:
        writer.write("data", data)
    except TooLarge:
        return None
    return writer


def _changed(before: Record, now: Record) -> list[str]:
    """The attributes that hold something else now, each by its class and name."""
    known = range(len(before.objects))
    differ = {at for at in known if _holds_another(before.objects[at], now.objects[at])}
    found: dict[str, None] = {}
    for at in known:
        old, new = before.objects[at], now.objects[at]
        if old is None or new is None:
            continue
        was = dict(map(tuple, _attributes(old)))
        for attribute, value in _attributes(new):
            if _is_another(was.get(attribute, _ABSENT), value) or _leads_to(value, differ, now, set()):
                found[f"{old[1][1]}.{attribute}"] = None
    return list(found)


def _attributes(node: Node) -> list[Any]:
    """Names and values of what has attributes: an object, or a container of a class of the user's."""
    if node[0] == "object":
        return list(node[2])
    return list(node[4]) if node[0] in ("dict", "list", "set", "deque") else []


def _is_another(before: Node, now: Node) -> bool:
    """Whether a value has been replaced; one that has only come to be has not."""
    return before not in (None, _ABSENT, ["opaque"]) and before != now


def _holds_another(before: Node, now: Node) -> bool:
    """Whether something with an identity has other contents, beside its attributes, and not only more of them."""
    if before is None or now is None or before[0] in (*_GENERATORS, "object", "opaque"):
        return False
    kind = before[0]
    if kind == "dict":
        held = {repr(key): value for key, value in now[2]}
        return any(_is_another(value, held.get(repr(key), _ABSENT)) for key, value in before[2])
    if kind == "set":
        return not set(map(repr, before[2])) <= set(map(repr, now[2]))
    if kind in ("list", "deque"):
        return len(now[2]) < len(before[2]) or any(map(_is_another, before[2], now[2]))
    return bool(before != now)


def _leads_to(node: Node, differ: set[int], record: Record, seen: set[int]) -> bool:
    """Whether a value holds one of those objects, in containers of whatever depth but not in another's attributes."""
    if not isinstance(node, list):
        return False
    if len(node) == 2 and node[0] == "#" and isinstance(node[1], int):
        number = node[1]
        if number in differ:
            return True
        if number in seen or record.objects[number] is None or record.objects[number][0] == "object":
            return False
        return any(_leads_to(inner, differ, record, seen | {number}) for inner in record.objects[number])
    return any(_leads_to(inner, differ, record, seen) for inner in node)
