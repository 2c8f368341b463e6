"""A small residual network on made-up 32 x 32 images: activations of three sizes dominate."""

import torch
from torch import nn
from torch.nn.functional import relu
from torch.utils.data import Dataset

baseline = {"batch_size": 16, "lr": 1e-3}


class Images(Dataset):
    """Noise, made from the index; the class tints it."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        label = index % 10
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 32, 32, generator=generator) + label / 10, label


class Block(nn.Module):
    """Two convolutions around which the input passes; a stride halves the image."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        inside = relu(self.first_norm(self.first(x)))
        return relu(self.second_norm(self.second(inside)) + self.shortcut(x))


def model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8, 8, stride=1),
        Block(8, 16, stride=2),
        Block(16, 32, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)


def train_data():
    return Images(50_000)


def val_data():
    return Images(200)
