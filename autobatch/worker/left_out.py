"""Whether a task's own loss ignores labels that the default metric counts: a padding that is not -100."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks.data import seed_everything
from ..tasks.defaults import IGNORED, accuracy, cross_entropy_loss
from ..tasks.task import Task
from .training import autocast


def left_out_warning(task: Task, model: nn.Module, batch: Any, device: torch.device) -> list[str]:
    """A sentence about the one label whose scores get no gradient from the loss; empty if there is no such label.

    Args:
        task: the task to check.
        model: on the device, in training mode.
        batch: a few samples, on the device.
        device: that of both.
    """
    is_of_labels = task.metric is accuracy and task.evaluate is None
    if not is_of_labels or task.loss is cross_entropy_loss or task.training_step is not None:
        return []
    try:
        label = _left_out(task, model, batch, device)
    except Exception:  # noqa: BLE001  # the user's loss has run once, but may not accept these labels
        return []
    if label is None:
        return []
    return [
        f"loss(model, batch) leaves out the labels {label}, which the default metric counts: the score is of other "
        f"labels than the loss. Let the dataset label them {IGNORED}, or define metric(model, batch)"
    ]


def _left_out(task: Task, model: nn.Module, batch: Any, device: torch.device) -> int | None:
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1]
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    answers: list[Any] = []
    hook = model.register_forward_hook(lambda module, given, answer: answers.append(answer))
    try:
        seed_everything(0)
        with autocast(device, task.precision):
            loss = task.loss(model, batch)
    finally:
        hook.remove()
    scores = answers[0] if isinstance(answers[0], Tensor) else answers[0].logits
    if len(answers) != 1 or scores.ndim < 2 or labels.shape != scores.shape[:1] + scores.shape[2:]:
        return None
    (gradient,) = torch.autograd.grad(loss, scores)
    moves = gradient.abs().sum(dim=1) > 0
    learned, others = set(labels[moves].tolist()), set(labels[~moves].tolist()) - {IGNORED}
    # Only if one label is ignored wherever it stands. If there are more, or it is learned in the other, there is
    # another cause.
    return others.pop() if len(others) == 1 and learned and not others & learned else None
