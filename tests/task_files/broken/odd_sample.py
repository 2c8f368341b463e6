import torch
from parts import model, val_data


def train_data():
    samples = [(torch.zeros(3, 32), 0) for _ in range(64)]
    samples[17] = (torch.zeros(3, 30), 0)
    return samples
