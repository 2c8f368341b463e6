"""What runs in several compute modes: `bench`, and `profile` with `--precisions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.file import file_for, folder_for
from ..bench.run import BenchSettings, begun, chosen_models, default_compute_modes, default_memory_limit, run_bench
from ..bench.standard_models import standard_models
from ..core.compute_mode import ComputeMode, parse_compute_modes
from ..core.files import check_writable, make_folder
from ..core.progress import Listener, Progress, nobody
from ..core.units import parse_duration
from ..devices.backend import BACKENDS
from ..engines.opening import counts_memory, device_of, open_spec, spec_for
from ..errors import TaskError
from ..measuring.compute_modes import ModeProfile, profile_compute_mode
from ..measuring.throughput import Objective
from ..reports.bench_report import BenchReport
from ..tasks.doors.table import as_task
from ..tuning.stages import PROFILE_S, check_max_batch_size, max_batch_of, profile_of

if TYPE_CHECKING:
    from ..tasks.task import Task


def profile_compute_modes(
    task: Task | str | Path,
    compute_modes: Sequence[ComputeMode],
    *,
    budget: str | float = PROFILE_S,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    max_batch_size: int | None = None,
    objective: Objective = "throughput",
    on_progress: Listener = nobody,
) -> tuple[ModeProfile, ...]:
    """Profile a task in several compute modes: the largest micro-batch, the throughput, and the change of the loss.

    The profiles come in the order of `compute_modes`. A mode that this device cannot compute, or in which nothing
    fits, has a `message` that says so.

    Args:
        task: a task file's path or a `Task`.
        compute_modes: see `ComputeMode.parse`. They replace the task's own precision, memory format and compilation.
        budget: time for measuring speed in each compute mode.
        device, memory_limit, headroom, max_batch_size: as in `find_max_batch`.
        objective: as in `profile`.
        on_progress: called with each probe and each measurement.

    Raises:
        TaskError: the task cannot run in any mode, for the same reason in each.
    """
    budget_s = parse_duration(budget)
    spec = spec_for(as_task(task, whole=True), device, memory_limit, headroom)
    counts = memory_limit is not None and counts_memory(device_of(spec), memory_limit)
    found = []
    for compute_mode in compute_modes:
        on_progress(Progress(stage="start", kind="note", text=f"in {compute_mode.name}"))
        found.append(
            profile_compute_mode(
                compute_mode,
                partial(open_spec, replace(spec, compute_mode=compute_mode)),
                partial(open_spec, replace(spec, compute_mode=compute_mode, memory_limit_bytes=None))
                if counts
                else None,
                find=partial(max_batch_of, max_batch_size=max_batch_size, on_progress=on_progress),
                time_it=lambda runner, plan, largest: profile_of(
                    runner, plan, int(largest), budget_s=budget_s, objective=objective, on_progress=on_progress
                ),
            )
        )
    error = found[0].error if found else None
    if isinstance(error, TaskError) and all(str(profiled.error) == str(error) for profiled in found):
        raise error
    return tuple(found)


def bench(
    models: Sequence[str] = (),
    *,
    precisions: Sequence[str] = (),
    quick: bool = False,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    max_batch_size: int | None = None,
    objective: Objective = "throughput",
    output: str | Path | None = None,
    command: str = "autobatch.bench.verbs.bench",
    on_progress: Listener = nobody,
) -> tuple[BenchReport, Path]:
    """Measure well-known models on a device. Returns the report and the path of its file.

    The file is written after each model and precision. If it already exists for the same device, software and settings,
    its results are kept and only the rest is measured. A failed model is measured again, and so is a model whose task
    file, or a module imported from the same folder, has changed. A model that cannot run is in the report with the
    reason.

    Args:
        models: names of standard models, or paths of task files. Default: all standard models.
        precisions: compute modes, as for `ComputeMode.parse`. Default: fp32 and bf16, and tf32 on an NVIDIA card.
        quick: spend less time on each model. On a CPU, also use only fp32 and less memory.
        device, headroom, max_batch_size: as in `find_max_batch`.
        memory_limit: as in `find_max_batch`. Default on a CPU: 1 GiB, or 64 MiB with `quick`.
        objective: as in `profile`.
        output: the report's file. Default: `benchmarks/results/<device>/<date>.json`, or the newest file in that folder
            that the same call left unfinished.
        command: the command to note in the report.
        on_progress: called with every beginning and every result.

    Raises:
        SettingError: there is no such model or precision.
        TaskError: a path is not a Python file.
        ReportError: the file cannot be written, or holds another report.
    """
    check_max_batch_size(max_batch_size)  # refuse it now: later it would fail every cell
    standard = standard_models()
    chosen = chosen_models(models, standard)
    # One of our own tasks opens the device: a task of the user's may be broken, which its cells report.
    spec = spec_for(as_task(next(iter(standard.values()))), device, memory_limit, headroom)
    about = device_of(spec)
    if spec.memory_limit_bytes is None:
        spec = replace(spec, memory_limit_bytes=default_memory_limit(about.kind, quick))
    settings = BenchSettings(
        models=chosen,
        compute_modes=parse_compute_modes(precisions or default_compute_modes(about.kind, quick)),
        quick=quick,
        objective=objective,
        size="small" if BACKENDS[about.kind].is_processor else "full",
        max_batch_size=max_batch_size,
        command=command,
    )
    report = begun(spec, about, settings)
    if output is None:
        folder = folder_for(about, spec.threads, Path("benchmarks/results"))
        make_folder(folder)
        path = file_for(report, folder)
    else:
        path = Path(output)
    check_writable(path)
    return run_bench(spec, report, path, settings, listen=on_progress), path
