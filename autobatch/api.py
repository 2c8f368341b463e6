"""The verbs: open a task on a device (opening.py), run one stage or all of them, return a frozen result."""

from __future__ import annotations

import secrets
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ._version import __version__
from .bench.file import file_for, folder_for
from .bench.run import (
    BenchSettings,
    begun,
    chosen_models,
    default_arms,
    default_memory_limit,
    run_bench,
)
from .bench.standard_models import standard_models
from .core.codec import device_to_json
from .core.compute_mode import Arm, parse_arms
from .core.files import check_writable, make_folder
from .core.plan import Mode, Plan, Precision
from .core.progress import Listener, Progress, nobody
from .core.runner import Prober, Runner
from .core.units import parse_duration, parse_size
from .devices.backend import BACKENDS
from .engines.opening import (
    counts_memory,
    device_of,
    open_spec,
    open_task,
    spec_for,
)
from .engines.processes.worker_log import kept_short
from .engines.ranks.agreement import Place, Ranks, in_process_group
from .errors import SettingError, TaskError
from .measuring.arms import ArmProfile, profile_arm
from .measuring.learning_rate import LrCurve
from .measuring.memory import MaxBatch
from .measuring.throughput import Objective, ThroughputCurve
from .reports.bench_report import BenchReport
from .reports.report import Report
from .runs.conditions import conditions_of_settings
from .runs.run_folder import RunFolder, RunState
from .runs.runs import latest_unfinished, reopened
from .runs.settings import Earlier, Engine, TuneSettings
from .searching.schedulers.table import SEARCHES
from .searching.storage.url import check_url, shown_url, shown_words
from .simulated.recording import Recorder
from .tasks.doors.table import as_task
from .tasks.task_sources import source_hashes
from .tuning.run import run_tune
from .tuning.stages import check_max_batch_size, lr_curve_of, max_batch_of, profile_of

if TYPE_CHECKING:
    from torch import nn

    from .tasks.task import Task

# A profile without a budget of its own gets this long. Assumed: 2 % intervals for a dozen sizes of millisecond steps.
_PROFILE_S = 30.0
_WHERE_NOT = "Pass sample=, one sample of your data without a batch dimension, where that is not so"
_SWEEP_STEPS = 100  # as in the measured comparison of the rules (learning_rate.py)


