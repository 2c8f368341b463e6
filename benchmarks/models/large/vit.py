"""ViT-B/16 (Dosovitskiy et al. 2020, arXiv:2010.11929, table 1) on made-up images of 224 x 224."""

import os

import torch
from torch import nn
from torch.utils.data import Dataset

WIDTH, DEPTH, HEADS, PATCH = 768, 12, 12, 16
precision = os.environ.get("PRECISION", "fp32")
baseline = {"batch_size": 8, "lr": 1e-4}
clip_grad_norm = 1.0


class Images(Dataset):
    """Noise, made from the index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(index)), index % 1000


class VisionTransformer(nn.Module):
    """Patches as tokens, one more for the class."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, (224 // PATCH) ** 2 + 1, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, DEPTH, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 1000)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        return self.head(self.layers(tokens)[:, 0])


def model():
    return VisionTransformer()


def train_data():
    return Images(1_281_167)


def val_data():
    return Images(50_000)
