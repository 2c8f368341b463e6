"""What models of known libraries declare about one sample of their input.

Nothing here imports lightning, transformers, diffusers or timm: their models are recognised by the attributes that they
document.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Assumed, and reported to the user whenever one of them is used.
IMAGE_SIDE = 224  # ImageNet's customary crop
SEQUENCE = 512  # the context BERT was trained with
_LATENT_SIDE = 64  # side of a latent image, as in Stable Diffusion
_PROMPT = 77  # tokens of a prompt, as in CLIP
_AUDIO = 16_000  # samples: one second of the usual training data of speech models

# The class name endings of transformers' heads whose labels have the shape of input_ids.
_LANGUAGE_HEADS = ("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One sample, how samples are collated, and what was assumed for them."""

    sample: Any
    collate: Callable[[list[Any]], Any] | None = None
    assumed: tuple[str, ...] = ()


def ids(length: int, vocabulary: int) -> Tensor:
    """A sequence of tokens that are all in the vocabulary."""
    return torch.arange(length) % vocabulary


def shown(shape: tuple[int, ...]) -> str:
    """A shape for a reader: 3 x 224 x 224."""
    return " x ".join(map(str, shape))


def usable_positions(model: nn.Module, otherwise: int) -> int:
    """The positions that a token can have: RoBERTa and its kin count from after the padding index (514 hold 512)."""
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
    ]
    return min(
        (t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables), default=otherwise
    )


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width from `size`, if it has them: one number for both, or two."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size, size
    if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
        return size[0], size[1]
    return None


