"""Whether the user's code sets a seed itself: what it draws then is the same under every seed of a trial."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .state import rng_state, set_rng_state

# Where a seed is set: the module as it is written, the module, the function. Libraries' own ("seed_everything",
# "set_seed") call these.
_HOMES: tuple[tuple[str, Any, str], ...] = (
    ("random", random, "seed"),
    ("np.random", np.random, "seed"),
    ("torch", torch, "manual_seed"),
)


@contextmanager
def seeds_set() -> Iterator[dict[str, int | None]]:
    """What sets a seed inside: the number, or None of another value, by the function, such as "torch.manual_seed"."""
    found: dict[str, int | None] = {}
    originals = [getattr(module, name) for _, module, name in _HOMES]
    before = torch.initial_seed()

    def noting(told: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found[told] = _number(next(iter((*args, *kwargs.values())), None))
            return original(*args, **kwargs)

        return call

    for (told, module, name), original in zip(_HOMES, originals, strict=True):
        setattr(module, name, noting(f"{told}.{name}", original))
    try:
        yield found
    finally:
        for (_, module, name), original in zip(_HOMES, originals, strict=True):
            setattr(module, name, original)
        after = torch.initial_seed()
        if after != before:  # by a name of its own, as `from torch import manual_seed` gives it
            found.setdefault("torch.manual_seed", after)
        elif found.get("torch.manual_seed", before) != before:  # within `torch.random.fork_rng()`, which puts it back
            del found["torch.manual_seed"]


def _number(seed: Any) -> int | None:
    """A seed that is a whole number; None of texts, arrays and the time, which are not to be compared."""
    try:
        return operator.index(seed)
    except TypeError:
        return None


@contextmanager
def fixed_seeds_undone(seed: int) -> Iterator[None]:
    """Afterwards the generators are where they were, if a seed was set inside that is not `seed`.

    Args:
        seed: the one that the code inside was given to use.
    """
    before = rng_state()
    with seeds_set() as found:
        yield
    if any(value != seed for value in found.values()):
        set_rng_state(before)


def told(found: Mapping[str, int | None]) -> str:
    """These calls as they are written."""
    return ", ".join(f"{name}({'...' if value is None else value})" for name, value in found.items())
