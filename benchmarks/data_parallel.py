"""What do several processes gain over one that takes their batches as one?

    python benchmarks/data_parallel.py [TASK.py ...] [--nproc 2] [--batch-sizes 4 16 64] [--seconds 10] [--json OUT]

For each task and batch size it times optimizer steps of `--nproc` processes, each with that batch, and of one process
with all of them together. On a CPU both have the same number of threads in all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provenance import about

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Plan
from autobatch.devices.environment import default_threads
from autobatch.engines.group import open_workers
from autobatch.engines.served import RunnerSpec

MODELS = Path(__file__).parent / "models"


def timed(spec: RunnerSpec, plans: Sequence[Plan], seconds: float) -> list[Measurement]:
    """Each plan's steps."""
    runner = open_workers(spec)
    try:
        return [runner.time(plan, budget_s=seconds) for plan in plans]
    finally:
        runner.close()


def compare(task: Path, nproc: int, batch_sizes: Sequence[int], seconds: float, device: str) -> list[dict[str, Any]]:
    """A row for each batch size, which is that of one of the processes."""
    spec = RunnerSpec(path=task, device=device, threads=default_threads())
    several = RunnerSpec(path=task, device=device, threads=spec.threads, nproc=nproc)
    together = timed(several, [Plan(batch_size=size, ranks=nproc) for size in batch_sizes], seconds)
    alone = timed(spec, [Plan(batch_size=nproc * size) for size in batch_sizes], seconds)
    rows = []
    for size, many, one in zip(batch_sizes, together, alone, strict=True):
        if many.outcome != "ok" or one.outcome != "ok":
            raise SystemExit(f"{task.stem} at {size}: {many.outcome} {many.message}, {one.outcome} {one.message}")
        rows.append(
            {
                "task": task.stem,
                "batch_size": size,
                "nproc": nproc,
                "steps_per_s": 1 / many.median_step_s,
                "steps_per_s_of_one": 1 / one.median_step_s,
                "gain": one.median_step_s / many.median_step_s,
            }
        )
    return rows


def main() -> None:
    """Print a table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", type=Path, default=[MODELS / "resnet.py", MODELS / "gpt.py"])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| task | batch of each | steps/s of all | steps/s of one with all samples | gain |")
    print("|---|---|---|---|---|")
    rows = []
    for task in options.tasks:
        for row in compare(task, options.nproc, options.batch_sizes, options.seconds, options.device):
            rows.append(row)
            print(
                f"| {row['task']} | {row['batch_size']} x {row['nproc']} | {row['steps_per_s']:.3g} | "
                f"{row['steps_per_s_of_one']:.3g} | {row['gain']:.2f} |",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
