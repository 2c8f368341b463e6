"""GPT-2 small (Radford et al. 2019, "Language models are unsupervised multitask learners") on made-up text.

Full: 1024 tokens, a vocabulary of 50,257, 124.4 M parameters. Small, for a CPU: 2 of the 12 layers, 64 wide, 64 tokens,
a vocabulary of 512.
"""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

SMALL = os.environ.get("AUTOBATCH_BENCH_SIZE") == "small"
VOCABULARY, LENGTH, WIDTH, HEADS, DEPTH = (512, 64, 64, 4, 2) if SMALL else (50_257, 1024, 768, 12, 12)
direction = "minimize"
# 0.5 M tokens at 6e-4, as this size of GPT-3 (Brown et al. 2020, table 2.1), scaled by the square root.
baseline = {"batch_size": 8, "lr": 1e-4}
clip_grad_norm = 1.0


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
        for name, parameter in self.named_parameters():
            if name.endswith(("mix.weight", "narrow.weight")):  # what is added 2 x DEPTH times
                nn.init.normal_(parameter, std=0.02 / (2 * DEPTH) ** 0.5)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x):
        positions = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions(positions))))


def model():
    return Gpt2()


def optimizer(model, lr):
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.95))


class Numbers:
    """Batches of sample numbers, without end."""

    dataset = range(1 << 30)  # says how many samples there are, so that nobody has to count them

    def __init__(self, batch_size):
        self.batch = torch.arange(batch_size)

    def __iter__(self):
        while True:
            yield self.batch


def train_loader(batch_size, seed):
    return Numbers(batch_size)


def val_data():
    return range(64)


def _text(batch, generator=None):
    """A walk over the vocabulary by one of four steps at a time, and what follows each token of it.

    Made where the model is: nothing is read or copied, so what is measured is the device alone.
    """
    device, count = batch.device, len(batch)
    steps = torch.randint(1, 5, (count, LENGTH + 1), generator=generator, device=device)
    steps[:, 0] = torch.randint(VOCABULARY, (count,), generator=generator, device=device)
    tokens = steps.cumsum(1) % VOCABULARY
    return tokens[:, :-1], tokens[:, 1:]


def loss(model, batch):
    tokens, following = _text(batch)
    return cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def metric(model, batch):
    # Seeded: every evaluation is of the same text. Minus the log-likelihood of a token, in nats.
    tokens, following = _text(batch, torch.Generator(batch.device).manual_seed(int(batch[0])))
    each = cross_entropy(model(tokens).flatten(0, 1), following.flatten(), reduction="none")
    return each.view(following.shape).mean(1)
