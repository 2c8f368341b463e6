from parts import train_data, val_data
from torch import nn


def model():
    return nn.Linear(8, 2).requires_grad_(False)
