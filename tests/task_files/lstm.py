"""Sequences of different lengths: padded by collate, and the longest found by sample_size."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset


class Sequences(Dataset):
    def __init__(self, seed, count):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 20, (count,), generator=generator)
        self.x = [torch.randn(int(length), 4, generator=generator) for length in lengths]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.x[index].sum() > 0)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0].mean(dim=1))


def model():
    return Classifier()


def train_data():
    return Sequences(0, 128)


def val_data():
    return Sequences(1, 64)


def collate(samples):
    return pad_sequence([x for x, _ in samples], batch_first=True), torch.tensor([y for _, y in samples])


def sample_size(sample):
    return len(sample[0])
