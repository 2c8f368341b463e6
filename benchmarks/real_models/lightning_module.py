"""lightning: a LightningModule with its own training_step, which logs, and its own optimizer."""

import lightning
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Classifier(lightning.LightningModule):
    def __init__(self, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def model():
    return Classifier()


def data(size, seed):
    x = torch.randn(size, 20, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def train_data():
    return data(4096, 0)


def val_data():
    return data(1024, 1)


def loss(model, batch):
    return model.training_step(batch, 0)


def optimizer(model, lr):
    model.hparams.lr = lr
    return model.configure_optimizers()


baseline = {"batch_size": 64, "lr": 1e-3}
