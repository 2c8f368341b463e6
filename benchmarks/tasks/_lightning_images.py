"""A small image classifier as a Lightning project has it, with data enough for large batches; it knows of no tuner."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Images(L.LightningDataModule):
    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage=None):
        drawn = torch.Generator().manual_seed(7)
        labels = torch.randint(0, 8, (6144,), generator=drawn)
        images = 0.7 * torch.randn(6144, 1, 16, 16, generator=drawn)
        for label in range(8):
            images[labels == label, :, label * 2 : label * 2 + 2] += 0.5
        self.train = TensorDataset(images[:5120], labels[:5120])
        self.val = TensorDataset(images[5120:], labels[5120:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.hparams.batch_size)


class Classifier(L.LightningModule):
    def __init__(self, width: int = 24, lr: float = 1e-4):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((8, 1)),
            nn.Flatten(),
            nn.Linear(width * 8, 8),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_acc", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
