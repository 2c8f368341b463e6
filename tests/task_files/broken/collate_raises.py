from parts import model, train_data, val_data
import torch


def collate(samples):
    if any(x[0] > 1.5 for x, _ in samples):
        raise ValueError("a value above 1.5")
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
