"""Importing this imports all that a worker's jobs need, and touches no device: what a fork server holds ready."""

from __future__ import annotations

import torch

from . import inputs, torch_runner  # noqa: F401

# The first optimizer of a process imports as much again as torch does (measured, torch 2.13: 68 MiB, half of the time).
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
