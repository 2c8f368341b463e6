"""Norm, clip and finiteness of gradients, also of sparse ones, for which torch has none of the three (torch 2.6 to
2.13).

`Embedding(sparse=True)` and `EmbeddingBag(sparse=True)` give gradients with only the rows that a batch used.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def held(gradient: Tensor) -> Tensor:
    """The numbers of a gradient, dense: for a sparse one the rows that it has, each once."""
    if gradient.layout is torch.strided:
        return gradient
    # A row that a batch used twice is in it twice until the two are added.
    return gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient.values()


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that exist."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients as one vector, on the device."""
    return nn.utils.get_total_norm([held(gradient) for gradient in gradients])


def clip_norm(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Shorten the gradients to a norm of `largest`, like torch's `clip_grad_norm_`. Returns the norm before."""
    parameters = list(parameters)
    gradients = gradients_of(parameters)
    if all(gradient.layout is torch.strided for gradient in gradients):
        return nn.utils.clip_grad_norm_(parameters, largest)
    norm = total_norm(gradients)
    factor = torch.clamp(largest / (norm + 1e-6), max=1.0)  # like torch's, in which 1e-6 avoids a division by zero
    with torch.no_grad():
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
    return norm


@torch.no_grad()
def multiply(gradients: list[Tensor], factor: float) -> None:
    """Multiply each gradient by a number, in place."""
    dense = [gradient for gradient in gradients if gradient.layout is torch.strided]
    if dense:
        torch._foreach_mul_(dense, factor)
    for gradient in gradients:
        if gradient.layout is not torch.strided:
            gradient.mul_(factor)


def zero_gradient(parameter: Tensor, *, sparse: bool) -> Tensor:
    """A zero gradient for `parameter`, in the layout that its layer gives."""
    return torch.zeros_like(parameter, layout=torch.sparse_coo if sparse else torch.strided)


def sparse_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters whose layers make sparse gradients."""
    layers = (module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag))
    return {id(layer.weight) for layer in layers if layer.sparse}
