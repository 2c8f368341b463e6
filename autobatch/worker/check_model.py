"""The check of what `model()` returns."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from ..errors import TaskError
from .check_data import Findings


def check_model(findings: Findings, *, trains: bool = True) -> nn.Module | None:
    """A new model of the task; None if there is none to continue with.

    Args:
        findings: gets the problems.
        trains: whether it will be trained: it then needs trainable parameters, and must not be held elsewhere.
    """
    task = findings.task
    with findings.attempt("model()"):
        model: Any = task.model()
        if not isinstance(model, nn.Module):
            hint = ": is its `return` missing?" if model is None else ": write `return Net()`, with the brackets"
            returned = "None" if model is None else f"a {type(model).__name__}"
            raise TaskError(
                f"model() must return a torch.nn.Module; it returned {returned}{hint if _explains(model) else ''}"
            )
        if trains and any(value is model for value in _reachable(task.model)):
            raise TaskError(
                "model() must return a new module at each call; it returned one that is kept outside the function, so "
                "every trial would go on training the weights of the trial before"
            )
        if trains and not any(parameter.requires_grad for parameter in model.parameters()):
            frozen = sum(1 for _ in model.parameters())
            raise TaskError(
                f"model() must return a module with a trainable parameter; {type(model).__name__} has "
                f"{f'{frozen}, all with requires_grad=False' if frozen else 'none'}"
            )
        return model
    return None


def _explains(model: object) -> bool:
    return model is None or (isinstance(model, type) and issubclass(model, nn.Module))


def _reachable(function: Any) -> Iterator[object]:
    """Values that a function keeps between calls: globals of its file, and the variables that it closes over."""
    if type(function) is MethodType:
        function = function.__func__
    if type(function) is not FunctionType:  # a callable object, whose attributes may be anything
        return
    yield from function.__globals__.values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the cell is empty: a name assigned later
            continue
