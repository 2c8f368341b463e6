"""timm: a ViT for other images than its pretrained weights, with timm's own optimizer and schedule groups."""

import timm
import timm.optim
import torch
from torch.utils.data import TensorDataset


def model():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=2, num_classes=3
    )


def data(size, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (size,), generator=generator)
    x = torch.randn(size, 3, 64, 64, generator=generator)
    x[torch.arange(size), y] += 0.2
    return TensorDataset(x, y)


def train_data():
    return data(512, 0)


def val_data():
    return data(256, 1)


def optimizer(model, lr):
    return timm.optim.create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.05)


baseline = {"batch_size": 32, "lr": 5e-4}
