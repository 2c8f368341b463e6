import torch
from parts import model, val_data


def train_data():
    return [(torch.zeros(5 + index), 0) for index in range(64)]
