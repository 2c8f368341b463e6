"""rtdl: FT-Transformer on numbers and categories, with its own groups of parameters."""

import torch
from rtdl_revisiting_models import FTTransformer
from torch import nn
from torch.utils.data import TensorDataset


def model():
    return FTTransformer(
        n_cont_features=4,
        cat_cardinalities=[3, 5],
        d_out=2,
        n_blocks=1,
        d_block=16,
        attention_n_heads=2,
        attention_dropout=0.1,
        ffn_d_hidden=32,
        ffn_d_hidden_multiplier=None,
        ffn_dropout=0.1,
        residual_dropout=0.0,
    )


def data(size, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(size, 4, generator=generator)
    categories = torch.stack([torch.randint(0, n, (size,), generator=generator) for n in (3, 5)], dim=1)
    return TensorDataset(numbers, categories, (numbers[:, 0] + categories[:, 1] - 2 > 0).long())


def train_data():
    return data(2048, 0)


def val_data():
    return data(1024, 1)


def loss(model, batch):
    numbers, categories, y = batch
    return nn.functional.cross_entropy(model(numbers, categories), y)


def metric(model, batch):
    numbers, categories, y = batch
    return (model(numbers, categories).argmax(dim=1) == y).float()


def optimizer(model, lr):
    return torch.optim.AdamW(model.make_parameter_groups(), lr=lr, weight_decay=1e-5)


baseline = {"batch_size": 64, "lr": 1e-3}
