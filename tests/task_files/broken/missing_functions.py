from torch import nn


def model():
    return nn.Linear(8, 2)


def helper(model, batch):
    return None
