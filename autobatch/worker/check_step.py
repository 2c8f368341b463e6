"""The check of one training step: the loss is a finite mean, and each parameter gets a finite gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TaskError, text_of
from ..tasks.data import to_device
from .check_data import Findings, describe_batch
from .gradients import held
from .training import autocast, made_ready

# The number of samples on which the model runs: several, so that a vector of per-sample losses differs from a scalar.
MOST_SAMPLES = 4
# Parts of torch's messages about tensors that do not fit each other or a layer (torch 2.6 to 2.13).
_SHAPE_WORDS = (
    "shape",
    "size",
    "channels",
    "dimension",
    "expected input",
    "out of range",
    "dtype",
    "scalar type",
    "target",
    "out of bounds",
)


def check_any_step(findings: Findings, model: nn.Module, few: Any, whole: Callable[[], Any]) -> Any:
    """Take a step on a few samples or, if the task does not take so few, on a batch of the baseline's size.

    The batch of which there are gradients now, as `before_step` gave it; None where there are none.

    A loss over groups of eight refuses four samples, and nobody trains with four.
    """
    before = len(findings.problems)
    with findings.attempt("before_step(batches)"):
        (few,) = made_ready(findings.task, [few])
    if len(findings.problems) > before:
        return None
    stepped = _check_step(findings, model, few)
    if len(findings.problems) == before:
        return few if stepped else None
    again = Findings(findings.task, findings.load)
    with again.attempt("a batch of the baseline's size"):
        (batch,) = made_ready(findings.task, [to_device(whole(), next(model.parameters()).device)])
        stepped = _check_step(again, model, batch)
    if again.problems or (again.warnings and not stepped):
        return None  # the error on a few samples is quicker to investigate
    del findings.problems[before:]
    findings.warnings += again.warnings
    return batch if stepped else None


def _check_step(findings: Findings, model: nn.Module, batch: Any) -> bool:
    """Forward and backward on one batch. Returns whether there are gradients to step with."""
    task = findings.task
    model.train()
    model.zero_grad(set_to_none=True)
    if task.training_step is not None:
        with findings.attempt("training_step(model, batch, scale)", lambda error: shape_hint(model, batch, error)):
            task.training_step(model, batch, 1.0)
            _check_gradients(findings, model, "training_step(model, batch, scale)")
            return True
        return False
    with findings.attempt("loss(model, batch)", lambda error: shape_hint(model, batch, error)):
        device = next(model.parameters()).device
        with autocast(device, task.precision):
            loss: Any = task.loss(model, batch)
        _require_loss(loss, batch)
        loss.backward()
        _check_gradients(findings, model, "loss(model, batch)")
        return True
    return False


def _require_loss(loss: Any, batch: Any) -> None:
    rule = "loss(model, batch) must return a scalar tensor, the mean over the batch; it returned "
    if loss is None:
        raise TaskError(f"{rule}None: is its `return` missing?")
    if not isinstance(loss, Tensor):
        has_loss = isinstance(getattr(loss, "loss", None), Tensor)  # like transformers' outputs
        remedy = "return its .loss" if has_loss else "return the tensor itself, without .item() or float()"
        raise TaskError(f"{rule}a {type(loss).__name__}: {remedy}")
    if loss.ndim:
        raise TaskError(f"{rule}a tensor of shape {tuple(loss.shape)}: reduce it with .mean()")
    if not math.isfinite(float(loss.detach())):
        raise TaskError(
            f"loss(model, batch) must be finite; it is {float(loss.detach())} on the first batch, before any training: "
            f"{_nonfinite_cause(batch)}"
        )
    if not loss.requires_grad:
        raise TaskError(
            "loss(model, batch) must depend on the model's parameters; no gradient flows back from it: look for "
            ".detach(), torch.no_grad() or a tensor built anew from numbers"
        )


def _nonfinite_cause(batch: Any) -> str:
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else (batch,)
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and not bool(torch.isfinite(part).all()):
            return f"the batch itself holds values that are not finite ({describe_batch(batch)})"
    return "the batch is finite, so look for log(0), a division by zero or an initialisation that overflows"


def _check_gradients(findings: Findings, model: nn.Module, what: str) -> None:
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    without = [name for name, parameter in trainable.items() if parameter.grad is None]
    if len(without) == len(trainable):
        raise TaskError(
            f"{what} gives no parameter of model() a gradient: does it use its argument `model`? Or does it "
            "catch an error, such as too little memory?"
        )
    if without:
        findings.warnings.append(
            f"{len(without)} of {len(trainable)} trainable parameters get no gradient from {what} ({some(without)})"
        )
    broken = [
        name
        for name, parameter in trainable.items()
        if parameter.grad is not None and not bool(torch.isfinite(held(parameter.grad)).all())
    ]
    # In fp16 the first steps may overflow; the scaler then finds a scale that does not.
    if broken and findings.task.precision != "fp16":
        raise TaskError(
            f"the gradients of {what} must be finite; on the first batch, before any training, those of "
            f"{some(broken)} are not"
        )


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _first_layer(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            return f"{name}: {module!r}" if name else repr(module)
    return type(model).__name__


def shape_hint(model: nn.Module, batch: Any, error: BaseException) -> str:
    """The batch's shapes and the model's first layer, if the error is about tensors that do not fit each other."""
    if not any(word in text_of(error).lower() for word in _SHAPE_WORDS):
        return ""
    return f"the batch is {describe_batch(batch)}; the model's first layer is {_first_layer(model)}"
