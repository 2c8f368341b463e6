"""A language model of two LSTM layers (Zaremba et al. 2014, arXiv:1409.2329, the large one) on made-up text.

Full: 1500 wide, 35 tokens, a vocabulary of 10,000, 66.0 M parameters. Small, for a CPU: 96 wide, a vocabulary of 500.
"""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy

SMALL = os.environ.get("AUTOBATCH_BENCH_SIZE") == "small"
VOCABULARY, WIDTH = (500, 96) if SMALL else (10_000, 1500)
LENGTH = 35
direction = "minimize"
baseline = {"batch_size": 20, "lr": 1e-3}  # the paper's batch
clip_grad_norm = 0.25


class LanguageModel(nn.Module):
    """Logits for the next token."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.04, 0.04)

    def forward(self, x):
        return self.head(self.lstm(self.tokens(x))[0])


def model():
    return LanguageModel()


def optimizer(model, lr):
    # As is common now. With the paper's SGD nothing is learned of this text for the first 400 steps.
    return torch.optim.AdamW(model.parameters(), lr)


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
    return range(256)


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
