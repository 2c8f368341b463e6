"""An LSTM on made-up sequences: memory grows with the length as much as with the batch."""

import torch
from torch import nn
from torch.utils.data import Dataset

LENGTH, INPUTS, WIDTH = 48, 16, 96
baseline = {"batch_size": 16, "lr": 1e-3}


class Sequences(Dataset):
    """Noise, made from the index, around one of five means."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        label = index % 5
        generator = torch.Generator().manual_seed(index)
        return torch.randn(LENGTH, INPUTS, generator=generator) + label / 5, label


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def model():
    return Classifier()


def train_data():
    return Sequences(50_000)


def val_data():
    return Sequences(200)
