"""A small causal transformer on made-up text: logits over the vocabulary and attention share the memory."""

import torch
from torch import nn
from torch.utils.data import Dataset

VOCABULARY, LENGTH, WIDTH = 512, 64, 64
baseline = {"batch_size": 8, "lr": 1e-3}


class Text(Dataset):
    """A random walk over the vocabulary, made from the index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        steps = torch.randint(-2, 3, (LENGTH + 1,), generator=torch.Generator().manual_seed(index))
        tokens = steps.cumsum(0) % VOCABULARY
        return tokens[:-1], tokens[1:]


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=4 * WIDTH, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.head(self.layers(self.tokens(tokens) + self.positions, mask=mask, is_causal=True))


def model():
    return Transformer()


def train_data():
    return Text(50_000)


def val_data():
    return Text(200)


def loss(model, batch):
    tokens, targets = batch
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def metric(model, batch):
    tokens, targets = batch
    return (model(tokens).argmax(-1) == targets).float().mean(1)
