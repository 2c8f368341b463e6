"""Writes made_table.json beside it: a made-up table of trials, by a formula, with the keys of a measured one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

BATCH_SIZES = [16, 64, 256]
LRS = [1e-4, 1e-3, 1e-2, 1e-1]
RUNGS = [0.125, 0.5, 1.0]
NUM_SEEDS = 2


def score(batch_size: int, lr: float, seed: int, share: float) -> float:
    """Best at batch 64 and a rate of 1e-2; learned by the root of the share; 0.01 between the seeds."""
    best = 0.9 - 0.1 * math.log10(lr / 1e-2) ** 2 - 0.02 * math.log2(batch_size / 64) ** 2
    return round(best * math.sqrt(share) + 0.01 * seed, 6)


def table() -> dict[str, Any]:
    """The table as its file holds it."""
    return {
        "name": "made-by-formula",
        "optimizer": "none: every number here is made by tests/recordings/made_table.py",
        "scheduler": "none",
        "full_trial_s": 1.0,
        "direction": "maximize",
        "batch_sizes": BATCH_SIZES,
        "lrs": LRS,
        "rungs": RUNGS,
        "step_time_s": [0.001 + 1e-5 * size for size in BATCH_SIZES],
        "baseline": {"batch_size": 16, "lr": 1e-3},
        "lr_range_test_min_over_10_at_128": 5e-3,
        "score": [
            [[[score(size, lr, seed, share) for share in RUNGS] for seed in range(NUM_SEEDS)] for lr in LRS]
            for size in BATCH_SIZES
        ],
    }


if __name__ == "__main__":
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
