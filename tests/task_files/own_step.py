"""Forward and backward written by the task itself."""

import torch
from minimal import model, train_data, val_data
from torch import nn

__all__ = ["model", "train_data", "training_step", "val_data"]


def training_step(model, batch, scale):
    x, y = batch
    noisy = x + 0.01 * torch.randn_like(x)
    loss = nn.functional.cross_entropy(model(noisy), y)
    (loss * scale).backward()
    return loss
