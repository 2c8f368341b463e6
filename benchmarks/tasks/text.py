"""Text: the next character of Python's own documentation strings, a one-layer transformer, AdamW with warm-up, bits."""

import inspect
import math

import torch
from _rows import Rows, collate  # noqa: F401 (collate is the task's)
from torch import nn

baseline = {"batch_size": 32, "lr": 1e-3}
direction = "minimize"  # bits per character

LENGTH = 32
WIDTH = 32
# Modules of the standard library that every Python has, pure Python all.
MODULES = ("argparse", "configparser", "datetime", "difflib", "doctest", "email.message", "fractions", "heapq")
MODULES += ("inspect", "logging", "mailbox", "optparse", "pathlib", "pickle", "random", "shelve", "statistics")
MODULES += ("string", "tarfile", "textwrap", "threading", "timeit", "unittest.mock", "urllib.parse")


def corpus():
    """All of it as codes below 96: printable ASCII, anything else as 0."""
    words = []
    for name in MODULES:
        module = __import__(name, fromlist=["_"])
        found = [module, *(value for _, value in sorted(vars(module).items()) if inspect.isclass(value))]
        words += [inspect.getdoc(value) or "" for value in found if getattr(value, "__module__", name) == name]
    text = "\n".join(dict.fromkeys(words))
    return torch.tensor([ord(c) - 31 if 32 <= ord(c) < 127 else 0 for c in text])


def windows(codes, stride):
    """Every stretch of LENGTH characters, `stride` apart, and the same one character later."""
    stretches = codes.unfold(0, LENGTH + 1, stride)
    return Rows(stretches[:, :-1], stretches[:, 1:])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.letters, self.places = nn.Embedding(96, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.mix, self.join = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.out = nn.Linear(WIDTH, 96)

    def forward(self, x):
        h = self.letters(x) + self.places.weight[: x.shape[1]]
        queries, keys, values = (
            part.unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for part in self.mix(self.norms[0](h)).chunk(3, dim=-1)
        )
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        match = (queries @ keys.transpose(-1, -2) / (WIDTH // 2) ** 0.5).masked_fill(later, -math.inf)
        h = h + self.join((match.softmax(-1) @ values).transpose(1, 2).flatten(-2))
        h = h + self.think(self.norms[1](h))
        return self.out(self.norms[2](h)).transpose(1, 2)


def model():
    return Model()


def train_data():
    codes = corpus()
    return windows(codes[: len(codes) * 9 // 10], stride=3)


def val_data():
    codes = corpus()
    return windows(codes[len(codes) * 9 // 10 :], stride=LENGTH)


def metric(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none").mean(dim=1) / math.log(2)


def optimizer(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)


def scheduler(optimizer, total_steps):
    warm_up = max(1, total_steps // 20)

    def factor(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
