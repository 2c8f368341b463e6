"""Importing this does once what the first step of a process does. A fork server has it ready, after `warm.py`."""

from __future__ import annotations

import torch

from . import warm  # noqa: F401  # one thread from now on

# The first optimizer of a process imports as much again as torch does (measured, torch 2.13: 68 MiB, half of the time).
# Its first step imports the profiler's (36 ms).
torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()
# The kernels of a process's first LSTM, which oneDNN writes then (measured: 50 ms, half of what it takes to bring a
# process to the state of `CpuDevice`). No backward pass: autograd may start threads for it.
with torch.random.fork_rng(devices=[]):
    torch.nn.LSTM(16, 32)(torch.zeros(4, 4, 16))