def find_max_batch(
    model: nn.Module | Task | str | Path,
    sample: Any = None,
    *,
    data: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    precision: Precision | None = None,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    mode: Mode = "training",
    multiple_of: int = 1,
    power_of_two: bool = False,
    max_batch_size: int | None = None,
    accumulation_steps: int | None = None,
    prove: bool = False,
    soak: int = 0,
    record: str | Path | None = None,
    isolate: bool | None = None,
    nproc: int = 1,
    on_progress: Listener = nobody,
) -> MaxBatch:
    """The largest batch size that ran whole optimizer steps within the memory limit: an `int` with its evidence.

    A model passed in comes back exactly as it was: weights, buffers, gradients, modes, device and random generators.
    A task says for itself what it is trained on and how: what is for a live module alone is refused with one.

    Args:
        model: a live module, a `Task`, or the path of a task file.
        sample: for a live module, ONE sample without a batch dimension. Without it the input is inferred or assumed,
            and what was assumed is in the result and warned about.
        data: for a live module, a `Dataset` or `DataLoader` to take samples from, in place of `sample`.
        loss: for a live module, `loss(model, batch)`, the mean over the batch; the mean of its output by default.
        optimizer: for a live module, `optimizer(model, lr)` or an optimizer's class; AdamW by default.
        precision: for a live module, "fp32", or "bf16" or "fp16" under autocast; None for fp32, and for a task's own.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        memory_limit: behave as if the device had this much, "8GiB" or bytes; None for what is free.
        headroom: the share of the limit that the batch must leave free.
        mode: "training", or "inference" for a forward pass without gradients.
        multiple_of: answer with a multiple of this.
        power_of_two: answer with a power of two.
        max_batch_size: look no further than this; by default than the data, or 131072 where it has no length.
        accumulation_steps: batches whose gradients are summed before the optimizer steps; the answer is the size of
            one of them, beside gradients that are kept. By default a task's baseline says, and 1 for a live module.
        prove: also run the next size, three steps and an evaluation as for the answer, and see it fail; in a process of
            its own unless the model is borrowed in this one (see `isolate`).
        soak: also train this many optimizer steps on real batches before a size is the answer.
        record: file to keep all probes in, as JSON that `autobatch.simulated.recording.Recording.load` reads.
        isolate: run in worker processes: always for tasks; for live modules by default on a CPU, and elsewhere in this
            process.
        nproc: of a task, processes that train together with DistributedDataParallel, a GPU for each; the answer is the
            batch size of each of them.
        on_progress: called with each probe.

    Raises:
        DoesNotFit: not even one sample fits.
        TaskError: the model, or what it needs, cannot be run; also where the input can be neither inferred nor assumed.
        DeviceError: there is no such device.
        SettingError: an argument has a value that cannot be used, or is for a live module and this is a task.
    """
    if soak < 0:
        raise SettingError(f"soak is a number of steps, at least 0; got {soak}")
    if soak and mode == "inference":
        raise SettingError(f"soak takes training steps, and mode='inference' takes none; got soak={soak}: leave it out")
    of_model = partial(
        open_task,
        model,
        sample=sample,
        data=data,
        loss=loss,
        optimizer=optimizer,
        precision=precision,
        headroom=headroom,
        mode=mode,
        accumulation_steps=accumulation_steps,
        soak=soak,
        nproc=nproc,
        is_timed=False,
    )

    def open_here(
        *, place: Place | None = None, **here: Any
    ) -> AbstractContextManager[tuple[Runner, Plan, tuple[str, ...]]]:
        if record is not None and (place is None or place.rank == 0):  # told before a worker is started for it
            check_writable(Path(record))
        return of_model(place=place, **here)

    opened: Callable[..., AbstractContextManager[tuple[Prober, Plan, tuple[str, ...]]]] = open_here
    if in_process_group():
        from .engines.ranks.together import opened_on_all_ranks  # torch is there, or there would be no group

        settings = (
            f"{mode=}, {max_batch_size=}, {multiple_of=}, {power_of_two=}, {accumulation_steps=}, {prove=}, {soak=}"
        )
        opened = partial(opened_on_all_ranks, open_here, model, settings)
    with opened(device=device, memory_limit=memory_limit, isolate=isolate) as (prober, plan, assumed):
        if assumed and sample is None and data is None:  # the other defaults are documented, and in the result
            warnings.warn(f"find_max_batch assumed: {'; '.join(assumed)}. {_WHERE_NOT}", stacklevel=2)
        recorder = Recorder(prober)
        with _kept(recorder, prober, record):
            found = max_batch_of(
                recorder,
                plan,
                max_batch_size=max_batch_size,
                multiple_of=multiple_of,
                power_of_two=power_of_two,
                prove=prove,
                assumed=assumed,
                on_progress=on_progress,
            )
        return prober.settle(found) if isinstance(prober, Ranks) else found


@contextmanager
def _kept(recorder: Recorder, prober: Prober, record: str | Path | None) -> Iterator[None]:
    """Write the recording in the end, also where nothing fits or an error ends the search: then it is wanted most."""
    try:
        yield
    finally:
        if record is not None and not (isinstance(prober, Ranks) and prober.place.rank):
            about: dict[str, Any] = {"version": __version__, "date": datetime.now(UTC).isoformat(timespec="seconds")}
            about["command"] = shlex.join(shown_words(sys.argv))
            if isinstance(prober, Runner):
                about["device"] = device_to_json(prober.device())
            recording = recorder.recording(about)
            if recording is not None:
                recording.save(Path(record))


