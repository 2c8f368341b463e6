"""Borrow a live model and give it back exactly as it was, also if the step in between raises."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..devices.backend import NAMED
from ..errors import TooLarge
from .object_reader import Reader
from .object_writer import Writer
from .places import ABSENT, names_of_model, places_of_model


def rng_state() -> dict[str, Any]:
    """The state of every random generator that a training step may use: Python, NumPy, torch on each device.

    It has only plain containers, numbers and tensors, so that a checkpoint of it loads with `weights_only=True`.
    """
    version, internal, gauss = random.getstate()
    numbers = np.random.get_state(legacy=False)
    state = {
        "python": (version, list(internal), gauss),
        "numpy": {
            "bit_generator": str(numbers["bit_generator"]),
            "key": torch.from_numpy(numbers["state"]["key"].astype(np.int64)),
            "pos": int(numbers["state"]["pos"]),
            "has_gauss": int(numbers["has_gauss"]),
            "gauss": float(numbers["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    on_devices = {name: backend.rng_state() for name, backend in NAMED.items()}
    return state | {name: of_kind for name, of_kind in on_devices.items() if of_kind is not None}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the generators to a state from `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numbers = dict(state["numpy"])
    inner = {"key": numbers.pop("key").numpy().astype(np.uint32), "pos": numbers.pop("pos")}
    np.random.set_state(numbers | {"state": inner})
    torch.set_rng_state(state["torch"])
    for name, backend in NAMED.items():
        if name in state:
            backend.set_rng_state(state[name])


@contextmanager
def preserve_generators() -> Iterator[None]:
    """Restore the random generators of Python, NumPy and torch afterwards, also after an error."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor of the model: the object itself, the storage it had, and a copy of its values on the host."""

    tensor: torch.Tensor
    data: torch.Tensor
    values: torch.Tensor
    requires_grad: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Kept:
        # `.to(device)` and the optimizer write through `.data`. The first leaves the old storage untouched and the
        # second overwrites it, so both the storage and its values are kept.
        return cls(tensor, tensor.data, tensor.detach().to("cpu", copy=True), tensor.requires_grad)

    def restore(self) -> None:
        self.tensor.data = self.data
        self.tensor.data.copy_(self.values)
        self.tensor.requires_grad_(self.requires_grad)


class _Attributes:
    """The plain attributes of all modules of a model, recorded."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._named = model, names_of_model(model)
        writer = Writer({id(value): name for name, value in reversed(self._named.items())}, tensors="copy")
        self._places = dict(places_of_model(model))
        self._written = []
        for name, place in self._places.items():
            with suppress(TooLarge):
                writer.write(name, place.get())
                self._written.append(name)
        self._record = writer.finish()

    def restore(self) -> None:
        reader = Reader(self._record, self._named, torch.device("cpu"))
        for name in self._written:
            place = self._places[name]
            place.put(reader.read(name, place.get()))
        for name, place in places_of_model(self._model):
            if name not in self._places:
                place.put(ABSENT)


@contextmanager
def preserve(model: nn.Module) -> Iterator[nn.Module]:
    """The model, to do anything with. Afterwards it is as it was.

    Restored are parameters and buffers (the same objects, values and device), their gradients, `requires_grad`, the
    train or eval mode of every module, its plain attributes (the same objects and their contents), and the random
    generators of Python, NumPy and torch. Not restored are hooks that the step installs, and what cannot be recorded
    (see `object_record`).
    """
    modes = [(module, module.training) for module in model.modules()]
    slots = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    tensors = {
        id(t): t for _, parameters, buffers in slots for t in (*parameters.values(), *buffers.values()) if t is not None
    }
    gradients = [(t, t.grad) for t in tensors.values()]
    kept = [_Kept.of(t) for t in tensors.values()]
    attributes = _Attributes(model)
    kept_gradients = [_Kept.of(gradient) for _, gradient in gradients if gradient is not None]
    try:
        with preserve_generators():
            yield model
    finally:
        for tensor in tensors.values():
            tensor.grad = None  # before the data moves back: a gradient must be on its tensor's device
        for entry in (*kept, *kept_gradients):
            entry.restore()
        for tensor, gradient in gradients:
            tensor.grad = gradient
        for module, parameters, buffers in slots:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        attributes.restore()
        for module, training in modes:
            module.training = training
