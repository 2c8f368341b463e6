"""What is trained: how one optimizer step is taken (`Plan`), and at which learning rate (`Config`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Mode = Literal["training", "inference"]


# Rates that single precision can hold, with room for the few decades that a search adds on either side. A batch of more
# samples than a 32-bit index can count is a mistake or a damaged file. Both assumed.
LEAST_LR, MOST_LR = 1e-30, 1e30
MOST_SAMPLES = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one optimizer step is taken.

    Attributes:
        batch_size: samples in one forward and backward pass of one rank (the micro-batch).
        accumulation_steps: micro-batches whose gradients are summed before the optimizer steps.
        precision: "fp32", "tf32" (float32 whose matrix products may be rounded to 10 bits first), or the type that
            autocast computes in.
        ranks: processes that take the step together, each with its own batch (data parallelism).
    """

    batch_size: int
    accumulation_steps: int = 1
    precision: Precision = "fp32"
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulation_steps < 1 or self.ranks < 1:
            raise ValueError(
                f"batch_size, accumulation_steps and ranks are at least 1; got {self.batch_size}, "
                f"{self.accumulation_steps} and {self.ranks}"
            )
        if self.effective_batch_size > MOST_SAMPLES:
            raise ValueError(
                f"an optimizer step averages over at most {MOST_SAMPLES:,} samples; got {self.batch_size} x "
                f"{self.accumulation_steps} x {self.ranks}"
            )

    @property
    def effective_batch_size(self) -> int:
        """Samples that one optimizer step averages over."""
        return self.batch_size * self.accumulation_steps * self.ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the search chooses: a plan and its learning rate, within `LEAST_LR` and `MOST_LR`."""

    plan: Plan
    lr: float

    def __post_init__(self) -> None:
        if not LEAST_LR <= self.lr <= MOST_LR:
            raise ValueError(f"a learning rate lies between {LEAST_LR:g} and {MOST_LR:g}; got {self.lr}")
