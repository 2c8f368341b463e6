"""A contrastive loss over all pairs of a batch, on two made-up views of each sample: memory grows with its square."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

INPUTS, WIDTH, EMBEDDING = 32, 64, 16
baseline = {"batch_size": 32, "lr": 1e-3}
accumulation = False  # the pairs of half a batch are not half of its pairs


class Views(Dataset):
    """A sample made from the index, twice, each time with noise of its own."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        sample = torch.randn(INPUTS, generator=generator)
        return tuple(sample + 0.3 * torch.randn(INPUTS, generator=generator) for _ in range(2))


def model():
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, EMBEDDING))


def train_data():
    return Views(50_000)


def val_data():
    return Views(200)


def _nearness(model, batch):
    """Of each first view to each second one: the negative distance, as the sum of absolute differences."""
    first, second = (model(view) for view in batch)
    return -(first[:, None] - second[None]).abs().sum(-1)


def loss(model, batch):
    nearness = _nearness(model, batch)
    return cross_entropy(nearness, torch.arange(len(nearness), device=nearness.device))


def metric(model, batch):
    nearness = _nearness(model, batch)
    return (nearness.argmax(1) == torch.arange(len(nearness), device=nearness.device)).float()
