"""What models of known libraries say about their input, by stand-ins with the attributes that those document."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autobatch.tasks.data import collate_samples
from autobatch.tasks.inputs import task_for_model


class Takes(nn.Module):
    """Notes what it is given; its attributes are a library's."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.given: dict[str, tuple[int, ...]] = {}
        for name, value in attributes.items():
            setattr(self, name, value)

    def _note(self, **given: Tensor | None) -> Tensor:
        self.given = {name: tuple(value.shape) for name, value in given.items() if value is not None}
        return self.weight * torch.ones(1)


def given_to(model: Takes) -> tuple[dict[str, tuple[int, ...]], str]:
    """The shapes that a batch of two reaches the model with, and what was assumed."""
    task, told = task_for_model(model)
    assert task.train_data is not None
    task.loss(model, collate_samples(task, [task.train_data()[0]] * 2))
    return model.given, told[0]


class PatchTST(Takes):
    main_input_name = "past_values"

    def forward(
        self, past_values: Tensor, past_observed_mask: Tensor | None = None, future_values: Tensor | None = None
    ) -> Tensor:
        return self._note(past_values=past_values, future_values=future_values)


def test_a_series_has_the_context_length_and_its_future_the_horizon() -> None:
    config = SimpleNamespace(context_length=64, num_input_channels=3, prediction_length=16)
    assert given_to(PatchTST(config=config)) == (
        {"past_values": (2, 64, 3), "future_values": (2, 16, 3)},
        "a series is 64 x 3, from the model's config",
    )
    config = SimpleNamespace(context_length=24, input_size=1)
    assert given_to(PatchTST(config=config))[0] == {"past_values": (2, 24, 1)}


class Vision(Takes):
    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self._note(pixel_values=pixel_values)


@pytest.mark.parametrize(
    ("config", "shape", "told"),
    [
        (
            {"image_size": [32, 48], "num_channels": 1},
            (2, 1, 32, 48),
            "an image is 1 x 32 x 48, from the model's config",
        ),
        ({"image_size": 40}, (2, 3, 40, 40), "an image is 3 x 40 x 40, from the model's config"),
        (
            {"num_channels": 4},
            (2, 4, 224, 224),
            "an image is 4 x 224 x 224, whose config gives no image_size",
        ),
    ],
)
def test_an_image_has_the_size_and_channels_of_the_config(
    config: dict[str, Any], shape: tuple[int, ...], told: str
) -> None:
    assert given_to(Vision(config=SimpleNamespace(**config))) == ({"pixel_values": shape}, told)


