"""Floating-point operations: how many a sample needs, and how many per second a device reaches at best."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..core.plan import Precision
from ..devices import Device
from ..tasks.data import Batch, to_device
from ..tasks.task import Task
from .timing import repeat
from .training import made_ready

_META = torch.device("meta")
_TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Sides of the square matrices to multiply: doubled from the first while a product is quicker than the second, and at
# most the third, whose three matrices take 3 GiB in fp32. Assumed: a product that long uses any device fully.
_FIRST_SIDE, _LONG_S, _LAST_SIDE = 256, 0.02, 16_384


def step_flops(task: Task, batch: Batch) -> int | None:
    """Operations of the matrix products and convolutions of one forward and backward pass; None if unknown.

    A multiplication and an addition are two. Nothing is computed: the pass runs on the meta device, which has only
    shapes, and on which every operation that hides others (an LSTM, an attention) appears as its parts. A task whose
    loss looks at values, or puts tensors on its own device, cannot be run there.
    """
    try:
        model = task.model().to(_META).train()
        (ready,) = made_ready(task, [batch])
        moved = to_device(ready, _META)
        with FlopCounterMode(display=False) as counter:
            if task.training_step is not None:
                task.training_step(model, moved, 1.0)
            else:
                task.loss(model, moved).backward()
    except Exception:  # noqa: BLE001  # without values the user's code may raise anything
        return None
    return counter.get_total_flops() or None


def matmul_flops_per_s(device: Device, precision: Precision, budget_s: float) -> float:
    """Operations per second of one large square matrix product: the most that this device reaches in this precision.

    Args:
        device: the device to measure.
        precision: of the matrices; "tf32" is fp32 under the present mode.
        budget_s: about how many seconds to spend.
    """
    side = _FIRST_SIDE
    while True:
        matrices = [
            torch.randn(side, side, device=device.torch_device).to(_TYPES[precision]) / side**0.5 for _ in range(2)
        ]
        out = torch.empty_like(matrices[0])
        torch.matmul(*matrices, out=out)
        device.synchronize()
        begun = perf_counter()
        torch.matmul(*matrices, out=out)
        device.synchronize()
        if perf_counter() - begun > _LONG_S or side >= _LAST_SIDE:
            break
        side *= 2
    seconds = median(repeat(lambda: torch.matmul(*matrices, out=out), device, budget_s))
    return 2 * side**3 / seconds
