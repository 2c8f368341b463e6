"""Optimizers that keep other weights in the model to train than to judge, as schedule-free ones do.

They have `train()` and `eval()`, as modules have, and say so in their documentation: a step in the mode to judge is an
error or worse, and a score in the mode to train is of weights that nobody would use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def to_train(optimizer: Any) -> None:
    """Put the weights to train into the model; nothing where the optimizer has no modes."""
    _call(optimizer, "train")


@contextmanager
def judged(optimizer: Any) -> Iterator[None]:
    """Inside, the model has the weights to judge and to keep; afterwards those to train."""
    _call(optimizer, "eval")
    try:
        yield
    finally:
        _call(optimizer, "train")


def _call(optimizer: Any, name: str) -> None:
    # Both or neither: one with a method `train` that does something else is left alone.
    if all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval")):
        getattr(optimizer, name)()
