"""One sample of a model's input: from the user, from the model's attributes, or assumed, which is then reported."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, IterableDataset

from ..errors import TaskError
from .model_configs import (
    IMAGE_SIDE,
    SEQUENCE,
    Inputs,
    from_diffusers,
    from_timm,
    from_transformers,
    ids,
    shown,
    usable_positions,
)
from .worst_case import find_worst_case, largest_sample

# Assumed, and reported to the user whenever it is used.
_CLIP = (16, 112, 112)  # frames, height, width: the customary clip of 3-D ResNets

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KNOWN_LAYERS = (nn.Linear, nn.Embedding, *_CONVOLUTIONS, nn.RNNBase, nn.MultiheadAttention)


def inputs_from_data(data: Any) -> Inputs:
    """The largest sample of a Dataset, or of a DataLoader's dataset, with the loader's collate."""
    collate = data.collate_fn if isinstance(data, DataLoader) else None
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(dataset, IterableDataset) and not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TaskError(f"data must be a Dataset or a DataLoader; found {type(dataset).__name__}")
    worst_case = find_worst_case(dataset)
    if not worst_case.largest:
        raise TaskError(f"data must hold at least one sample; the {type(dataset).__name__} is empty")
    assumed = () if worst_case.assumption is None else (worst_case.assumption,)
    return Inputs(sample=largest_sample(dataset, worst_case), collate=collate, assumed=assumed)


def inputs_given(model: nn.Module, sample: Any) -> Inputs:
    if not isinstance(sample, (Tensor, tuple, list, Mapping)) or isinstance(sample, str):
        raise TaskError(
            f"sample must be one sample: a tensor, or tensors in a tuple, list or dict; found {type(sample).__name__}: "
            "of other kinds, such as graphs, pass data=, your DataLoader, whose collate_fn makes the batches"
        )
    first = first_known_layer(model)
    kind = None if first is None else parametrize.type_before_parametrizations(first)
    spatial = next((dims for dims, layer in enumerate(_CONVOLUTIONS, start=1) if kind is layer), None)
    image = sample[0] if isinstance(sample, (tuple, list)) and sample else sample
    if spatial and isinstance(image, Tensor) and image.ndim == spatial + 2:
        raise TaskError(
            f"sample must be ONE sample, without a batch dimension: {_class_of(first)} takes {spatial + 1} "
            f"dimensions a sample; found {image.ndim}, shape {tuple(image.shape)}: pass one element of the batch"
        )
    return Inputs(sample=_on_host(sample))


def _on_host(sample: Any, index: int | None = None) -> Any:
    """The same structure, detached and on the host; with `index`, that element of each tensor's first dimension."""
    if isinstance(sample, Tensor):
        return (sample if index is None else sample[index]).detach().cpu()
    if isinstance(sample, Mapping):
        return {key: _on_host(value, index) for key, value in sample.items()}
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return type(sample)(*(_on_host(value, index) for value in sample))
    if isinstance(sample, (tuple, list)):
        return type(sample)(_on_host(value, index) for value in sample)
    return sample


def inferred_inputs(model: nn.Module) -> Inputs:
    for source in (_from_lightning, from_diffusers, from_transformers, from_timm, _from_first_layer):
        inputs = source(model)
        if inputs is not None:
            dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
            return replace(inputs, sample=_cast(inputs.sample, dtype))
    names = required_names(model)
    hint = f": here a tuple of {', '.join(names)}, each without a batch dimension" if len(names) > 1 else ""
    waiting = lazy_layers(model)
    raise TaskError(
        f"what {type(model).__name__} takes as input is not known and cannot be assumed"
        f"{f' ({waiting} waits for its first batch)' if waiting else ''}: pass sample=, one sample as your dataset "
        f"gives it{hint or ', without a batch dimension'}; or data=, your Dataset or DataLoader"
    )


