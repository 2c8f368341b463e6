"""What one sample of a model's input looks like: given, found in the model's attributes, or assumed and said so.

Nothing here imports lightning, transformers or timm: their models are known by the attributes that they document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ..errors import TaskError
from .worst_case import find_worst_case, largest_sample

# Assumed, and told to the user wherever one of them was used.
_IMAGE_SIDE = 224  # ImageNet's customary crop
_SEQUENCE = 512  # the context BERT was trained with
_CLIP = (16, 112, 112)  # frames, height, width: the customary clip of 3-D ResNets

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KNOWN_LAYERS = (nn.Linear, nn.Embedding, *_CONVOLUTIONS, nn.RNNBase, nn.MultiheadAttention)
# transformers' heads whose labels have the shape of input_ids, by what their class names end in.
_LANGUAGE_HEADS = ("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One sample, how samples are collated, and what was assumed to get there."""

    sample: Any
    collate: Callable[[list[Any]], Any] | None = None
    assumed: tuple[str, ...] = ()


def inputs_from_data(data: Any) -> Inputs:
    """The largest sample of a Dataset, or of a DataLoader's, with the loader's collate."""
    collate = data.collate_fn if isinstance(data, DataLoader) else None
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(dataset, IterableDataset) and not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TaskError(f"data must be a Dataset or a DataLoader; found {type(dataset).__name__}")
    found = find_worst_case(dataset)
    if not found.largest:
        raise TaskError(f"data must hold at least one sample; the {type(dataset).__name__} is empty")
    assumed = () if found.assumption is None else (found.assumption,)
    return Inputs(sample=largest_sample(dataset, found), collate=collate, assumed=assumed)


def inputs_given(model: nn.Module, sample: Any) -> Inputs:
    if not isinstance(sample, (Tensor, tuple, list, Mapping)) or isinstance(sample, str):
        raise TaskError(
            f"sample must be one sample: a tensor, or tensors in a tuple, list or dict; found {type(sample).__name__}"
        )
    first = _first_known_layer(model)
    spatial = next((dims for dims, layer in enumerate(_CONVOLUTIONS, start=1) if type(first) is layer), None)
    image = sample[0] if isinstance(sample, (tuple, list)) and sample else sample
    if spatial and isinstance(image, Tensor) and image.ndim == spatial + 2:
        raise TaskError(
            f"sample must be ONE sample, without a batch dimension: {type(first).__name__} takes {spatial + 1} "
            f"dimensions a sample; found {image.ndim}, shape {tuple(image.shape)}: pass one element of the batch"
        )
    return Inputs(sample=_on_host(sample))


def _on_host(sample: Any, index: int | None = None) -> Any:
    """The same structure, detached and on the host; only element `index` of each tensor's first dimension if given."""
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
    for source in (_from_lightning, _from_transformers, _from_timm, _from_first_layer):
        inputs = source(model)
        if inputs is not None:
            dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
            return replace(inputs, sample=_cast(inputs.sample, dtype))
    raise TaskError(
        f"what {type(model).__name__} takes as input is not known and cannot be assumed: pass sample=, one sample as "
        f"your dataset gives it, without a batch dimension"
    )


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


def _ids(length: int, vocabulary: int) -> Tensor:
    return torch.arange(length) % vocabulary


def _from_transformers(model: nn.Module) -> Inputs | None:
    """The longest sequence, or the image, that a transformers model's `config` admits."""
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    side = getattr(config, "image_size", None)
    if isinstance(side, int) and getattr(model, "main_input_name", None) == "pixel_values":
        channels = getattr(config, "num_channels", 3)
        pixels = {"pixel_values": torch.zeros(channels, side, side)}
        return Inputs(sample=pixels, assumed=(f"an image is {channels} x {side} x {side}, from the model's config",))
    if not isinstance(vocabulary, int):
        return None
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    longest = next((value for value in known if isinstance(value, int) and value > 0), None)
    assumed = f"a sequence is {_SEQUENCE} tokens"
    if longest is not None:
        longest = min(longest, _usable_positions(model, longest))
        assumed = f"a sequence is {longest} tokens, the longest that the model's config admits"
    ids = _ids(longest or _SEQUENCE, vocabulary)
    sample = {"input_ids": ids}
    if type(model).__name__.endswith(_LANGUAGE_HEADS):
        sample["labels"] = ids
    elif getattr(config, "is_encoder_decoder", False):
        sample["decoder_input_ids"] = ids
    return Inputs(sample=sample, assumed=(assumed,))


