"""`bench`: what a device does with well-known models, cell by cell, in a report that can be published.

A cell is one model in one compute mode. The report is written after each cell, so that a stopped run continues at the
next.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from .._version import __version__
from ..core.compute_mode import ComputeMode
from ..core.facts import DeviceInfo, DeviceKind
from ..core.measurement import Workload
from ..core.plan import Plan
from ..core.progress import Kind, Listener, Progress
from ..core.runner import Runner
from ..core.units import format_duration, format_size
from ..core.words import did_you_mean
from ..devices.backend import BACKENDS
from ..engines.opening import counts_memory, open_spec
from ..engines.served import RunnerSpec
from ..errors import AutobatchError, SettingError, first_line
from ..measuring.compute_modes import FirstLosses, ModeProfile, first_losses, losses_to_json, profile_compute_mode
from ..measuring.throughput import Objective
from ..render.curves import recommended_point
from ..render.evidence import or_more
from ..render.numbers import speed_text
from ..reports.bench_report import BenchReport, Cell, Size
from ..tasks.task_file import existing_file
from ..tasks.task_sources import source_digest
from ..tuning.stages import max_batch_of, profile_of
from .file import with_earlier

# Which of their two sizes the models have; see benchmarks/models/standard.
_SIZE_VARIABLE = "AUTOBATCH_BENCH_SIZE"
# The memory of a processor's batches if the user sets no limit: all of a machine's memory would take hundreds of
# thousands of samples, and steps of minutes. Assumed.
_CPU_MEMORY_BYTES, _CPU_MEMORY_QUICK_BYTES = 1 << 30, 64 << 20
_PROFILE_S, _PROFILE_QUICK_S = 30.0, 3.0  # a cell's timing. Assumed: 2 % intervals for most sizes; a look at each
_MATMUL_S = 1.0  # assumed: fifty products of 20 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """The settings of `bench`, in base units; see `verbs.bench`."""

    models: Mapping[str, Path]
    compute_modes: tuple[ComputeMode, ...]
    quick: bool
    objective: Objective
    size: Size
    max_batch_size: int | None
    command: str


def begun(spec: RunnerSpec, device: DeviceInfo, settings: BenchSettings) -> BenchReport:
    """The report before its first cell."""
    cells = tuple((model, compute_mode.name) for model in settings.models for compute_mode in settings.compute_modes)
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=settings.command,
        version=__version__,
        device=device,
        size=settings.size,
        quick=settings.quick,
        objective=settings.objective,
        cells=(),
        planned=len(cells),
        warnings=_warnings(spec, device),
        requested=cells,
        settings={
            "memory_limit_bytes": spec.memory_limit_bytes,
            "headroom": spec.headroom,
            "max_batch_size": settings.max_batch_size,
            "threads": spec.threads,
        },
    )


def run_bench(
    spec: RunnerSpec, report: BenchReport, path: Path, settings: BenchSettings, *, listen: Listener
) -> BenchReport:
    """The report, whose file is written after each cell; see `verbs.bench` for the errors.

    Args:
        spec: that of every runner, except for the task and the compute mode.
        report: from `begun`.
        path: its file.
        settings: those of `begun`.
        listen: called when something begins and when it ends.
    """
    sources = {model: source_digest(file) for model, file in settings.models.items()}
    report, other = with_earlier(report, path, sources)
    if report.cells:
        listen(Progress(stage="bench", kind="note", text=f"{len(report.cells)} of {report.planned} are in {path.name}"))
    for model in other:
        text = f"{path.name} has {model} from a task file that has changed since: it is measured again"
        listen(Progress(stage="bench", kind="note", text=text))
    bench = _Bench(spec, report.device, settings)
    known = {
        (cell.model, cell.compute_mode) for cell in report.cells
    }  # a later compute mode may be compared with one that is not requested
    took: list[float] = []
    for model, compute_mode in itertools.product(settings.models, settings.compute_modes):
        if (model, compute_mode.name) in known:
            continue
        number = len(report.cells) + 1
        left = report.planned - len(report.cells)
        about = f", about {format_duration(left * sum(took) / len(took))} left" if took else ""
        what = f"{number} of {report.planned}: {model} in {compute_mode.name}{about}"
        predicted_s = sum(took) / len(took) if took else None
        listen(Progress(stage="bench", kind="began", key=f"cell {number}", text=what, predicted_s=predicted_s))
        cell = bench.cell(model, compute_mode, listen)
        took.append(cell.seconds)
        report = replace(report, cells=(*report.cells, cell))
        report.save(path)
        kind: Kind = "found" if cell.outcome == "ok" else "failed"
        listen(Progress(stage="bench", kind=kind, key=f"cell {number}", text=_cell_summary(cell)))
    return report


def _cell_summary(cell: Cell) -> str:
    """One line about a cell."""
    what = f"{cell.model} in {cell.compute_mode}"
    if cell.max_batch is None or cell.throughput is None:
        return f"{what}: failed: {(cell.message or 'no reason is known').splitlines()[0]}"
    best = recommended_point(cell.throughput)
    speed = "" if best is None else f", {speed_text(best['samples_per_s'])} samples/s at batch {best['batch_size']:,}"
    largest = f"{cell.max_batch['batch_size']:,}{or_more(cell.max_batch)}"
    return f"{what}: up to batch {largest}{speed} ({format_duration(cell.seconds)})"


def _warnings(spec: RunnerSpec, device: DeviceInfo) -> tuple[str, ...]:
    found = []
    if spec.memory_limit_bytes is not None:
        limit = format_size(spec.memory_limit_bytes)
        found.append(f"the largest batches are those of a device with {limit}: more was not to be used")
    if BACKENDS[device.kind].is_processor:
        found.append(f"steps were timed on {spec.threads} thread{'s' if spec.threads > 1 else ''}")
    return tuple(found)


class _Bench:
    """What the cells share."""

    def __init__(
        self,
        spec: RunnerSpec,
        device: DeviceInfo,
        settings: BenchSettings,
    ) -> None:
        self.spec, self.device, self.settings = spec, device, settings
        self._reference: dict[str, FirstLosses] = {}  # losses in fp32, by model

    def cell(self, model: str, compute_mode: ComputeMode, listen: Listener) -> Cell:
        """One model in one compute mode, measured now; `listen` gets each probe and the first timing of each size."""
        began = time.monotonic()
        source = source_digest(self.settings.models[model])
        within_cell = _within(f"{model} in {compute_mode.name}", listen)
        spec = replace(self.spec, path=self.settings.models[model], compute_mode=compute_mode)
        counts = counts_memory(self.device, spec.memory_limit_bytes)
        also = _Extra()
        profile = profile_compute_mode(
            compute_mode,
            lambda: self._open(spec),
            (lambda: self._open(replace(spec, memory_limit_bytes=None))) if counts else None,
            find=partial(
                max_batch_of, max_batch_size=self.settings.max_batch_size, prove=True, on_progress=within_cell
            ),
            time_it=lambda runner, plan, largest: profile_of(
                runner,
                plan,
                int(largest),
                budget_s=self._budget_s,
                objective=self.settings.objective,
                on_progress=within_cell,
            ),
            also=also,
        )
        reference = None
        if compute_mode == ComputeMode():
            self._reference[model] = profile.losses or FirstLosses(message=f"it failed: {profile.message}")
        elif profile.message is None:
            reference = self._losses_in_fp32(model, profile)
        losses = losses_to_json(profile.losses, reference, ComputeMode())
        return replace(_cell(model, profile, also), **losses, source=source, seconds=time.monotonic() - began)

    @property
    def _budget_s(self) -> float:
        return _PROFILE_QUICK_S if self.settings.quick else _PROFILE_S

    def _open(self, spec: RunnerSpec) -> AbstractContextManager[tuple[Runner, Plan]]:
        return open_spec(spec, accumulation_steps=1, environment={_SIZE_VARIABLE: self.settings.size})

    def _losses_in_fp32(self, model: str, profile: ModeProfile) -> FirstLosses:
        """The losses from this run's cell in fp32, or computed now without such a cell."""
        if model not in self._reference:
            spec = replace(
                self.spec, path=self.settings.models[model], compute_mode=ComputeMode(), memory_limit_bytes=None
            )
            try:
                with self._open(spec) as (runner, _):
                    self._reference[model] = first_losses(runner, int(profile.max_batch or 1))
            except AutobatchError as error:  # a model that does not run in fp32 cannot be compared
                self._reference[model] = FirstLosses(message=f"it failed: {first_line(error)}")
        return self._reference[model]


