"""ResNet-50 (He et al. 2015, arXiv:1512.03385, table 1) on made-up images of 224 x 224."""

import os

import torch
from torch import nn
from torch.nn.functional import relu
from torch.utils.data import Dataset

precision = os.environ.get("PRECISION", "fp32")
baseline = {"batch_size": 8, "lr": 1e-3}


class Images(Dataset):
    """Noise, made from the index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(index)), index % 1000


class Bottleneck(nn.Module):
    """Three convolutions around which the input passes; the middle one may halve the image."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.reduce, self.reduce_norm = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.middle = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.middle_norm = nn.BatchNorm2d(width)
        self.expand, self.expand_norm = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        inside = relu(self.reduce_norm(self.reduce(x)))
        inside = relu(self.middle_norm(self.middle(inside)))
        return relu(self.expand_norm(self.expand(inside)) + self.shortcut(x))


def model():
    layers = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)


def train_data():
    return Images(1_281_167)


def val_data():
    return Images(50_000)