def profile(
    task: nn.Module | Task | str | Path,
    sample: Any = None,
    *,
    budget: str | float = _PROFILE_S,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    max_batch_size: int | None = None,
    objective: Objective = "throughput",
    nproc: int = 1,
    on_progress: Listener = nobody,
) -> ThroughputCurve:
    """Samples per second over batch sizes up to the largest that fits: the knee, the energy, where the time goes.

    Args:
        task: a task file's path, a `Task`, or a live module.
        sample: for a live module, as in `find_max_batch`. Its steps are timed on one batch that is on the device
            already: what loading costs is a task's to say.
        budget: time for the timing itself, "30s" or seconds; half as much again goes to a loader that does not keep up,
            to see what helps it.
        device, memory_limit, headroom, max_batch_size: as in `find_max_batch`.
        objective: what the recommended batch size is best in: "throughput", "energy" or "balanced".
        nproc: as in `find_max_batch`; batch sizes are those of each process, samples per second are of all.
        on_progress: called with each probe and each measurement.

    Raises:
        NoValidResult: the objective asks for energy, and this device tells of none.
    """
    budget_s = parse_duration(budget)
    opened = open_task(task, sample=sample, device=device, memory_limit=memory_limit, headroom=headroom, nproc=nproc)
    with opened as (runner, plan, assumed):
        if assumed and sample is None:
            warnings.warn(f"profile assumed: {'; '.join(assumed)}. {_WHERE_NOT}", stacklevel=2)
        largest = max_batch_of(runner, plan, max_batch_size=max_batch_size, on_progress=on_progress)
        time_it = partial(
            profile_of, max_batch=int(largest), budget_s=budget_s, objective=objective, on_progress=on_progress
        )
        if not counts_memory(runner.device(), memory_limit):
            return time_it(runner, plan)
    with open_task(task, sample=sample, device=device, headroom=headroom, nproc=nproc) as (runner, plan, _):
        return time_it(runner, plan)


