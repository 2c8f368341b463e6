"""A model that does not run on its assumed input: what was assumed, and which `sample=` to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..devices.oom import is_out_of_memory
from ..errors import TaskError, with_class
from .data import collate_samples, to_device
from .infer import first_known_layer, required_names
from .inputs import output_loss
from .state import preserve
from .task import Task

_TRIALS_S = 5.0  # assumed: how long a user waits for a hint; one attempt with a small model takes milliseconds

# Tried in this order after a wrong guess: the customary sizes first, small ones before large ones.
_SIDES = (32, 28, 64, 96, 128, 112, 160, 192, 224, 256, 299, 384, 512)
_LENGTHS = (512, 256, 128, 100, 64, 50, 32, 16, 10, 8, 1000, 1024, 2048, 4096, 16_000)
_CLIPS = ((8, 64, 64), (16, 64, 64), (16, 112, 112), (32, 32, 32), (64, 64, 64), (8, 224, 224), (16, 224, 224))


def explained(task: Task, assumed: str, error: TaskError) -> TaskError:
    """The error that says what to pass, if the model does not run on the guess; otherwise `error` itself.

    Args:
        task: that of a live model with a guessed sample. The model is given back as it was.
        assumed: the sentence about the guess.
        error: the error from the guess.
    """
    model = task.model()
    assert task.train_data is not None
    sample = task.train_data()[0]
    with preserve(model), torch.no_grad():
        model.eval()
        names = required_names(model)
        loss = output_loss(len(names))
        refusal = _refusal(task, task.loss, model, sample)
        if refusal is None:
            return error
        if _refusal(task, loss, model, sample) is None:
            return TaskError(
                f"loss(model, batch) does not run on what was assumed of the model's input: {assumed}; "
                f"{with_class(refusal)}. Pass sample=, one sample as your dataset gives it to the loss, such as a "
                "pair (x, y), without a batch dimension; or data=, your Dataset or DataLoader"
            )
        hint = ", without a batch dimension"
        if len(names) > 1 and not isinstance(sample, dict):
            hint = f": here a tuple of {', '.join(names)}, each without a batch dimension"
        elif isinstance(sample, Tensor):
            sample_code = _one_that_runs(task, loss, model, sample.shape)
            hint += "" if sample_code is None else f", such as sample={sample_code}, on which it runs"
    hint += "; or data=, your Dataset or DataLoader"
    return TaskError(
        f"{type(model).__name__} does not run on what was assumed of its input: {assumed}; {with_class(refusal)}. Pass "
        f"sample=, one sample as your dataset gives it{hint}"
    )


def _refusal(task: Task, loss: Callable[[nn.Module, Any], Any], model: nn.Module, sample: Any) -> Exception | None:
    """The error on a batch of two such samples; None if there is none, or if memory runs out."""
    held = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
    try:
        loss(model, to_device(collate_samples(task, [sample, sample]), held.device))
    except Exception as error:  # noqa: BLE001  # the user's code may raise anything
        return None if is_out_of_memory(error) else error
    return None


def _one_that_runs(
    task: Task, loss: Callable[[nn.Module, Any], Any], model: nn.Module, refused: tuple[int, ...]
) -> str | None:
    """The code of a sample on which the model runs; None if none was found in time."""
    started = perf_counter()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for shape, is_tokens in _shapes(model):
        if perf_counter() - started > _TRIALS_S:
            return None
        kind = torch.int64 if is_tokens else dtype
        if shape != refused and _refusal(task, loss, model, torch.zeros(shape, dtype=kind)) is None:
            size = ", ".join(map(str, shape))
            return f"torch.zeros({size})" if kind == torch.float32 else f"torch.zeros({size}, dtype={kind})"
    return None


def _shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Shapes of a sample that the first layer accepts, and whether they are shapes of tokens."""
    layer = first_known_layer(model)
    if isinstance(layer, nn.Conv3d):
        yield from (((layer.in_channels, *clip), False) for clip in _CLIPS)
    elif isinstance(layer, nn.Conv2d):
        yield from (((layer.in_channels, side, side), False) for side in _SIDES)
    elif isinstance(layer, nn.Conv1d):
        yield from (((layer.in_channels, length), False) for length in _LENGTHS)
        yield from (((length, layer.in_channels), False) for length in _LENGTHS)
    elif isinstance(layer, nn.Embedding):
        yield from (((length,), True) for length in _LENGTHS)
        yield (), True
    elif isinstance(layer, nn.Linear):
        yield (layer.in_features,), False
        yield from (((length, layer.in_features), False) for length in _LENGTHS)
        yield from (((1, side, side), False) for side in _SIDES if side * side == layer.in_features)
        yield from (((3, side, side), False) for side in _SIDES if 3 * side * side == layer.in_features)
    elif isinstance(layer, nn.RNNBase):
        yield from (((length, layer.input_size), False) for length in _LENGTHS)
