from parts import model, train_data, val_data
from torch import nn


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).detach(), batch[1])
