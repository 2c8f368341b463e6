"""Whether the user's code sets a seed itself: its random numbers are then the same under every seed of a trial."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .state import rng_state, set_rng_state

# Where a seed is set: the module as people write it, the module, the function. Functions of libraries
# ("seed_everything", "set_seed") call these.
_HOMES: tuple[tuple[str, Any, str], ...] = (
    ("random", random, "seed"),
    ("np.random", np.random, "seed"),
    ("torch", torch, "manual_seed"),
)


@contextmanager
def seeds_set() -> Iterator[dict[str, int | None]]:
    """The seeds that are set inside, by function, such as "torch.manual_seed"; None for one that is no number."""
    seeds: dict[str, int | None] = {}
    originals = [getattr(module, name) for _, module, name in _HOMES]
    before = torch.initial_seed()

    def recording(function: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            seeds[function] = _number(next(iter((*args, *kwargs.values())), None))
            return original(*args, **kwargs)

        return call

    for (library, module, name), original in zip(_HOMES, originals, strict=True):
        setattr(module, name, recording(f"{library}.{name}", original))
    try:
        yield seeds
    finally:
        for (_, module, name), original in zip(_HOMES, originals, strict=True):
            setattr(module, name, original)
        after = torch.initial_seed()
        if after != before:  # through another name, as after `from torch import manual_seed`
            seeds.setdefault("torch.manual_seed", after)
        elif seeds.get("torch.manual_seed", before) != before:  # inside `torch.random.fork_rng()`, which restores it
            del seeds["torch.manual_seed"]


def _number(seed: Any) -> int | None:
    """A seed that is a whole number; None for texts, arrays and times, which cannot be compared."""
    try:
        return operator.index(seed)
    except TypeError:
        return None


@contextmanager
def fixed_seeds_undone(seed: int) -> Iterator[None]:
    """Restore the generators afterwards, if a seed other than `seed` was set inside.

    Args:
        seed: the seed that the code inside was passed.
    """
    before = rng_state()
    with seeds_set() as seeds:
        yield
    if any(value != seed for value in seeds.values()):
        set_rng_state(before)


def seeds_text(seeds: Mapping[str, int | None]) -> str:
    """These calls as code."""
    return ", ".join(f"{name}({'...' if value is None else value})" for name, value in seeds.items())
