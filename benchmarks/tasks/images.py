"""Images: handwritten digits, shifted by up to two pixels; patches mixed by perceptrons, momentum, cosine."""

import math

import numpy as np
import torch
from _rows import Rows, collate  # noqa: F401 (collate is the task's)
from sklearn.datasets import load_digits
from torch import nn

baseline = {"batch_size": 64, "lr": 0.01}
direction = "maximize"

WIDTH = 24
TRAIN = 1000  # of 1797 images; each comes in several positions


class Mixer(nn.Module):
    """Nine patches of 4 x 4 pixels, mixed across places and then across features (Tolstikhin et al. 2021)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.places = nn.Sequential(nn.Linear(9, 18), nn.GELU(), nn.Linear(18, 9))
        self.features = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x):
        patches = x.reshape(-1, 3, 4, 3, 4).transpose(2, 3).reshape(-1, 9, 16)
        h = self.embed(patches)
        h = h + self.places(self.norms[0](h).transpose(1, 2)).transpose(1, 2)
        h = h + self.features(self.norms[1](h))
        return self.out(self.norms[2](h).mean(1))


def model():
    return Mixer()


def shifted(first, last, copies):
    """Images on a field of 12 x 12 pixels, at `copies` random places each."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[first:last]
    images, labels = images[order].reshape(-1, 8, 8) / 8 - 1, labels[order]
    places = np.random.default_rng(first + 1).integers(0, 5, size=(copies, len(images), 2))
    field = np.full((copies, len(images), 12, 12), -1.0, dtype=np.float32)
    for copy in range(copies):
        for index, (row, column) in enumerate(places[copy]):
            field[copy, index, row : row + 8, column : column + 8] = images[index]
    return Rows(
        torch.from_numpy(field.reshape(-1, 1, 12, 12)), torch.from_numpy(np.tile(labels, copies).astype(np.int64))
    )


def train_data():
    return shifted(0, TRAIN, copies=8)


def val_data():
    return shifted(TRAIN, None, copies=2)


def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def scheduler(optimizer, total_steps):
    def factor(step):
        return 0.5 * (1 + math.cos(math.pi * step / max(1, total_steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
