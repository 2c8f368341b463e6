"""Handwritten digits from scikit-learn: 1797 images of 8 x 8 pixels, ten classes. Nothing is downloaded.

    autobatch tune examples/digits.py --budget 60s

A task file is ordinary Python: it says what is trained, on what data and how it is judged. What is left out has
defaults; here those are the loss (cross-entropy of model(x) against y) and the metric (accuracy).
"""

import math

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

# What you train with today. It stays in the race to the end, and it is the answer unless something beats it.
baseline = {"batch_size": 32, "lr": 1e-3}

TRAIN, VALIDATION = 1200, 300  # the other 297 are for the test


def model():
    """A new model at each call: every trial starts from weights of its own."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 8 x 8 -> 4 x 4
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 4 * 4, 10),
    )


def split(first, last):
    """Images `first` to `last` of one fixed shuffle, standardised with what the training images alone tell."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    training = images[:TRAIN]
    images = (images - training.mean()) / training.std()
    x = torch.tensor(images[first:last], dtype=torch.float32).reshape(-1, 1, 8, 8)
    return TensorDataset(x, torch.tensor(labels[first:last]))


def train_data():
    return split(0, TRAIN)


def val_data():
    """Every choice is made by the score on these images."""
    return split(TRAIN, TRAIN + VALIDATION)


def test_data():
    """Scored once, at the end: these images had no part in any choice."""
    return split(TRAIN + VALIDATION, None)


def optimizer(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)


def scheduler(optimizer, total_steps):
    """A short warm-up, then a cosine down to zero; `total_steps` follows from the time a trial gets."""
    warm_up = max(1, total_steps // 20)

    def factor(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
