"""`bench`: what a device does with models that everybody knows, cell by cell, into a report that can be published.

A cell is one model computed in one way. The report is written after each, so that a run that was ended goes on where it
stood.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import __version__
from .arm import Arm
from .engines.served import RunnerSpec
from .errors import AutobatchError, ReportError, SettingError
from .measuring.arms import ArmProfile, first_losses, loss_difference, profile_arm
from .measuring.memory import MaxBatch
from .measuring.throughput import Objective, ThroughputCurve
from .opening import open_spec
from .plan import DeviceInfo, LrSweep, Plan, Runner, Workload
from .progress import Listener, Progress
from .reports.bench_report import BenchReport, Cell, Size
from .units import format_duration, format_size

# Which of their two sizes the models take; see benchmarks/models/standard.
_SIZE_VARIABLE = "AUTOBATCH_BENCH_SIZE"
# What a processor's batches may use where no limit was asked for: all of a machine's memory would take samples by the
# hundred thousand and steps of minutes. Assumed.
_CPU_MEMORY_BYTES, _CPU_MEMORY_QUICK_BYTES = 1 << 30, 64 << 20
_PROFILE_S, _PROFILE_QUICK_S = 30.0, 3.0  # a cell's timing. Assumed: 2 % intervals for most sizes; a look at each
_MATMUL_S = 1.0  # assumed: fifty products of 20 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What was asked of `bench`, in base units; see `api.bench`."""

    models: Mapping[str, Path]
    arms: tuple[Arm, ...]
    quick: bool
    objective: Objective
    size: Size
    command: str
    path: Path


def file_for(device: DeviceInfo, cores: int, folder: Path) -> Path:
    """Where the report of a device goes that was made today: `<folder>/<device>/<date>.json`."""
    name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") or device.kind
    if device.kind == "cpu":
        name += f"-{cores}-core" + ("s" if cores > 1 else "")
    return folder / name / f"{datetime.now(UTC):%Y-%m-%d}.json"


def run_bench(
    spec: RunnerSpec,
    device: DeviceInfo,
    settings: BenchSettings,
    *,
    find: Callable[[Runner, Plan], MaxBatch],
    time_it: Callable[[Runner, Plan, MaxBatch, float], ThroughputCurve],
    listen: Listener,
) -> BenchReport:
    """The report, its file written after each cell; see `api.bench` for what it raises."""
    planned = [(model, arm) for model in settings.models for arm in settings.arms]
    report = BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=settings.command,
        version=__version__,
        device=device,
        size=settings.size,
        quick=settings.quick,
        objective=settings.objective,
        cells=(),
        planned=len(planned),
        warnings=_warnings(spec, device),
    )
    report = _resumed(report, settings.path, planned)
    if report.cells:
        listen(Progress(stage="bench", text=f"{len(report.cells)} of {len(planned)} are in {settings.path.name}"))
    bench = _Bench(spec, device, settings, find=find, time_it=time_it, listen=listen)
    for cell in report.cells:  # done before: a later arm may be compared with it, but its losses are not in the file
        bench.known[cell.model, cell.arm] = cell
    took: list[float] = []
    for model, arm in planned:
        if (model, arm.name) in bench.known:
            continue
        left = len(planned) - len(report.cells)
        about = f", about {format_duration(left * sum(took) / len(took))} left" if took else ""
        what = f"{len(report.cells) + 1} of {len(planned)}: {model} in {arm.name}{about}"
        listen(Progress(stage="bench", text=what, predicted_s=sum(took) / len(took) if took else None))
        cell = bench.cell(model, arm)
        took.append(cell.seconds)
        report = replace(report, cells=(*report.cells, cell))
        report.save(settings.path)
        listen(Progress(stage="bench", text=_told(cell)))
    return report


def _told(cell: Cell) -> str:
    """One line about a cell."""
    what = f"{cell.model} in {cell.arm}"
    if cell.max_batch is None or cell.throughput is None:
        return f"{what}: failed: {(cell.message or '').splitlines()[0]}"
    return (
        f"{what}: up to batch {cell.max_batch['batch_size']:,}, {cell.throughput['samples_per_s']:,.0f} samples/s at "
        f"batch {cell.throughput['fastest_batch_size']:,} ({format_duration(cell.seconds)})"
    )


def _warnings(spec: RunnerSpec, device: DeviceInfo) -> tuple[str, ...]:
    found = []
    if spec.memory_limit_bytes is not None:
        limit = format_size(spec.memory_limit_bytes)
        found.append(f"the largest batches are those of a device with {limit}: more was not to be used")
    if device.kind == "cpu":
        found.append(f"steps were timed on {spec.threads} thread{'s' if spec.threads > 1 else ''}")
    return tuple(found)


def _resumed(report: BenchReport, path: Path, planned: Sequence[tuple[str, Arm]]) -> BenchReport:
    """The report with the cells that an earlier run of the same left in its file; those that failed are run again.

    Raises:
        ReportError: what is in the file is another report.
    """
    if not path.exists():
        return report
    earlier = BenchReport.load(path)
    same = {
        "autobatch": (earlier.version, report.version),
        "the device": (_identity(earlier.device), _identity(report.device)),
        "the size of the models": (earlier.size, report.size),
        "--quick": (earlier.quick, report.quick),
        "--objective": (earlier.objective, report.objective),
        "the memory limit or the threads": (earlier.warnings, report.warnings),
    }
    changed = [what for what, (before, now) in same.items() if before != now]
    if changed:
        raise ReportError(
            f"{path} holds a report to go on with, but {' and '.join(changed)} changed since: name another --output, "
            "or delete it"
        )
    wanted = {(model, arm.name) for model, arm in planned}
    kept = tuple(cell for cell in earlier.cells if cell.outcome == "ok")
    beside = sum((cell.model, cell.arm) not in wanted for cell in kept)
    return replace(report, created=earlier.created, cells=kept, planned=report.planned + beside)


