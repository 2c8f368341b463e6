"""Tables of numbers, a quarter of the training labels wrong: a perceptron with batch norm, AdamW at a constant rate."""

import torch
from _rows import Rows, collate  # noqa: F401 (collate is the task's)
from torch import nn

baseline = {"batch_size": 128, "lr": 1e-3}
direction = "maximize"

FEATURES, CLASSES, WRONG = 24, 6, 0.25


def model():
    return nn.Sequential(
        nn.Linear(FEATURES, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, CLASSES)
    )


def rows(count, seed, wrong):
    """Classes by what a fixed random net says of correlated features; some columns say nothing, some are skewed."""
    world = torch.Generator().manual_seed(1)
    mixing = torch.randn(FEATURES, FEATURES, generator=world) / FEATURES**0.5
    first, second = torch.randn(12, 32, generator=world), torch.randn(32, CLASSES, generator=world)
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=drawn) @ mixing
    labels = (torch.tanh(1.5 * x[:, :12] @ first) @ second).argmax(dim=1)
    x = torch.cat([x[:, :18], torch.exp(x[:, 18:])], dim=1)
    changed = torch.rand(count, generator=drawn) < wrong
    other = torch.randint(CLASSES, (count,), generator=drawn)
    return Rows(x, torch.where(changed, other, labels))


def train_data():
    return rows(12_000, seed=2, wrong=WRONG)


def val_data():
    return rows(3_000, seed=3, wrong=0.0)


def optimizer(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
