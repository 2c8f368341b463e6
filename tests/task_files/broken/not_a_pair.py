import torch
from parts import model


def train_data():
    return [torch.zeros(8) for _ in range(64)]


val_data = train_data