def _identity(device: DeviceInfo) -> tuple[object, ...]:
    """What must be the same for two cells to stand in one report."""
    return device.name, device.uuid, device.threads, device.driver, device.runtime, device.torch


class _Bench:
    """What the cells share."""

    def __init__(
        self,
        spec: RunnerSpec,
        device: DeviceInfo,
        settings: BenchSettings,
        *,
        find: Callable[[Runner, Plan], MaxBatch],
        time_it: Callable[[Runner, Plan, MaxBatch, float], ThroughputCurve],
        listen: Listener,
    ) -> None:
        self.spec, self.device, self.settings, self.find, self.time_it = spec, device, settings, find, time_it
        self.listen = listen
        self.known: dict[tuple[str, str], Cell] = {}
        self._reference: dict[str, LrSweep | None] = {}  # losses in fp32, by model

    def cell(self, model: str, arm: Arm) -> Cell:
        """One model in one arm, measured now."""
        began = time.monotonic()
        spec = replace(self.spec, path=self.settings.models[model], arm=arm)
        # A limit on a processor is kept by counting memory to the page, which slows every step.
        counts = self.device.kind == "cpu" and spec.memory_limit_bytes is not None
        also = _Extra()
        found = profile_arm(
            arm,
            lambda: self._open(spec),
            (lambda: self._open(replace(spec, memory_limit_bytes=None))) if counts else None,
            find=self.find,
            time_it=lambda runner, plan, largest: self.time_it(runner, plan, largest, self._budget_s),
            also=also,
        )
        if arm == Arm():
            self._reference[model] = found.losses
        difference = None
        if arm != Arm() and found.message is None:
            difference = loss_difference(found.losses, self._losses_in_fp32(model, found))
        return _cell(model, found, also, difference and difference.to_json(), time.monotonic() - began)

    @property
    def _budget_s(self) -> float:
        return _PROFILE_QUICK_S if self.settings.quick else _PROFILE_S

    def _open(self, spec: RunnerSpec) -> AbstractContextManager[tuple[Runner, Plan]]:
        return open_spec(spec, accumulation_steps=1, environment={_SIZE_VARIABLE: self.settings.size})

    def _losses_in_fp32(self, model: str, found: ArmProfile) -> LrSweep | None:
        """From the cell in fp32 of this run, or computed now where that was an earlier one's, or is not wanted."""
        if model not in self._reference:
            spec = replace(self.spec, path=self.settings.models[model], arm=Arm(), memory_limit_bytes=None)
            try:
                with self._open(spec) as (runner, _):
                    self._reference[model] = first_losses(runner, int(found.max_batch or 1))
            except AutobatchError:  # a model that does not run in fp32 has nothing to be compared with
                self._reference[model] = None
        return self._reference[model]


class _Extra:
    """What is asked of the runner beside its profile."""

    def __init__(self) -> None:
        self.workload: Workload | None = None
        self.matmul_flops_per_s: float | None = None

    def __call__(self, runner: Runner) -> None:
        self.workload = runner.workload()
        self.matmul_flops_per_s = runner.matmul_flops_per_s(budget_s=_MATMUL_S)


def _cell(model: str, found: ArmProfile, also: _Extra, difference: Any, seconds: float) -> Cell:
    if found.message is not None or found.curve is None:
        return Cell(model=model, arm=found.arm.name, outcome="failed", message=found.message, seconds=seconds)
    flops = also.workload.flops_per_sample if also.workload else None
    per_s = found.curve.samples_per_s(found.curve.recommended)
    return Cell(
        model=model,
        arm=found.arm.name,
        outcome="ok",
        parameters=also.workload.parameters if also.workload else None,
        max_batch=found.max_batch.to_json() if found.max_batch is not None else None,
        throughput=found.curve.to_json(),
        flops_per_sample=flops,
        flops_per_s=None if flops is None else flops * per_s,
        matmul_flops_per_s=also.matmul_flops_per_s,
        loss_difference=difference,
        seconds=seconds,
    )


def default_memory_limit(kind: str, quick: bool) -> int | None:
    """The memory that models may use where no limit was asked for; None for all of the device's."""
    if kind != "cpu":
        return None
    return _CPU_MEMORY_QUICK_BYTES if quick else _CPU_MEMORY_BYTES


def default_arms(kind: str, quick: bool) -> tuple[str, ...]:
    """Ways of computing that are measured where none was named; each that the kind of device has."""
    if kind == "cpu" and quick:
        return ("fp32",)
    return ("fp32", "tf32", "bf16") if kind == "cuda" else ("fp32", "bf16")


def chosen_models(asked: Sequence[str], standard: Mapping[str, Path]) -> dict[str, Path]:
    """Task files by name: the standard ones that were named, or all, and files of the user's.

    Raises:
        SettingError: there is no such model, or two are called the same.
    """
    if not asked:
        return dict(standard)
    found: dict[str, Path] = {}
    for name in asked:
        path = standard.get(name, Path(name))
        if name not in standard and not path.is_file():
            raise SettingError(f"{name!r} is no model: it is one of {', '.join(standard)}, or the path of a task file")
        title = name if name in standard else path.stem
        if title in found:
            raise SettingError(f"two models are called {title}: a report tells them apart by their names")
        found[title] = path
    return found
