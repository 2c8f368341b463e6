"""Models that answer as transformers' do, written anew: what they are asked by keyword, and what they answer with.

Checked against transformers 5.24: an output is an ordered dictionary with its parts as attributes too, those that are
None left out of the dictionary; a model computes a loss where it is given labels.
"""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any

import torch
from torch import Tensor, nn

F = nn.functional


class Output(OrderedDict[str, Any]):
    def __init__(self, **parts: Any) -> None:
        super().__init__({name: part for name, part in parts.items() if part is not None})
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_parts"][name]
        except KeyError:
            raise AttributeError(name) from None


class ImageClassifierOutput(Output): ...


class TokenClassifierOutput(Output): ...


class CausalLMOutputWithPast(Output): ...


class Encoding(UserDict[str, Any]):
    """A batch as a tokenizer gives it."""

    def to(self, device: Any) -> Encoding:
        return Encoding({name: value.to(device) for name, value in self.items()})


class Images(nn.Module):
    """A classifier of images; with one class a regression, as transformers decide it."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(12, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Output:
        logits, loss = self.head(pixel_values.flatten(1)), None
        if labels is not None and logits.shape[1] == 1:
            loss = F.mse_loss(logits[:, 0], labels)
        elif labels is not None and labels.is_floating_point():
            loss = F.binary_cross_entropy_with_logits(logits, labels)
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class Tokens(nn.Module):
    """Classes of tokens: the loss of each label at its own place."""

    def __init__(self, output: Any = TokenClassifierOutput) -> None:
        super().__init__()
        self.body, self.output = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)), output

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        logits = self.body(input_ids)
        loss = None if labels is None else F.cross_entropy(logits.reshape(-1, 11), labels.reshape(-1))
        return self.output(loss=loss, logits=logits)


class Language(nn.Module):
    """The next token after each: labels are the tokens themselves, and the loss moves them by one."""

    def __init__(self, output: Any = CausalLMOutputWithPast, auxiliary: float = 0.0) -> None:
        super().__init__()
        self.body, self.output, self.auxiliary = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)), output, auxiliary

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        logits = self.body(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1)) + self.auxiliary
        return self.output(loss=loss, logits=logits)


def sentences(count: int, seed: int = 0, length: int = 7) -> Encoding:
    """Tokens from 1 on, of unlike lengths; padding is 0, and -100 in the labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 11, (count, length), generator=generator)
    padding = torch.arange(length) >= torch.randint(2, length + 1, (count, 1), generator=generator)
    return Encoding({"input_ids": ids.masked_fill(padding, 0), "labels": ids.masked_fill(padding, -100)})
