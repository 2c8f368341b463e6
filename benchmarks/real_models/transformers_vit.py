"""transformers: ViT on small images; its ImageClassifierOutput goes through the default loss and metric."""

import torch
from transformers import ViTConfig, ViTForImageClassification


def model():
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        num_labels=4,
    )
    return ViTForImageClassification(config)


class Quadrants(torch.utils.data.Dataset):
    """The class is the quadrant that is brighter."""

    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 4, (size,), generator=generator)
        self.noise = torch.randn(size, 3, 32, 32, generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image, label = self.noise[index].clone(), int(self.labels[index])
        top, left = 16 * (label // 2), 16 * (label % 2)
        image[:, top : top + 16, left : left + 16] += 0.3
        return {"pixel_values": image, "labels": label}


def train_data():
    return Quadrants(1024, 0)


def val_data():
    return Quadrants(512, 1)


baseline = {"batch_size": 32, "lr": 1e-3}