def _count(config: Any, *names: str) -> int | None:
    """The first of these settings that is a positive number."""
    values = (getattr(config, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)


# -- transformers ----------------------------------------------------------------------------------------------------


def from_transformers(model: nn.Module) -> Inputs | None:
    """The longest sequence, the image, the series or the sound that a transformers model's `config` allows."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    if _is_of_text_and_images(model, config):
        return _text_and_image(config)
    readers: dict[str, Callable[[nn.Module, Any], Inputs | None]] = {
        "pixel_values": _image,
        "past_values": _series,
        "input_features": _spectrum,
        "input_values": _sound,
    }
    reader = readers.get(str(getattr(model, "main_input_name", None)), _tokens)
    return reader(model, config)


def _is_of_text_and_images(model: nn.Module, config: Any) -> bool:
    return (
        _count(getattr(config, "text_config", None), "vocab_size") is not None
        and _sides(getattr(getattr(config, "vision_config", None), "image_size", None)) is not None
        and {"input_ids", "pixel_values"} <= set(inspect.signature(model.forward).parameters)
    )


def _text_and_image(config: Any) -> Inputs:
    sides = _sides(config.vision_config.image_size)
    assert sides is not None
    shape = (_count(config.vision_config, "num_channels") or 3, *sides)
    length = _count(config.text_config, "max_position_embeddings") or _PROMPT
    sample = {"input_ids": ids(length, config.text_config.vocab_size), "pixel_values": torch.zeros(shape)}
    text = f"a sample is {length} tokens and an image of {shown(shape)}, from the model's config"
    return Inputs(sample=sample, assumed=(text,))


def _image(model: nn.Module, config: Any) -> Inputs:
    sides = _sides(getattr(config, "image_size", None))
    shape = (_count(config, "num_channels") or 3, *(sides or (IMAGE_SIDE, IMAGE_SIDE)))
    source = "from the model's config" if sides else "whose config gives no image_size"
    return Inputs(sample={"pixel_values": torch.zeros(shape)}, assumed=(f"an image is {shown(shape)}, {source}",))


def _series(model: nn.Module, config: Any) -> Inputs | None:
    """A time series; with the future too if the model predicts it and needs it for its loss."""
    length = _count(config, "context_length")
    if length is None:
        return None
    shape = (length, _count(config, "num_input_channels", "input_size") or 1)
    sample = {"past_values": torch.zeros(shape)}
    horizon = _count(config, "prediction_length")
    if horizon is not None and "future_values" in inspect.signature(model.forward).parameters:
        sample["future_values"] = torch.zeros(horizon, shape[1])
    return Inputs(sample=sample, assumed=(f"a series is {shown(shape)}, from the model's config",))


def _spectrum(model: nn.Module, config: Any) -> Inputs | None:
    """The input of Whisper: two frames for each position, and the longest text that it can produce."""
    frames, bands = _count(config, "max_source_positions"), _count(config, "num_mel_bins")
    if frames is None or bands is None:
        return None
    shape = (bands, 2 * frames)
    sample = {"input_features": torch.zeros(shape)}
    said = ""
    vocabulary, longest = _count(config, "vocab_size"), _count(config, "max_target_positions")
    if vocabulary is not None and longest is not None and type(model).__name__.endswith(_LANGUAGE_HEADS):
        sample["labels"] = ids(longest, vocabulary)
        said = f" and a text of {longest} tokens"
    return Inputs(sample=sample, assumed=(f"a sample is a spectrum of {shown(shape)}{said}, from the model's config",))


def _sound(model: nn.Module, config: Any) -> Inputs:
    length, bands = _count(config, "max_length"), _count(config, "num_mel_bins")
    if length is not None and bands is not None:  # such as the Audio Spectrogram Transformer
        text = f"a sample is a spectrum of {shown((length, bands))}, from the model's config"
        return Inputs(sample={"input_values": torch.zeros(length, bands)}, assumed=(text,))
    text = f"a sound is {_AUDIO} values, a second of speech"
    return Inputs(sample={"input_values": torch.zeros(_AUDIO)}, assumed=(text,))


def _tokens(model: nn.Module, config: Any) -> Inputs | None:
    vocabulary = _count(config, "vocab_size")
    if vocabulary is None:
        return None
    longest = _count(config, "max_position_embeddings", "n_positions")
    assumed = f"a sequence is {SEQUENCE} tokens"
    if longest is not None:
        longest = min(longest, usable_positions(model, longest))
        assumed = f"a sequence is {longest} tokens, the longest that the model's config admits"
    tokens = ids(longest or SEQUENCE, vocabulary)
    sample = {"input_ids": tokens}
    has_labels = type(model).__name__.endswith(_LANGUAGE_HEADS)
    decodes = getattr(config, "is_encoder_decoder", False) is True
    if has_labels:
        sample["labels"] = tokens
    if decodes and (not has_labels or getattr(config, "decoder_start_token_id", None) is None):
        sample["decoder_input_ids"] = tokens  # the model cannot derive it from these labels
    return Inputs(sample=sample, assumed=(assumed,))


# -- diffusers -------------------------------------------------------------------------------------------------------


def from_diffusers(model: nn.Module) -> Inputs | None:
    """The image, or latent image, of a diffusers model's `config`, at a noise step, and a prompt if it takes one.

    Such a config is a mapping with `in_channels` and `sample_size`. The names of forward's arguments show what else it
    needs.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping) or not isinstance(config.get("in_channels"), int) or "sample_size" not in config:
        return None
    sides = _sides(config.get("sample_size"))
    shape = (config["in_channels"], *(sides or (_LATENT_SIDE, _LATENT_SIDE)))
    source = "from the model's config" if sides else "whose config gives no sample_size"
    parameters = inspect.signature(model.forward).parameters
    sample: dict[str, Any] = {}
    also = []
    for index, (name, parameter) in enumerate(parameters.items()):
        is_needed = parameter.default is inspect.Parameter.empty or name == "class_labels"
        if index == 0:
            sample[name] = torch.zeros(shape)
        elif name in ("timestep", "timesteps") and (is_needed or config.get("num_embeds_ada_norm")):
            sample[name] = torch.tensor(0)
            also.append("a step of the noise")
        elif name == "encoder_hidden_states" and (is_needed or config.get("cross_attention_dim")):
            width = next((config[n] for n in _PROMPT_WIDTHS if isinstance(config.get(n), int)), None)
            if width is None:
                return None
            sample[name] = torch.zeros(_PROMPT, width)
            also.append(f"a prompt of {_PROMPT} x {width}")
        elif name == "class_labels" and any(config.get(n) for n in ("num_embeds_ada_norm", "num_class_embeds")):
            sample[name] = torch.tensor(0)
            also.append("a class")
    text = ", ".join([f"an image is {shown(shape)}, {source}", *also])
    return Inputs(sample=sample, assumed=(text,))


_PROMPT_WIDTHS = ("cross_attention_dim", "joint_attention_dim", "caption_channels")


# -- timm ------------------------------------------------------------------------------------------------------------


def from_timm(model: nn.Module) -> Inputs | None:
    """The image for which a timm model was made: the size that the model has, or that of its configuration.

    The configuration is that of the pretrained weights, and does not change if the model is made for other images.
    """
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if not isinstance(size, (tuple, list)) or not all(isinstance(extent, int) for extent in size):
            continue
        source = f"the model's {name}"
        made_for = (_sides(getattr(module, "img_size", None)) for module in model.modules())
        own = next((sides for sides in made_for if sides is not None), None)
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        if len(size) == 3:
            channels = first.in_channels if first is not None and _is_stem(first, size[0]) else size[0]
            if own is not None:
                source = "the model's own img_size"
            elif channels != size[0]:
                source = f"{source} and its first layer"
            size = (channels, *(own or size[1:]))
        return Inputs(sample=torch.zeros(*size), assumed=(f"an image is {shown(tuple(size))}, from {source}",))
    return None


def _is_stem(convolution: nn.Conv2d, channels: int) -> bool:
    """Whether a model's first convolution takes the image: some, such as space-to-depth stems, fold it first."""
    return convolution.groups == 1 and convolution.in_channels % channels != 0
