"""prodigyopt: Prodigy, whose rate is a factor on the one that it estimates itself."""

import prodigyopt
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
    return prodigyopt.Prodigy(model.parameters(), lr=lr, weight_decay=0.01)


def scheduler(optimizer, total_steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)


baseline = {"batch_size": 64, "lr": 1.0}
