"""Sequences: which symbol is most frequent after the marker? A gated recurrent net, Adam, one cycle, clipping."""

import torch
from _rows import Rows, collate  # noqa: F401 (collate is the task's)
from torch import nn

baseline = {"batch_size": 64, "lr": 3e-3}
direction = "maximize"
clip_grad_norm = 1.0

SYMBOLS, LENGTH, WIDTH = 5, 12, 32


class Model(nn.Module):
    """A gated recurrent unit, written out."""

    def __init__(self):
        super().__init__()
        self.read, self.carry = nn.Embedding(SYMBOLS + 1, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x):
        h = torch.zeros(x.shape[0], WIDTH, device=x.device)
        for said in self.read(x).unbind(1):
            (reset, update, new), (r, u, n) = said.chunk(3, dim=1), self.carry(h).chunk(3, dim=1)
            gate = torch.sigmoid(update + u)
            h = gate * h + (1 - gate) * torch.tanh(new + torch.sigmoid(reset + r) * n)
        return self.out(h)


def model():
    return Model()


def sequences(count, seed):
    """The marker, symbol SYMBOLS, stands in the first half; of symbols equally often the lowest is the answer."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randint(SYMBOLS, (count, LENGTH), generator=drawn)
    place = torch.randint(LENGTH // 2, (count, 1), generator=drawn)
    x.scatter_(1, place, SYMBOLS)
    counted = (torch.arange(LENGTH) > place).unsqueeze(-1) * nn.functional.one_hot(x, SYMBOLS + 1)
    return Rows(x, counted[..., :SYMBOLS].sum(dim=1).argmax(dim=1))


def train_data():
    return sequences(20_000, seed=1)


def val_data():
    return sequences(3_000, seed=2)


def optimizer(model, lr):
    return torch.optim.Adam(model.parameters(), lr=lr)


def scheduler(optimizer, total_steps):
    peak = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total_steps, pct_start=0.1)