def profile_arms(
    task: Task | str | Path,
    arms: Sequence[Arm],
    *,
    budget: str | float = _PROFILE_S,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    max_batch_size: int | None = None,
    objective: Objective = "throughput",
    on_progress: Listener = nobody,
) -> tuple[ArmProfile, ...]:
    """One profile for each way of computing, in their order: largest batch, throughput, and what it does to the loss.

    An arm that cannot be computed on this device, or in which nothing fits, says so in its `message`.

    Args:
        task: a task file's path or a `Task`.
        arms: see `Arm.parse`; the task's own precision, memory format and compilation do not count.
        budget: time for the timing of each arm.
        device, memory_limit, headroom, max_batch_size: as in `find_max_batch`.
        objective: as in `profile`.
        on_progress: called with each probe and each measurement.

    Raises:
        TaskError: the task cannot be run in any way: the same is wrong with it in every arm.
    """
    budget_s = parse_duration(budget)
    spec = spec_for(as_task(task, whole=True), device, memory_limit, headroom)
    counts = memory_limit is not None and counts_memory(device_of(spec), memory_limit)
    found = []
    for arm in arms:
        on_progress(Progress(stage="start", kind="note", text=f"in {arm.name}"))
        found.append(
            profile_arm(
                arm,
                partial(open_spec, replace(spec, arm=arm)),
                partial(open_spec, replace(spec, arm=arm, memory_limit_bytes=None)) if counts else None,
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
    command: str = "autobatch.api.bench",
    on_progress: Listener = nobody,
) -> tuple[BenchReport, Path]:
    """What a device does with models that everybody knows, and the file that the report is in.

    The file is written after each model and precision. Where it is there already and is of the same device, software
    and settings, what it holds is kept, and the rest is measured: what failed, and all of a model whose task file, or a
    module beside it that it imports, holds something else by now. A model that cannot be run is in the report with the
    reason.

    Args:
        models: names of standard models, or paths of task files; all standard ones by default.
        precisions: ways of computing, as `Arm.parse` takes them; by default fp32 and bf16, and on an NVIDIA card tf32.
        quick: less time for each, and on a processor fp32 alone and less memory.
        device, headroom, max_batch_size: as in `find_max_batch`.
        memory_limit: as in `find_max_batch`; on a processor 1 GiB by default, and 64 MiB where it is quick.
        objective: as in `profile`.
        output: the report's file; by default `benchmarks/results/<device>/<date>.json`, or the newest file beside it
            that the same call left unfinished.
        command: to be noted in the report.
        on_progress: called as things begin and are found.

    Raises:
        SettingError: there is no such model or precision.
        TaskError: a file that was named is no Python file.
        ReportError: the file cannot be written, or holds another report.
    """
    check_max_batch_size(max_batch_size)  # told now: later it would be each cell's failure
    standard = standard_models()
    chosen = chosen_models(models, standard)
    # A task of ours tells the device: one that was asked for may be broken, which is for its cells to say.
    spec = spec_for(as_task(next(iter(standard.values()))), device, memory_limit, headroom)
    about = device_of(spec)
    if spec.memory_limit_bytes is None:
        spec = replace(spec, memory_limit_bytes=default_memory_limit(about.kind, quick))
    settings = BenchSettings(
        models=chosen,
        arms=parse_arms(precisions or default_arms(about.kind, quick)),
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


def find_lr(
    task: Task | str | Path,
    *,
    batch_size: int | None = None,
    accumulation_steps: int | None = None,
    rule: str = "min/10",
    steps: int = _SWEEP_STEPS,
    seed: int = 0,
    device: str = "auto",
    memory_limit: str | int | None = None,
    on_progress: Listener = nobody,
) -> LrCurve:
    """The learning-rate range test of a task, as data, with what the named rule reads from it.

    Args:
        task: a task file's path or a `Task`; the model is one of its own.
        batch_size: of the steps; by default the baseline's, accumulation and all.
        accumulation_steps: batches of that size in each step; by default the baseline's, or 1 beside a `batch_size`.
        rule: "min/10", "steepest" or "valley"; see `learning_rate.RULES`.
        steps: optimizer steps, one at each rate.
        seed: of the initialisation and the data order.
        device, memory_limit: as in `find_max_batch`.
        on_progress: called when it begins and ends.

    Raises:
        SettingError: there is no such step.
    """
    for name, value in (("batch_size", batch_size), ("accumulation_steps", accumulation_steps)):
        if value is not None and value < 1:
            raise SettingError(f"{name} is at least 1; got {value}")
    with open_task(task, device=device, memory_limit=memory_limit) as (runner, _, _):
        facts = runner.facts()
        plan = facts.baseline.plan
        if batch_size is not None:
            plan = Plan(batch_size=batch_size, precision=facts.precision)
        if accumulation_steps is not None:
            plan = replace(plan, accumulation_steps=accumulation_steps)
        curve = lr_curve_of(runner, plan, steps=steps, seed=seed, rule=rule, on_progress=on_progress)
        return replace(curve, warnings=facts.warnings)


def tune(
    task: Task | str | Path,
    *,
    budget: str | float | None = None,
    train_time: str | float | None = None,
    device: str | None = None,
    memory_limit: str | int | None = None,
    headroom: float | None = None,
    seed: int | None = None,
    search: str | None = None,
    warm_start: Sequence[Report | str | Path] = (),
    max_trials: int | None = None,
    keep_checkpoints: int | None = None,
    run_dir: str | Path | None = None,
    resume: bool | str | Path = False,
    force: bool = False,
    nproc: int | None = None,
    workers: int | None = None,
    storage: str | None = None,
    engine: Engine | None = None,
    address: str | None = None,
    command: str = "autobatch.tune",
    on_progress: Listener = nobody,
    started_s: float | None = None,
) -> Report:
    """The batch size, learning rate and accumulation steps with the best validation score in the time there is.

    Settings that are None are the defaults, or those of the run that is resumed.

    Args:
        task: a task file's path or a `Task`.
        budget: wall time for everything, "10m" (the default), "1h30m" or seconds. A resumed run may get more.
        train_time: how long the real training will take; configurations are compared at this much training, or at a
            16th of what is left of the budget after profiling where that is less, an eighth with several workers.
        device, memory_limit, headroom: as in `find_max_batch`.
        seed: of everything that is drawn; 0 by default.
        search: how the next trial is chosen. "freeze-thaw": a Gaussian process over all rungs weighs what is new
            against what is paused. "tpe": Optuna's TPE proposes, successive halving promotes. "auto", the default:
            first the one, then the other (docs/search.md).
        warm_start: reports of earlier runs, or their files; what they chose is tried first.
        max_trials: configurations tried at most, before the fresh seeds; by default what the time allows.
        keep_checkpoints: so many of the best trials that were trained to the end keep their last checkpoint in the
            run's folder; 0 by default.
        run_dir: folder for the run's journal, report and log; `.autobatch/<task>/<time>/` by default.
        resume: go on with a run that was stopped, however it was: its folder, or True for the one in `run_dir`, or
            else the latest unfinished run of this task. What it found stays, and the time until now is not charged.
        force: resume though the task, the data, the device or a setting is not what it was.
        nproc: processes that train each trial together with DistributedDataParallel, a GPU for each; on a processor
            they share its cores. Batch sizes, the baseline's too, are those of each process, as in a script that
            torchrun starts.
        workers: trials that are trained at the same time, each in a process of its own; by default one on each GPU of
            the first one's kind, and one on a processor, whose cores several share.
        storage: URL of a database that the run is recorded in too, as Optuna takes it; the run's folder has everything
            without it. Its password is neither shown nor kept. A resumed run needs the URL again.
        engine: where workers run: "local", the default, on this machine; "ray" on a Ray cluster, a GPU for each.
        address: of that cluster, as `ray.init` takes it: "auto", "ray://host:10001"; by default one that is started
            here. A resumed run needs it again.
        command: to be noted in the report.
        on_progress: called as things begin and are found.
        started_s: `time.monotonic()` when the program began, where start-up is to count against the budget.

    Returns:
        A report; with `interrupted` set where Ctrl-C ended it early.

    Raises:
        TaskError: every problem of the task that a check finds, in one message.
        BudgetTooShort: the budget does not pay for one comparison; the message says what would.
        DoesNotFit: not even one sample fits.
        NoValidResult: every trial failed, or the time ran out first.
        ReportError: the run's folder cannot be written, or a report to start from cannot be read.
        SettingError: an argument has a value that cannot be used.
        RunError: there is nothing to resume, another process is at it, or its conditions have changed.
        StorageError: the disk is full; the run can be resumed when there is room.
    """
    if force and not resume:
        raise SettingError("force is for a run that is resumed: leave it out, or say which (resume=)")
    if run_dir is not None and not isinstance(resume, bool):
        raise SettingError(
            f"resume names the run's folder ({resume}), and so does run_dir ({run_dir}): give one of them"
        )
    asked: dict[str, Any] = {
        "budget_s": None if budget is None else parse_duration(budget),
        "train_time_s": None if train_time is None else parse_duration(train_time),
        "device": device,
        "memory_limit_bytes": None if memory_limit is None else parse_size(memory_limit),
        "headroom": headroom,
        "seed": seed,
        "search": search,
        "earlier": tuple(Earlier.of(one if isinstance(one, Report) else Report.load(Path(one))) for one in warm_start)
        or None,
        "max_trials": max_trials,
        "keep_checkpoints": keep_checkpoints,
        "nproc": nproc,
        "workers": workers,
        "storage": None if storage is None else shown_url(storage),
        "engine": engine,
        "address": address,
        "command": command,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    headroom = 0.05 if headroom is None else headroom
    if workers is not None and workers < 1:
        raise SettingError(f"workers is a number of processes, at least 1; got {workers}")
    for what, word, words in (("search", search, tuple(SEARCHES)), ("engine", engine, get_args(Engine))):
        if word is not None and word not in words:
            raise SettingError(f"{what} is one of {', '.join(words)}; got {word!r}")
    if storage is not None:
        check_url(storage)
    if address is not None and engine != "ray" and not resume:
        raise SettingError(f"address is of a Ray cluster; got {address} without engine='ray' (--engine ray)")
    given_task = as_task(task, whole=True)
    name = given_task.name
    spec = spec_for(given_task, device or "auto", memory_limit, headroom, nproc=1 if nproc is None else nproc)
    sources = {} if spec.path is None else source_hashes(spec.path)
    folder = None if run_dir is None else Path(run_dir)
    state: RunState
    if resume:
        place = folder if isinstance(resume, bool) else Path(resume)
        opened, state = reopened(place or latest_unfinished(name, spec.path), given, sources, force=force)
    else:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        if storage is not None:  # runs of an array of jobs begin in the same second
            given["study"] = f"{name} {created} {secrets.token_hex(2)}"
        settings = TuneSettings(name=name, **given)
        opened = RunFolder.made(folder, name)
        state = RunState(
            created=created,
            settings=settings,
            path=None if spec.path is None else str(spec.path),
            conditions=conditions_of_settings(settings, sources),
        )
    with opened:
        opened.save(state)
        settings = state.settings
        spec = replace(
            spec,
            device=settings.device,
            memory_limit_bytes=settings.memory_limit_bytes,
            headroom=settings.headroom,
            nproc=settings.nproc,
            workers=settings.workers,
        )
        # What Ray has to say of workers that died it prints, from a thread of its own, to where results go.
        with kept_short(opened.log), redirect_stdout(sys.stderr) if settings.engine == "ray" else nullcontext():
            return run_tune(opened, state, spec, on_progress, started_s=started_s, force=force, storage=storage)
