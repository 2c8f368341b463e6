"""schedulefree: AdamWScheduleFree, which must be told when it is trained with and when it is judged."""

import schedulefree
import torch
from torch import nn
from torch.utils.data import TensorDataset


def model():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def data(size, seed):
    x = torch.randn(size, 20, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


def train_data():
    return data(4096, 0)


def val_data():
    return data(1024, 1)


def optimizer(model, lr):
    return schedulefree.AdamWScheduleFree(model.parameters(), lr=lr, warmup_steps=20)


baseline = {"batch_size": 64, "lr": 2.5e-3}
