from parts import train_data, val_data
from torch import nn


def build(width):
    return nn.Linear(8, {}[width])


def model():
    return build("wide")
