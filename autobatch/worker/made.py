"""What a task's `optimizer` and `scheduler` may return, and messages about what people return instead."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import text_of

_CALLED = "autobatch calls step() without arguments, once per optimizer step"
NO_CLOSURES = (
    f"{_CALLED}, when the gradients of all micro-batches are there, and passes no closure to run the model, which "
    "LBFGS needs. Use an optimizer that steps on existing gradients, such as AdamW or SGD"
)


def hint_on_step(error: BaseException, model: nn.Module | None = None) -> str:
    """A line to add to the error of a `step()`.

    Args:
        error: the error.
        model: the model on whose gradients an optimizer stepped; None for a schedule.
    """
    text = text_of(error)
    if "closure" in text:
        return NO_CLOSURES
    gradients = {} if model is None else {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    sparse = [name for name, gradient in gradients.items() if gradient.layout is not torch.strided]
    if sparse and "sparse" in text.lower():
        names = ", ".join(sparse[:3]) + (", ..." if len(sparse) > 3 else "")
        fit = "SGD, Adagrad or SparseAdam" if len(sparse) == len(gradients) else "SGD or Adagrad"
        return (
            f"The layer asks for sparse gradients ({names}), which few optimizers take: let optimizer(model, lr) "
            f"return {fit}, without weight_decay, or leave sparse=True out of the layer"
        )
    if "dense gradients" in text:  # torch's SparseAdam names the remedy itself
        return ""
    return _CALLED


def not_an_optimizer(made: object) -> str:
    """What is wrong with a result of `optimizer` that is no optimizer, and what to do."""
    rule = "optimizer(model, lr) must return a torch.optim.Optimizer; it returned "
    parts = list(_parts_of(made))
    optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
    named = f"{rule}a {type(made).__name__} of {', '.join(type(part).__name__ for part in parts) or 'nothing'}"
    if isinstance(made, (tuple, list, Mapping)) and len(optimizers) > 1:
        return (
            f"{named}: autobatch steps one optimizer, and searches its rate. Return one whose parameter "
            'groups are what those have ([{"params": ..., "lr": lr}, {"params": ..., "lr": 10 * lr}]); where they are '
            "of several kinds, or step in turn, return the one to tune and step the others in "
            "training_step(model, batch, scale), where the model keeps them"
        )
    if isinstance(made, (tuple, list, Mapping)) and optimizers:
        beside = [part for part in parts if part is not optimizers[0]]
        schedule = any(callable(getattr(part, "step", None)) for part in beside)
        where = ", and the schedule from scheduler(optimizer, total_steps)" if schedule else ""
        return f"{named}: return the optimizer alone{where}"
    if isinstance(made, type) and issubclass(made, torch.optim.Optimizer):
        name = made.__name__
        return f"{rule}the class {name}: make one, as in `return torch.optim.{name}(model.parameters(), lr=lr)`"
    return f"{rule}{type(made).__name__}{': is its `return` missing?' if made is None else ''}"


def _parts_of(made: object, depth: int = 3) -> Iterator[object]:
    if isinstance(made, Mapping):
        made = list(made.values())
    if isinstance(made, (tuple, list)) and depth:
        for part in made:
            yield from _parts_of(part, depth - 1)
    else:
        yield made


def not_a_schedule(made: object) -> str | None:
    """What is wrong with the result of `scheduler`, and what to do; None if it can be stepped."""
    rule = "scheduler(optimizer, total_steps) must return "
    if not callable(getattr(made, "step", None)):
        named = f"a {type(made).__name__}" if isinstance(made, (tuple, list, Mapping)) else type(made).__name__
        several = isinstance(made, (tuple, list, Mapping)) and any(hasattr(part, "step") for part in _parts_of(made))
        chain = ": join several with torch.optim.lr_scheduler.ChainedScheduler or SequentialLR" if several else ""
        missing = ": is its `return` missing?" if made is None else chain
        return f"{rule}an object with a step(); it returned {named}{missing}"
    if "ReduceLROnPlateau" in names_of(made):
        return (
            f"{rule}a schedule that goes by the step alone; ReduceLROnPlateau goes by a metric, and {_CALLED}. "
            "Return one over total_steps, such as CosineAnnealingLR(optimizer, total_steps)"
        )
    if needs := arguments_of_step(made):
        return (
            f"{rule}a schedule that goes by the step alone; {type(made).__name__}.step() needs {needs}, and {_CALLED}: "
            "wrap it in an object that counts its own steps and passes them on"
        )
    return None


def arguments_of_step(made: Any) -> str:
    """The arguments without which its `step` cannot be called; empty where there are none, or nobody can say."""
    step = made.step
    if hasattr(step, "_wrapped_by_lr_sched"):  # torch puts a plain function of the class around it, with its `self`
        step = type(made).step.__get__(made)
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return ""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds)


def names_of(schedule: Any, depth: int = 3) -> Iterator[str]:
    """The names of a schedule's class and its bases, and of the schedules in it."""
    yield from (kind.__name__ for kind in type(schedule).__mro__)
    parts = getattr(schedule, "_schedulers", ()) if depth else ()
    for part in parts if isinstance(parts, (list, tuple)) else ():
        yield from names_of(part, depth - 1)
