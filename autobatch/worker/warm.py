"""Importing this imports all that a worker's jobs need, and touches no device: what a fork server holds ready."""

from __future__ import annotations

import torch

from ..devices import cpu  # noqa: F401
from ..tasks import inputs  # noqa: F401
from . import torch_runner  # noqa: F401

# Not for the worker, which sets its own: GNU OpenMP's threads do not live through a fork, and a worker of a server that
# has had them waits for them for ever. With one thread nothing that is imported here, now or later, starts them.
torch.set_num_threads(1)
# The first optimizer of a process imports as much again as torch does (measured, torch 2.13: 68 MiB, half of the time).
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
# The kernels of a process's first LSTM, which oneDNN writes then (measured: 50 ms, half of what it takes to bring a
# process to the state of `CpuDevice`). No backward pass: autograd may start threads for it.
with torch.random.fork_rng(devices=[]):
    torch.nn.LSTM(16, 32)(torch.zeros(4, 4, 16))