class _Extra:
    """Measurements of the runner beside its profile."""

    def __init__(self) -> None:
        self.workload: Workload | None = None
        self.matmul_flops_per_s: float | None = None

    def __call__(self, runner: Runner) -> None:
        self.workload = runner.workload()
        self.matmul_flops_per_s = runner.matmul_flops_per_s(budget_s=_MATMUL_S)


def _within(what: str, listen: Listener) -> Listener:
    """Passes on the events of a cell, except for repeated visits to a size, which are many."""
    seen: set[str] = set()

    def pass_on(progress: Progress) -> None:
        if progress.stage == "profile" and progress.key is not None:
            if progress.key in seen:
                return
            seen.add(progress.key)
        # With its own key, as the cell goes on.
        key = f"{what}: {progress.key or progress.stage}"
        listen(replace(progress, stage="bench", key=key, text=f"{what}: {progress.text}"))

    return pass_on


def _cell(model: str, profile: ModeProfile, also: _Extra) -> Cell:
    if profile.message is not None or profile.curve is None:
        return Cell(model=model, compute_mode=profile.compute_mode.name, outcome="failed", message=profile.message)
    flops = also.workload.flops_per_sample if also.workload else None
    per_s = profile.curve.samples_per_s(profile.curve.recommended)
    return Cell(
        model=model,
        compute_mode=profile.compute_mode.name,
        outcome="ok",
        parameters=also.workload.parameters if also.workload else None,
        max_batch=profile.max_batch.to_json() if profile.max_batch is not None else None,
        throughput=profile.curve.to_json(),
        flops_per_sample=flops,
        flops_per_s=None if flops is None else flops * per_s,
        matmul_flops_per_s=also.matmul_flops_per_s,
    )


