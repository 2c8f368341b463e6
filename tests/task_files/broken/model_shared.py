from parts import train_data, val_data
from torch import nn

net = nn.Linear(8, 2)


def model():
    return net
