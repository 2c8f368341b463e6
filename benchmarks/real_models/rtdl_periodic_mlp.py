"""rtdl: an MLP on periodic embeddings of numbers (PLR)."""

import torch
from rtdl_num_embeddings import PeriodicEmbeddings
from rtdl_revisiting_models import MLP
from torch import nn
from torch.utils.data import TensorDataset


def model():
    return nn.Sequential(
        PeriodicEmbeddings(6, 8, lite=False), nn.Flatten(), MLP(d_in=48, d_out=2, n_blocks=2, d_block=32, dropout=0.1)
    )


def data(size, seed):
    x = torch.rand(size, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, ((6 * x[:, 0]).sin() + (9 * x[:, 1]).cos() > 0).long())


def train_data():
    return data(4096, 0)


def val_data():
    return data(1024, 1)


baseline = {"batch_size": 128, "lr": 1e-3}
