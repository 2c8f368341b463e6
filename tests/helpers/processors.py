"""What torch can do on the processor at hand, asked of torch itself."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn


@cache
def trains_lstm_in(dtype: torch.dtype) -> bool:
    """Whether an LSTM trains under autocast to `dtype`; oneDNN has none in bfloat16 without AVX-512."""
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype):
            nn.LSTM(4, 4)(torch.ones(2, 2, 4))[0].sum().backward()
    except RuntimeError as error:
        if "could not create a primitive descriptor" not in str(error):
            raise
        return False
    return True
