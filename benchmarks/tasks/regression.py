"""Regression: a bumpy function of ten numbers, noise with heavy tails; Nesterov momentum, linear decay, RMSE."""

import math

import torch
from _rows import Rows, collate  # noqa: F401 (collate is the task's)
from torch import nn

baseline = {"batch_size": 32, "lr": 1e-3}
direction = "minimize"  # root mean square error on data without noise


def model():
    return nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def points(count, seed, noise):
    """Friedman's first function (1991, Annals of Statistics 19) of five of the ten, in units of its deviation."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 10, generator=drawn)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y - 14.4) / 4.9
    normal, scale = torch.randn(count, generator=drawn), torch.randn(count, 3, generator=drawn)
    tails = normal / (scale.square().mean(dim=1).sqrt() + 0.1)  # Student's t with three degrees, near enough
    return Rows(2 * x - 1, y + noise * tails)


def train_data():
    return points(8_000, seed=1, noise=0.3)


def val_data():
    return points(2_000, seed=2, noise=0.0)


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x).squeeze(1), y)


def evaluate(model, loader):
    squares = [(model(x).squeeze(1) - y).square() for x, y in loader]
    return float(torch.cat(squares).mean().sqrt())


def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)


def scheduler(optimizer, total_steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(1, total_steps))
