"""A small GPT on made-up text: logits over the vocabulary and attention share the memory."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.data import Dataset

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 256, 64, 64, 4, 2
baseline = {"batch_size": 8, "lr": 1e-3}
clip_grad_norm = 1.0


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


class Block(nn.Module):
    """Attention to what came before, then each position by itself."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = self.queries_keys_values(self.attention_norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.narrow(gelu(self.widen(self.norm(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))


def model():
    return GPT()


def train_data():
    return Text(50_000)


def val_data():
    return Text(200)


def loss(model, batch):
    tokens, targets = batch
    return cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def metric(model, batch):
    tokens, targets = batch
    return (model(tokens).argmax(-1) == targets).float().mean(1)
