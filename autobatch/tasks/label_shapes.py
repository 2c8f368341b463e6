"""Labels that do not fit the class scores with which they are compared: what is wrong, and what to do about it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

_Shape = tuple[int, ...]

# Cited: the label types that torch's cross_entropy accepts.
_CLASSES = (torch.int64, torch.uint8)


def label_problem(scores: Tensor, labels: Any, used_by: str) -> str | None:
    """What is wrong with `labels` for `scores` of shape (B, classes, ...); None if nothing is.

    Args:
        scores: of a model, with two dimensions or more.
        labels: classes, or one probability per class.
        used_by: "loss" or "metric": the one that the task leaves to its default.
    """
    needs = f"the default {used_by} needs "
    if not isinstance(labels, Tensor):
        return f"{needs}the labels of a batch in one tensor; found a {type(labels).__name__}: make it in collate"
    given, shape, kind = tuple(scores.shape), tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
    if given[1] == 1:  # the loss would be 0, and each label right
        return (
            f"{needs}scores of two classes or more; found scores of {given}: define loss(model, batch) and "
            "metric(model, batch), by binary_cross_entropy_with_logits for a yes or no, by mse_loss for values"
        )
    if shape == given:
        if labels.is_floating_point():
            return None
        return (
            f"{needs}one class as a label, or one probability per class; found labels of {kind} in the shape of the "
            f"scores, {shape}: let the dataset give them as `.float()`, or define {used_by}(model, batch)"
        )
    expected = given[:1] + given[2:]
    if shape != expected:
        return (
            f"{needs}class scores of shape (B, classes, ...) and a label for each, in shape {expected} for scores of "
            f"{given}; found labels of {shape}: {_remedy(given, shape)}, or define {used_by}(model, batch)"
        )
    if labels.dtype not in _CLASSES:
        values = f"; where they are values and not classes, define {used_by}(model, batch)"
        return (
            f"{needs}labels of int64, which are classes; found labels of {kind} {shape}: let the dataset give them as "
            f"`.long()`{values if labels.is_floating_point() else ''}"
        )
    return None


def _remedy(scores: _Shape, labels: _Shape) -> str:
    for dim in range(1, len(labels)):
        if labels[dim] == 1 and labels[:dim] + labels[dim + 1 :] == scores[:1] + scores[2:]:
            return f"let the dataset give them without the dimension of 1, by `.squeeze({dim - 1})`"
    if len(scores) > 2 and labels == scores[:-1]:
        move = "transpose(1, 2)" if len(scores) == 3 else "movedim(-1, 1)"
        return f"the classes come last, so let the model return scores.{move}"
    if len(scores) == 3 and labels == (scores[1], scores[0]):
        return "the batch comes second and the classes last, so let the model return scores.permute(1, 2, 0)"
    if len(scores) == 2 and len(labels) > 1 and prod(labels) == scores[0]:
        return f"the model flattens the batch, so let it return scores.unflatten(0, {(-1, *labels[1:])}).movedim(-1, 1)"
    if len(scores) > 2 and len(labels) == 1 and labels[0] != scores[0]:
        return "the labels are flattened, so let collate stack them, those of each sample in a row of its own"
    return "let the dataset give them in that shape"
