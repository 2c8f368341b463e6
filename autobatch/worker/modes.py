"""Optimizers that keep other weights in the model for training than for evaluation, such as schedule-free ones.

Such an optimizer has `train()` and `eval()`, like a module. A step in evaluation mode is an error or worse, and a score
in training mode is that of weights that nobody would use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def to_train(optimizer: Any) -> None:
    """Put the training weights into the model. Does nothing if the optimizer has no modes."""
    _call(optimizer, "train")


@contextmanager
def judged(optimizer: Any) -> Iterator[None]:
    """Inside, the model has the weights to evaluate and to save; afterwards those to train."""
    _call(optimizer, "eval")
    try:
        yield
    finally:
        _call(optimizer, "train")


def _call(optimizer: Any, name: str) -> None:
    # Both or neither: a `train` method alone may do something else.
    if all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval")):
        getattr(optimizer, name)()
