"""The same as functions, said with a Task."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from autobatch.tasks.task import Task


def _data(seed, count):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


task = Task(
    model=lambda: nn.Linear(8, 2),
    train_data=lambda: _data(0, 128),
    val_data=lambda: _data(1, 64),
    baseline={"batch_size": 8, "lr": 1e-2},
)
