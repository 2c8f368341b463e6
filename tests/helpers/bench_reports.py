"""Bench reports to draw, store and compare: one as of a card with energy, one as of a processor without.

The largest batches are searched for on a simulated device; times follow a(b) = fixed + linear * b with a noise that is
a function of the cell, so that the same report comes out each time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from autobatch.core.compute_mode import ComputeMode
from autobatch.core.facts import DeviceInfo
from autobatch.core.plan import Plan
from autobatch.measuring.memory import find_max_batch_size
from autobatch.reports.bench_report import BenchReport, Cell
from autobatch.simulated.sim import SimRunner, draw

MIB = 1 << 20

# (parameters, floating-point operations a sample, fixed MiB, MiB a sample, fixed seconds a step, seconds a sample)
MODELS: dict[str, tuple[int, float, int, float, float, float]] = {
    "resnet50": (25_557_032, 24.5e9, 700, 92.0, 0.021, 9.1e-4),
    "vit": (86_567_656, 105.0e9, 1900, 120.0, 0.018, 2.3e-3),
    "gpt2": (124_439_808, 8.6e11, 2600, 1500.0, 0.030, 2.1e-2),
    "unet": (31_037_698, 330.0e9, 900, 610.0, 0.016, 7.9e-3),
    "lstm": (9_300_000, 2.2e9, 260, 9.5, 0.012, 6.0e-5),
    "perceptron": (17_000_000, 1.0e8, 330, 0.2, 0.0011, 2.2e-6),
}
# How many times as fast, and what share of the memory a sample takes.
ARMS = {"fp32": (1.0, 1.0), "bf16": (2.6, 0.58), "bf16+channels_last": (3.1, 0.58), "tf32": (1.7, 1.0)}

H200 = DeviceInfo(
    name="NVIDIA H200",
    kind="cuda",
    index=0,
    memory_bytes=150_120_000_000,
    free_bytes=149_400_000_000,
    driver="580.95.05",
    runtime="12.8",
    torch="2.13.0",
    python="3.12.3",
    uuid="GPU-00000000-1111-2222-3333-444444444444",
    power_limit_w=700.0,
)
EPYC = DeviceInfo(
    name="AMD EPYC 7B13",
    kind="cpu",
    memory_bytes=8 << 30,
    threads=2,
    torch="2.13.0",
    python="3.12.3",
    notes=("energy: /sys/class/powercap has no counter that may be read",),
)


def throughput(
    name: str,
    compute_mode: str,
    sizes: Sequence[int],
    *,
    fixed_s: float,
    sample_s: float,
    watts: float | None = None,
    noise: float = 0.004,
    interval: float = 0.012,
) -> dict[str, Any]:
    """A profile in the form of `ThroughputCurve.to_json`: steps of `fixed_s + sample_s * batch` seconds."""
    measurements: list[dict[str, Any]] = []
    for size in sizes:
        chance = draw(name, compute_mode, size)
        step_s = (fixed_s + sample_s * size) * (1 + chance.gauss(0, noise))
        half = interval * chance.uniform(0.4, 1.0) * step_s
        drawn = None if watts is None else watts * (0.35 + 0.65 * sample_s * size / (fixed_s + sample_s * size))
        measurements.append(
            {
                "batch_size": size,
                "outcome": "ok",
                "step_s": step_s,
                "fitted_step_s": fixed_s + sample_s * size,
                "spread_s": 3 * half,
                "repeats": 40,
                "samples_per_s": size / step_s,
                "compute_samples_per_s": size / (0.98 * step_s),
                "loader_samples_per_s": None,
                "peak_bytes": None,
                "joules": None,
                "seconds": 40 * step_s,
                "message": None,
                "interval_s": [step_s - half, step_s + 1.2 * half],
                "phases_s": {
                    "copy": 0.02 * step_s,
                    "forward": 0.31 * step_s,
                    "backward": 0.58 * step_s,
                    "optimizer": 0.09 * step_s,
                },
                "joules_per_sample": None if drawn is None else drawn * step_s / size,
                "watts": drawn,
                "remarks": [],
            }
        )
    speeds = {point["batch_size"]: point["samples_per_s"] for point in measurements}
    fastest = max(speeds, key=lambda size: speeds[size])
    knee = next(size for size in speeds if speeds[size] >= 0.8 * speeds[fastest])
    recommended = next(size for size in speeds if speeds[size] >= 0.98 * speeds[fastest])
    return {
        "knee_batch_size": knee,
        "knee": f"speed saturates at batch {knee}: the smallest with 80 % of the highest samples/s",
        "fastest_batch_size": fastest,
        "samples_per_s": speeds[fastest],
        "loader_bound": False,
        "wait_share": 0.02,
        "starvation": None,
        "measurements": measurements,
        "skipped": [],
        "objective": "throughput",
        "recommended_batch_size": recommended,
        "recommended": f"batch {recommended} is the smallest within 2 % of the highest samples/s",
        "fit": {"largest_residual": 0.021},
        "remedy": None,
    }


def sizes_up_to(largest: int, knee: int) -> list[int]:
    """Where a profile measures: powers of two, the neighbourhood of the knee, the largest."""
    powers = [1 << power for power in range(largest.bit_length())]
    near = [round(knee * factor / 8) * 8 for factor in (0.75, 1.5)]
    return sorted({size for size in (*powers, *near, largest) if 1 <= size <= largest})[-11:]


def cell(name: str, compute_mode: str, *, memory_bytes: int, slower: float = 1.0, watts: float | None = None) -> Cell:
    """One model in one compute mode, on a device of that memory, `slower` times as slow as the formula."""
    parameters, flops, fixed_mib, sample_mib, fixed_s, sample_s = MODELS[name]
    faster, lighter = ARMS[compute_mode]
    runner = SimRunner(
        peak_bytes=lambda batch: int((fixed_mib + lighter * sample_mib * batch) * MIB), capacity_bytes=memory_bytes
    )
    plan = Plan(batch_size=1, precision=ComputeMode.parse(compute_mode).precision)
    largest = find_max_batch_size(runner, plan, ceiling=131_072, ceiling_is="ceiling", prove=True)
    sample_s *= slower / faster
    fixed_s *= slower
    sizes = sizes_up_to(int(largest), round(4 * fixed_s / sample_s))
    profiled = throughput(name, compute_mode, sizes, fixed_s=fixed_s, sample_s=sample_s, watts=watts)
    speed = {point["batch_size"]: point["samples_per_s"] for point in profiled["measurements"]}
    flops_per_s = flops * speed[profiled["recommended_batch_size"]]
    return Cell(
        model=name,
        compute_mode=compute_mode,
        outcome="ok",
        parameters=parameters,
        max_batch=largest.to_json(),
        throughput=profiled,
        flops_per_sample=flops,
        flops_per_s=flops_per_s,
        matmul_flops_per_s=5.2e13 * faster * 1.8 / slower,
        loss_difference=None if compute_mode == "fp32" else {"steps": 20, "first": 3.1e-4, "largest": 2.4e-3},
        seconds=48.0,
    )


def failed(name: str, compute_mode: str, message: str) -> Cell:
    """One that did not come to an end."""
    return Cell(
        model=name,
        compute_mode=compute_mode,
        outcome="failed",
        message=message,
        parameters=MODELS[name][0],
        seconds=3.0,
    )


def gpu_report(compute_modes: Sequence[str] = ("fp32", "bf16"), **changes: Any) -> BenchReport:
    """Six models on a card, with energy; the U-Net does not run in the last compute mode."""
    cells = [
        failed(name, compute_mode, "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")
        if (name, compute_mode) == ("unet", compute_modes[-1])
        else cell(name, compute_mode, memory_bytes=150_000_000_000, watts=640.0)
        for name in MODELS
        for compute_mode in compute_modes
    ]
    values: dict[str, Any] = {
        "created": "2026-11-22T09:30:00+00:00",
        "command": f"autobatch bench --precisions {' '.join(compute_modes)}",
        "version": "0.1.0",
        "device": H200,
        "size": "full",
        "quick": False,
        "objective": "throughput",
        "cells": tuple(cells),
        "planned": len(cells),
        "warnings": ("another process used 2.10 GiB of the card during gpt2 fp32",),
    }
    return BenchReport(**values | changes)


def cpu_report(**changes: Any) -> BenchReport:
    """Four models on a processor, quickly, without energy; one failed, and the run was interrupted."""
    cells = [
        cell(name, compute_mode, memory_bytes=8 << 30, slower=250.0)
        for name in ("resnet50", "lstm", "perceptron")
        for compute_mode in ("fp32", "bf16")
    ]
    cells.append(failed("gpt2", "fp32", "a batch of 1 must fit in 7.60 GiB"))
    values: dict[str, Any] = {
        "created": "2026-11-21T22:05:00+00:00",
        "command": "autobatch bench --quick",
        "version": "0.1.0",
        "device": EPYC,
        "size": "small",
        "quick": True,
        "objective": "throughput",
        "cells": tuple(cells),
        "planned": len(cells) + 1,
    }
    return BenchReport(**values | changes)


def with_measurement(report: BenchReport, cell_number: int, **changes: Any) -> BenchReport:
    """The report with `changes` to every measurement of one cell."""
    cells = list(report.cells)
    profiled = cells[cell_number].throughput
    assert profiled is not None
    points = [point | changes for point in profiled["measurements"]]
    cells[cell_number] = dataclasses.replace(cells[cell_number], throughput={**profiled, "measurements": points})
    return dataclasses.replace(report, cells=tuple(cells))
