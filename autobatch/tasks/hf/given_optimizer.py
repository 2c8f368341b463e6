"""An optimizer that the Trainer was handed, which is of one model: what is needed to make its like for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import TaskError, with_class

_REMEDY = "override create_optimizer() in a subclass of Trainer, or pass optimizer_cls_and_kwargs=(class, arguments)"


@dataclass(frozen=True, slots=True)
class GivenOptimizer:
    """An optimizer without its parameters.

    Attributes:
        kind: its class.
        groups: of each group the names of its parameters and its options, the rate among them.
        lr: that of the first group, which the others keep their ratio to.
    """

    kind: Any
    groups: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    lr: float

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, model: nn.Module) -> GivenOptimizer:
        """What there is to know of `optimizer`, which is of this model.

        Raises:
            TaskError: it steps on parameters of something else.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            options = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
            options["lr"] = group.get("initial_lr", group["lr"])  # before a schedule has changed it
            if any(id(parameter) not in names for parameter in group["params"]):
                raise TaskError(
                    f"the Trainer's optimizer ({type(optimizer).__name__}) steps on parameters that its model does not "
                    f"have, so no other can be made like it: {_REMEDY}"
                )
            groups.append((tuple(names[id(parameter)] for parameter in group["params"]), options))
        return cls(type(optimizer), tuple(groups), float(groups[0][1]["lr"]))

    def made(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """One like it, for another model of the kind, at a rate.

        Raises:
            TaskError: its class cannot be called with parameter groups and a rate.
        """
        parameters = dict(model.named_parameters())
        factor = lr / self.lr
        groups = [
            {**options, "params": [parameters[name] for name in names], "lr": float(options["lr"]) * factor}
            for names, options in self.groups
        ]
        try:
            made: torch.optim.Optimizer = self.kind(groups, lr=lr)
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"no other {self.kind.__name__} can be made like the one in optimizers=: {with_class(error)}. {_REMEDY}"
            ) from None
        return made
