"""Training batches cut from tensors by the task itself, as where the data lives on the GPU."""

import torch
from torch import nn
from torch.utils.data import TensorDataset


def _data(seed, count):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, (x.sum(dim=1) > 0).long()


class Batches:
    def __init__(self, batch_size, seed):
        self.x, self.y = _data(0, 256)
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.seed))
        for index in order.split(self.batch_size):
            yield self.x[index], self.y[index]


def model():
    return nn.Linear(8, 2)


def train_loader(batch_size, seed):
    return Batches(batch_size, seed)


def val_data():
    return TensorDataset(*_data(1, 64))
