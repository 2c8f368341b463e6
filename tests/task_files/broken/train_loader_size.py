import torch
from parts import model, val_data


def train_loader(batch_size, seed):
    return [(torch.zeros(32, 8), torch.zeros(32, dtype=torch.long))]
