import torch
from parts import model, val_data
from torch.utils.data import TensorDataset


def train_data():
    return TensorDataset(torch.zeros(64, 12), torch.zeros(64, dtype=torch.long))