def required_names(model: nn.Module) -> list[str]:
    """The parts of a sample that forward() needs: its positional parameters without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.items()
    return [name for name, p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]


def lazy_layers(model: nn.Module) -> str:
    """The first layer whose parameters have no shape yet, by class and name; empty if there is none."""
    for name, module in model.named_modules():
        held = (*module._parameters.values(), *module._buffers.values())
        if any(is_lazy(tensor) for tensor in held):
            return f"{type(module).__name__} {name!r}" if name else type(module).__name__
    return ""


def _cast(sample: Any, dtype: torch.dtype) -> Any:
    if isinstance(sample, Tensor):
        return sample.to(dtype) if sample.is_floating_point() else sample
    if isinstance(sample, Mapping):
        return {key: _cast(value, dtype) for key, value in sample.items()}
    return type(sample)(_cast(value, dtype) for value in sample) if isinstance(sample, (tuple, list)) else sample


def _from_lightning(model: nn.Module) -> Inputs | None:
    """A LightningModule's `example_input_array`: forward's arguments, with a batch dimension."""
    example = getattr(model, "example_input_array", None)
    if not isinstance(example, (Tensor, tuple, list, Mapping)) or len(example) == 0:
        return None
    return Inputs(sample=_on_host(example, index=0), assumed=("samples look like the model's example_input_array",))


def first_known_layer(model: nn.Module) -> nn.Module | None:
    return next((module for module in model.modules() if isinstance(module, _KNOWN_LAYERS)), None)


def _class_of(layer: nn.Module | None) -> str:
    """The class as the user wrote it: a parametrized module's class is made on the fly."""
    return "" if layer is None else parametrize.type_before_parametrizations(layer).__name__


def _from_first_layer(model: nn.Module) -> Inputs | None:
    """The input of the model's first layer, in the order of assignment. Attention is not guessed at."""
    layer = first_known_layer(model)
    kind = _class_of(layer)
    if isinstance(layer, nn.Embedding):
        length = min(SEQUENCE, usable_positions(model, SEQUENCE))
        text = f"a sequence is {length} tokens, for the first layer, {kind}({layer.num_embeddings}, ...)"
        return Inputs(sample=ids(length, layer.num_embeddings), assumed=(text,))
    if isinstance(layer, nn.RNNBase):
        return _from_recurrent(model, layer)
    if isinstance(layer, nn.Linear) and layer.in_features > 0:
        if any(isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.Conv1d)) for module in model.modules()):
            # Without the sequence dimension attention would take the batch itself for one long sequence.
            text = f"a sequence is {SEQUENCE} x {layer.in_features}, for the first layer, {kind}, and those after it"
            return Inputs(sample=torch.zeros(SEQUENCE, layer.in_features), assumed=(text,))
        text = f"a sample is {layer.in_features} numbers, for the first layer, {kind}({layer.in_features}, ...)"
        return Inputs(sample=torch.zeros(layer.in_features), assumed=(text,))
    if isinstance(layer, _CONVOLUTIONS) and layer.in_channels > 0:
        extents = {nn.Conv1d: (SEQUENCE,), nn.Conv2d: (IMAGE_SIDE,) * 2, nn.Conv3d: _CLIP}
        shape = (layer.in_channels, *next(extent for known, extent in extents.items() if isinstance(layer, known)))
        noun = (
            "a sequence" if isinstance(layer, nn.Conv1d) else "an image" if isinstance(layer, nn.Conv2d) else "a clip"
        )
        text = f"{noun} is {shown(shape)}, for the first layer, {kind}({layer.in_channels}, ...)"
        return Inputs(sample=torch.zeros(shape), assumed=(text,))
    return None


def _from_recurrent(model: nn.Module, layer: nn.RNNBase) -> Inputs:
    text = f"a sequence is {SEQUENCE} x {layer.input_size}, for the first layer, {_class_of(layer)}"
    sample = torch.zeros(SEQUENCE, layer.input_size)
    if layer.batch_first:
        return Inputs(sample=sample, assumed=(text,))
    if layer is model:
        return Inputs(sample=sample, collate=partial(torch.stack, dim=1), assumed=(f"{text}, time first",))
    return Inputs(sample=sample, assumed=(f"{text}; the model takes batches batch first, and turns them round itself",))
