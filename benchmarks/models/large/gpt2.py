"""GPT-2 small (Radford et al. 2019: 124 M parameters, 1,024 tokens) on made-up text."""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.data import Dataset

VOCABULARY, LENGTH, WIDTH, HEADS, DEPTH = 50_257, 1024, 768, 12, 12
precision = os.environ.get("PRECISION", "fp32")
baseline = {"batch_size": 4, "lr": 6e-4}
clip_grad_norm = 1.0


class Text(Dataset):
    """Random tokens, made from the index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        tokens = torch.randint(VOCABULARY, (LENGTH + 1,), generator=torch.Generator().manual_seed(index))
        return tokens[:-1], tokens[1:]


class Block(nn.Module):
    """Attention to what came before, then each position by itself."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries_keys_values, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = self.queries_keys_values(self.attention_norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.narrow(gelu(self.widen(self.norm(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """Logits for the next token; the output layer is the embedding's, transposed."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x):
        positions = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions(positions))))


def model():
    return Gpt2()


def loss(model, batch):
    tokens, following = batch
    return cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def metric(model, batch):
    tokens, following = batch
    return (model(tokens).argmax(-1) == following).float().mean(1)


def train_data():
    return Text(1_000_000)


def val_data():
    return Text(10_000)