class WhisperForConditionalGeneration(Takes):
    main_input_name = "input_features"

    def forward(self, input_features: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._note(input_features=input_features, labels=labels)


def test_a_spectrum_has_two_frames_for_each_position() -> None:
    config = SimpleNamespace(num_mel_bins=80, max_source_positions=50, max_target_positions=20, vocab_size=30)
    assert given_to(WhisperForConditionalGeneration(config=config)) == (
        {"input_features": (2, 80, 100), "labels": (2, 20)},
        "a sample is a spectrum of 80 x 100 and a text of 20 tokens, from the model's config",
    )


class Sound(Takes):
    main_input_name = "input_values"

    def forward(self, input_values: Tensor) -> Tensor:
        return self._note(input_values=input_values)


def test_a_sound_is_a_second_or_a_spectrum_of_the_configs_size() -> None:
    assert given_to(Sound(config=SimpleNamespace(vocab_size=32))) == (
        {"input_values": (2, 16_000)},
        "a sound is 16000 values, a second of speech",
    )
    config = SimpleNamespace(max_length=96, num_mel_bins=16)
    assert given_to(Sound(config=config))[0] == {"input_values": (2, 96, 16)}


class CLIP(Takes):
    main_input_name = "input_ids"

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        return self._note(input_ids=input_ids, pixel_values=pixel_values)


def test_a_model_of_text_and_images_gets_both() -> None:
    config = SimpleNamespace(
        text_config=SimpleNamespace(vocab_size=90, max_position_embeddings=16),
        vision_config=SimpleNamespace(image_size=32, num_channels=3),
    )
    assert given_to(CLIP(config=config))[0] == {"input_ids": (2, 16), "pixel_values": (2, 3, 32, 32)}


class T5ForConditionalGeneration(Takes):
    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return self._note(input_ids=input_ids, decoder_input_ids=decoder_input_ids, labels=labels)


@pytest.mark.parametrize(("start", "names"), [(0, {"input_ids", "labels"}), (None, {"input_ids", "labels", "dec"})])
def test_a_decoder_is_given_its_input_where_the_config_says_not_how_to_make_it(
    start: int | None, names: set[str]
) -> None:
    config = SimpleNamespace(vocab_size=30, is_encoder_decoder=True, decoder_start_token_id=start)
    given, _ = given_to(T5ForConditionalGeneration(config=config))
    assert {name.removesuffix("oder_input_ids") for name in given} == names


class UNet(Takes):
    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self._note(sample=sample, timestep=timestep, class_labels=class_labels)


class Conditional(Takes):
    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self._note(sample=sample, timestep=timestep, encoder_hidden_states=encoder_hidden_states)


class Autoencoder(Takes):
    def forward(self, sample: Tensor, sample_posterior: bool = False) -> Tensor:
        return self._note(sample=sample)


class Transformer(Takes):
    def forward(
        self, hidden_states: Tensor, timestep: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        return self._note(hidden_states=hidden_states, timestep=timestep, class_labels=class_labels)


@pytest.mark.parametrize(
    ("kind", "config", "shapes", "told"),
    [
        (
            UNet,
            {"in_channels": 3, "sample_size": 32},
            {"sample": (2, 3, 32, 32), "timestep": (2,)},
            "an image is 3 x 32 x 32, from the model's config, a step of the noise",
        ),
        (
            UNet,
            {"in_channels": 1, "sample_size": [16, 24], "num_class_embeds": 10},
            {"sample": (2, 1, 16, 24), "timestep": (2,), "class_labels": (2,)},
            "an image is 1 x 16 x 24, from the model's config, a step of the noise, a class",
        ),
        (
            Conditional,
            {"in_channels": 4, "sample_size": None, "cross_attention_dim": 32},
            {"sample": (2, 4, 64, 64), "timestep": (2,), "encoder_hidden_states": (2, 77, 32)},
            "an image is 4 x 64 x 64, whose config gives no sample_size, a step of the noise, a prompt of 77 x 32",
        ),
        (
            Autoencoder,
            {"in_channels": 3, "sample_size": 64},
            {"sample": (2, 3, 64, 64)},
            "an image is 3 x 64 x 64, from the model's config",
        ),
        (
            Transformer,
            {"in_channels": 4, "sample_size": 8, "num_embeds_ada_norm": 10},
            {"hidden_states": (2, 4, 8, 8), "timestep": (2,), "class_labels": (2,)},
            "an image is 4 x 8 x 8, from the model's config, a step of the noise, a class",
        ),
    ],
    ids=["unet", "classes", "prompt", "autoencoder", "transformer"],
)
def test_a_diffusers_model_gets_its_image_and_what_else_it_needs(
    kind: type[Takes], config: dict[str, Any], shapes: dict[str, tuple[int, ...]], told: str
) -> None:
    assert given_to(kind(config=config)) == (shapes, told)


def test_a_config_that_is_a_mapping_of_another_library_is_not_taken_for_diffusers() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3))
    model.config = {"in_channels": 2, "classes": 5}  # type: ignore[assignment]  # as segmentation-models keeps it
    _, told = task_for_model(model)
    assert told[0] == "an image is 2 x 224 x 224, for the first layer, Conv2d(2, ...)"


class Embeds(nn.Module):
    """As timm's PatchEmbed: it refuses images of another size."""

    def __init__(self, img_size: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.proj = nn.Conv2d(channels, 4, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert tuple(x.shape[2:]) == self.img_size
        out: Tensor = self.proj(x)
        return out


@pytest.mark.parametrize("place", ["patch_embed", "stem", "pixel_embed"])
@pytest.mark.parametrize(("size", "channels"), [((64, 64), 3), ((32, 48), 1)])
def test_a_timm_models_own_size_goes_before_that_of_the_pretrained_weights(
    place: str, size: tuple[int, int], channels: int
) -> None:
    model = nn.Sequential()
    model.add_module(place, Embeds(size, channels))
    model.pretrained_cfg = {"input_size": (3, 224, 224)}  # type: ignore[assignment]
    task, told = task_for_model(model)
    assert told[0] == f"an image is {channels} x {size[0]} x {size[1]}, from the model's own img_size"
    assert task.train_data is not None
    assert torch.isfinite(task.loss(model, task.train_data()[0][None]))


def test_a_timm_model_of_other_channels_without_a_size_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    model.pretrained_cfg = {"input_size": (3, 96, 96)}  # type: ignore[assignment]
    assert task_for_model(model)[1][0] == "an image is 1 x 96 x 96, from the model's pretrained_cfg and its first layer"
    folded = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 3))
    folded.pretrained_cfg = {"input_size": (3, 96, 96)}  # type: ignore[assignment]
    assert task_for_model(folded)[1][0] == "an image is 3 x 96 x 96, from the model's pretrained_cfg"