def default_memory_limit(kind: DeviceKind, quick: bool) -> int | None:
    """The memory that models may use if the user sets no limit; None for all of the device's."""
    if not BACKENDS[kind].is_processor:
        return None
    return _CPU_MEMORY_QUICK_BYTES if quick else _CPU_MEMORY_BYTES


def default_compute_modes(kind: DeviceKind, quick: bool) -> tuple[str, ...]:
    """The compute modes to measure if the user names none; each is one that the kind of device has."""
    if BACKENDS[kind].is_processor and quick:
        return ("fp32",)
    return BACKENDS[kind].benched


def chosen_models(names: Sequence[str], standard: Mapping[str, Path]) -> dict[str, Path]:
    """Task files by name: the requested standard models, or all of them, and the user's files.

    Raises:
        SettingError: there is no such model, or two have the same name.
        TaskError: a file is no Python file.
    """
    if not names:
        return dict(standard)
    found: dict[str, Path] = {}
    for name in names:
        if name in standard:
            title, path = name, standard[name]
        elif Path(name).is_file():
            title, path = Path(name).stem, existing_file(Path(name))
        else:
            raise SettingError(
                f"{name!r} is no model: it is one of {', '.join(standard)}, or the path of a task file"
                f"{did_you_mean(name, standard)}"
            )
        if title in found:
            raise SettingError(f"two models are called {title}: a report tells them apart by their names")
        found[title] = path
    return found
