"""Training data that is a stream without a length."""

import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(256):
            x = torch.randn(8, generator=generator)
            yield x, (x.sum() > 0).long()


def model():
    return nn.Linear(8, 2)


def train_data():
    return Stream()


def val_data():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())
