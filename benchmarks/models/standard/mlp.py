"""A perceptron with four hidden layers on made-up features: hardly more than matrix products.

Full: 1024 features, layers of 4096, 54.6 M parameters. Small, for a CPU: 256 features, layers of 512.
"""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy

SMALL = os.environ.get("AUTOBATCH_BENCH_SIZE") == "small"
FEATURES, WIDTH = (256, 512) if SMALL else (1024, 4096)
DEPTH, CLASSES = 4, 10
baseline = {"batch_size": 128, "lr": 1e-3}


def model():
    layers = []
    inputs = FEATURES
    for _ in range(DEPTH):
        layers += [nn.Linear(inputs, WIDTH), nn.ReLU()]
        inputs = WIDTH
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def optimizer(model, lr):
    return torch.optim.AdamW(model.parameters(), lr)


class Numbers:
    """Batches of sample numbers, without end."""

    dataset = range(1 << 30)  # says how many samples there are, so that nobody has to count them

    def __init__(self, batch_size):
        self.batch = torch.arange(batch_size)

    def __iter__(self):
        while True:
            yield self.batch


def train_loader(batch_size, seed):
    return Numbers(batch_size)


def val_data():
    return range(1024)


def _features(batch, generator=None):
    """Noise; the class is which of the first ten features is largest.

    Made where the model is: nothing is read or copied, so what is measured is the device alone.
    """
    features = torch.rand(len(batch), FEATURES, generator=generator, device=batch.device).sub_(0.5)
    return features, features[:, :CLASSES].argmax(1)


def loss(model, batch):
    features, labels = _features(batch)
    return cross_entropy(model(features), labels)


def metric(model, batch):
    # Seeded: every evaluation is of the same features.
    features, labels = _features(batch, torch.Generator(batch.device).manual_seed(int(batch[0])))
    return (model(features).argmax(1) == labels).float()