def _usable_positions(model: nn.Module, otherwise: int) -> int:
    """Positions a token can have: RoBERTa and its kin count them from beyond the padding index (514 hold 512)."""
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
    ]
    return min(
        (t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables), default=otherwise
    )


def _from_timm(model: nn.Module) -> Inputs | None:
    """The input size in the configuration that a timm model carries."""
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if isinstance(size, (tuple, list)) and all(isinstance(extent, int) for extent in size):
            shown = " x ".join(map(str, size))
            return Inputs(sample=torch.zeros(*size), assumed=(f"an image is {shown}, from the model's {name}",))
    return None


def _first_known_layer(model: nn.Module) -> nn.Module | None:
    return next((module for module in model.modules() if isinstance(module, _KNOWN_LAYERS)), None)


def _from_first_layer(model: nn.Module) -> Inputs | None:
    """What the model's first layer takes, the first as layers were assigned; attention is not guessed at."""
    layer = _first_known_layer(model)
    kind = type(layer).__name__
    if isinstance(layer, nn.Embedding):
        length = min(_SEQUENCE, _usable_positions(model, _SEQUENCE))
        told = f"a sequence is {length} tokens, for the first layer, {kind}({layer.num_embeddings}, ...)"
        return Inputs(sample=_ids(length, layer.num_embeddings), assumed=(told,))
    if isinstance(layer, nn.RNNBase):
        return _from_recurrent(model, layer)
    if isinstance(layer, nn.Linear) and layer.in_features > 0:
        if any(isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.Conv1d)) for module in model.modules()):
            # Without the sequence dimension attention would take the batch itself for one long sequence.
            told = f"a sequence is {_SEQUENCE} x {layer.in_features}, for the first layer, {kind}, and those after it"
            return Inputs(sample=torch.zeros(_SEQUENCE, layer.in_features), assumed=(told,))
        told = f"a sample is {layer.in_features} numbers, for the first layer, {kind}({layer.in_features}, ...)"
        return Inputs(sample=torch.zeros(layer.in_features), assumed=(told,))
    if isinstance(layer, _CONVOLUTIONS) and layer.in_channels > 0:
        extents = {nn.Conv1d: (_SEQUENCE,), nn.Conv2d: (_IMAGE_SIDE,) * 2, nn.Conv3d: _CLIP}
        shape = (layer.in_channels, *next(extent for known, extent in extents.items() if isinstance(layer, known)))
        noun = (
            "a sequence" if isinstance(layer, nn.Conv1d) else "an image" if isinstance(layer, nn.Conv2d) else "a clip"
        )
        told = f"{noun} is {' x '.join(map(str, shape))}, for the first layer, {kind}({layer.in_channels}, ...)"
        return Inputs(sample=torch.zeros(shape), assumed=(told,))
    return None


def _from_recurrent(model: nn.Module, layer: nn.RNNBase) -> Inputs:
    told = f"a sequence is {_SEQUENCE} x {layer.input_size}, for the first layer, {type(layer).__name__}"
    sample = torch.zeros(_SEQUENCE, layer.input_size)
    if layer.batch_first:
        return Inputs(sample=sample, assumed=(told,))
    if layer is model:
        return Inputs(sample=sample, collate=partial(torch.stack, dim=1), assumed=(f"{told}, time first",))
    return Inputs(sample=sample, assumed=(f"{told}; the model takes batches batch first, and turns them round itself",))
