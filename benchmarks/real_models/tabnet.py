"""pytorch-tabnet: TabNet's network, whose forward gives the scores and a sparsity loss."""

import torch
from pytorch_tabnet.tab_network import TabNet
from torch import nn
from torch.utils.data import TensorDataset


def model():
    return TabNet(12, 2, n_d=8, n_a=8, n_steps=3, virtual_batch_size=64, group_attention_matrix=torch.eye(12))


def data(size, seed):
    x = torch.randn(size, 12, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] + x[:, 2] > 0).long())


def train_data():
    return data(4096, 0)


def val_data():
    return data(1024, 1)


def loss(model, batch):
    x, y = batch
    scores, sparsity = model(x)
    return nn.functional.cross_entropy(scores, y) - 1e-3 * sparsity


def metric(model, batch):
    x, y = batch
    return (model(x)[0].argmax(dim=1) == y).float()


baseline = {"batch_size": 256, "lr": 2e-2}
