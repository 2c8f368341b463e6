"""The public functions: each opens a task on a device (opening.py), runs stages and returns a frozen result."""

from __future__ import annotations

import secrets
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ._version import __version__
from .core.codec import device_to_json
from .core.files import check_writable
from .core.plan import Direction, Mode, Plan, Precision
from .core.progress import Listener, nobody
from .core.runner import Prober, Runner
from .core.units import parse_duration, parse_size
from .core.words import did_you_mean
from .engines.group import open_workers
from .engines.opening import counts_memory, open_task, spec_for
from .engines.processes.worker_log import kept_short
from .engines.ranks.agreement import RankInfo, Ranks, in_process_group
from .errors import SettingError
from .measuring.learning_rate import LrCurve
from .measuring.memory import MaxBatch
from .measuring.throughput import Objective, ThroughputCurve
from .reports.report import Report
from .runs.conditions import conditions_of_settings
from .runs.run_folder import RunFolder, RunState
from .runs.runs import latest_unfinished, reopened
from .runs.settings import Earlier, Engine, TuneSettings
from .searching.budget.ledger import Ledger
from .searching.schedulers.table import SEARCHES
from .searching.storage.url import check_url, shown_url, shown_words
from .simulated.recording import Recorder
from .tasks.doors.table import as_task
from .tasks.task_sources import source_hashes
from .tuning.dry_run import DryRun, dry_run_of
from .tuning.run import run_tune
from .tuning.stages import PROFILE_S, lr_curve_of, max_batch_of, profile_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer

    from .tasks.command import Command
    from .tasks.task import Task

_WHERE_NOT = "If that is wrong, pass sample=, one sample of your data without a batch dimension"
_SWEEP_STEPS = 100  # as in the comparison of the rules that was measured (learning_rate.py)


def find_max_batch(
    model: nn.Module | Task | Command | Trainer | str | Path,
    sample: Any = None,
    *,
    data: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    precision: Precision | None = None,
    datamodule: Any = None,
    trainer: Any = None,
    monitor: str | None = None,
    direction: Direction | None = None,
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
    """Find the largest micro-batch that runs whole optimizer steps within the memory limit.

    The result is an `int` with its evidence. It is the batch size of one forward and backward pass in one process. With
    `accumulation_steps` or `nproc`, the effective batch size is that many times larger.

    A live module comes back exactly as it was: weights, buffers, gradients, modes, device and random generators. A task
    defines its own data, loss and optimizer, so arguments for a live module are refused with a task.

    Args:
        model: a live module, a `Task`, a `Command`, a transformers Trainer, or the path of a task file.
        sample: for a live module, ONE sample without a batch dimension. Without it the input is inferred or assumed;
            a warning and the result list every assumption.
        data: for a live module, a `Dataset` or `DataLoader` that gives samples, instead of `sample`.
        loss: for a live module, `loss(model, batch)`, the mean over the batch. Default: the mean of the output.
        optimizer: for a live module, `optimizer(model, lr)` or an optimizer class. Default: AdamW.
        precision: for a live module, "fp32", or "bf16" or "fp16" under autocast. None: fp32, or the task's own.
        datamodule, trainer, monitor, direction: for a LightningModule, as in `tune`; the last two for a transformers
            Trainer as well.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        memory_limit: treat the device as if it had only this much memory, "8GiB" or bytes. None: what is free.
        headroom: the share of the memory limit that stays free.
        mode: "training", or "inference" for a forward pass without gradients.
        multiple_of: only answer with multiples of this.
        power_of_two: only answer with powers of two.
        max_batch_size: the largest micro-batch per process to try. Default: the size of the training data, or 131072 if
            it has no length.
        accumulation_steps: micro-batches per optimizer step. The answer is the size of one micro-batch, with the
            gradients of the others kept in memory. Default: the task's baseline, and 1 for a live module.
        prove: also run the next larger size, with three steps and an evaluation, and show that it fails. This runs in
            its own process, unless the model is borrowed in this one (see `isolate`).
        soak: also train this many optimizer steps on real batches before accepting a size.
        record: a file for all probes, as JSON that `autobatch.simulated.recording.Recording.load` reads.
        isolate: run in worker processes. A task always does. A live module does so by default on a CPU, and runs in
            this process on other devices.
        nproc: for a task, how many processes train together with DistributedDataParallel, one GPU each. The answer is
            the micro-batch of each process.
        on_progress: called with each probe.

    Raises:
        DoesNotFit: not even one sample fits.
        TaskError: the model or the task cannot run, or its input can be neither inferred nor assumed.
        DeviceError: there is no such device.
        SettingError: an argument has a value that cannot be used, or is for a live module but a task was passed.
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
        of_some={"datamodule": datamodule, "trainer": trainer, "monitor": monitor, "direction": direction},
        headroom=headroom,
        mode=mode,
        accumulation_steps=accumulation_steps,
        soak=soak,
        nproc=nproc,
        is_timed=False,
    )

    def open_here(
        *, rank_info: RankInfo | None = None, **here: Any
    ) -> AbstractContextManager[tuple[Runner, Plan, tuple[str, ...]]]:
        if record is not None and (rank_info is None or rank_info.rank == 0):  # refuse it before a worker is started
            check_writable(Path(record))
        return of_model(rank_info=rank_info, **here)

    opened: Callable[..., AbstractContextManager[tuple[Prober, Plan, tuple[str, ...]]]] = open_here
    if in_process_group():
        from .engines.ranks.together import opened_on_all_ranks  # torch is loaded, or there would be no process group

        settings = (
            f"{mode=}, {max_batch_size=}, {multiple_of=}, {power_of_two=}, {accumulation_steps=}, {prove=}, {soak=}"
        )
        opened = partial(opened_on_all_ranks, open_here, model, settings)
    with opened(device=device, memory_limit=memory_limit, isolate=isolate) as (prober, plan, assumed):
        if assumed and sample is None and data is None:  # the other defaults are documented and in the result
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
    """Write the recording at the end, even if nothing fits or an error ends the search: it is needed most then."""
    try:
        yield
    finally:
        if record is not None and not (isinstance(prober, Ranks) and prober.rank_info.rank):
            about: dict[str, Any] = {"version": __version__, "date": datetime.now(UTC).isoformat(timespec="seconds")}
            about["command"] = shlex.join(shown_words(sys.argv))
            if isinstance(prober, Runner):
                about["device"] = device_to_json(prober.device())
            recording = recorder.recording(about)
            if recording is not None:
                recording.save(Path(record))


def profile(
    task: nn.Module | Task | Command | Trainer | str | Path,
    sample: Any = None,
    *,
    datamodule: Any = None,
    trainer: Any = None,
    monitor: str | None = None,
    direction: Direction | None = None,
    budget: str | float = PROFILE_S,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    max_batch_size: int | None = None,
    objective: Objective = "throughput",
    nproc: int = 1,
    on_progress: Listener = nobody,
) -> ThroughputCurve:
    """Measure samples per second at micro-batch sizes up to the largest that fits.

    The result has the knee, the energy per sample, and where the time goes.

    Args:
        task: a task file's path, a `Task`, a `Command`, a live module, or a transformers Trainer.
        sample: for a live module, as in `find_max_batch`. Its steps are timed on one batch that is already on the
            device. Only a task can show what loading costs.
        datamodule, trainer, monitor, direction: for a LightningModule, as in `tune`; the last two for a transformers
            Trainer as well.
        budget: time for measuring speed, "30s" or seconds. If the loader does not keep up, half as much again goes to
            finding out what helps it.
        device, memory_limit, headroom, max_batch_size: as in `find_max_batch`.
        objective: what the recommended batch size optimizes: "throughput", "energy" or "balanced".
        nproc: as in `find_max_batch`. Batch sizes are per process; samples per second are of all processes together.
        on_progress: called with each probe and each measurement.

    Raises:
        NoValidResult: the objective needs energy, and this device does not measure it.
    """
    budget_s = parse_duration(budget)
    of_some = {"datamodule": datamodule, "trainer": trainer, "monitor": monitor, "direction": direction}
    given = partial(open_task, task, sample=sample, of_some=of_some, device=device, headroom=headroom, nproc=nproc)
    with given(memory_limit=memory_limit) as (runner, plan, assumed):
        if assumed and sample is None:
            warnings.warn(f"profile assumed: {'; '.join(assumed)}. {_WHERE_NOT}", stacklevel=2)
        largest = max_batch_of(runner, plan, max_batch_size=max_batch_size, on_progress=on_progress)
        time_it = partial(
            profile_of, max_batch=int(largest), budget_s=budget_s, objective=objective, on_progress=on_progress
        )
        if not counts_memory(runner.device(), memory_limit):
            return time_it(runner, plan)
    with given() as (runner, plan, _):
        return time_it(runner, plan)


def find_lr(
    task: nn.Module | Task | Trainer | str | Path,
    *,
    datamodule: Any = None,
    trainer: Any = None,
    monitor: str | None = None,
    direction: Direction | None = None,
    batch_size: int | None = None,
    accumulation_steps: int | None = None,
    rule: str = "min/10",
    steps: int = _SWEEP_STEPS,
    seed: int = 0,
    device: str = "auto",
    memory_limit: str | int | None = None,
    on_progress: Listener = nobody,
) -> LrCurve:
    """Run a learning-rate range test on a task. The result has the curve, and the rate that a rule reads from it.

    Args:
        task: a task file's path, a `Task`, a LightningModule or a transformers Trainer. The test trains a new model.
        datamodule, trainer, monitor, direction: for a LightningModule, as in `tune`; the last two for a transformers
            Trainer as well.
        batch_size: the micro-batch size of the steps. Default: the baseline's, with its accumulation steps.
        accumulation_steps: micro-batches per step. Default: the baseline's, or 1 if `batch_size` is given.
        rule: "min/10", "steepest" or "valley"; see `learning_rate.RULES`.
        steps: optimizer steps, one at each rate.
        seed: for initialisation and data order.
        device, memory_limit: as in `find_max_batch`.
        on_progress: called when the test begins and ends.

    Raises:
        SettingError: `batch_size` or `accumulation_steps` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("accumulation_steps", accumulation_steps)):
        if value is not None and value < 1:
            raise SettingError(f"{name} is at least 1; got {value}")
    of_some = {"datamodule": datamodule, "trainer": trainer, "monitor": monitor, "direction": direction}
    as_task(task, whole=True, **of_some)  # refuses a model without data before a process is started for it
    with open_task(task, of_some=of_some, device=device, memory_limit=memory_limit) as (runner, _, _):
        facts = runner.facts()
        plan = facts.baseline.plan
        if batch_size is not None:
            plan = Plan(batch_size=batch_size, precision=facts.precision)
        if accumulation_steps is not None:
            plan = replace(plan, accumulation_steps=accumulation_steps)
        curve = lr_curve_of(runner, plan, steps=steps, seed=seed, rule=rule, on_progress=on_progress)
        return replace(curve, warnings=facts.warnings)


def dry_run(
    task: Task | Command | str | Path,
    *,
    budget: str | float = "10m",
    train_time: str | float | None = None,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    seed: int = 0,
    search: str = "auto",
    max_trials: int | None = None,
    nproc: int = 1,
    workers: int | None = None,
    started_s: float | None = None,
) -> DryRun:
    """What `tune` would do with these arguments, and how long each stage would get.

    The task is opened and checked, and a step and an evaluation are timed; nothing is searched or written. The
    arguments are those of `tune`, and so is what it raises before the race.
    """
    ledger = Ledger(parse_duration(budget), started_s=started_s)
    spec = spec_for(as_task(task, whole=True), device, memory_limit, headroom, nproc=nproc)
    with ledger.charge("start-up"):
        runner = open_workers(replace(spec, workers=workers))
    with closing(runner):
        return dry_run_of(
            runner,
            ledger,
            train_time_s=None if train_time is None else parse_duration(train_time),
            search=search,
            seed=seed,
            max_trials=max_trials,
        )


def tune(
    task: nn.Module | Task | Trainer | str | Path,
    *,
    datamodule: Any = None,
    trainer: Any = None,
    monitor: str | None = None,
    direction: Direction | None = None,
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
    """Find the batch size, learning rate and accumulation steps with the best validation score in the time available.

    A setting that is None has its default value, or the value of the resumed run.

    Args:
        task: a task file's path, a `Task`, a LightningModule, a transformers Trainer, or a `Command` for a script
            that is run as it is typed.
        datamodule: for a LightningModule, its LightningDataModule, or `(train_loader, val_loader)`. Default: the
            module's own loaders. Neither the module nor this is changed: both are copied into other processes.
        trainer: for a LightningModule, the Trainer whose precision, clipping, accumulation, length and monitored
            metric count. Default: Lightning's defaults.
        monitor: for a LightningModule, the logged metric that is the score. Default: what the Trainer's
            ModelCheckpoint or EarlyStopping goes by, or else what validation logs. For a transformers Trainer, a metric
            of its `evaluate()`. Default: `metric_for_best_model`, or else the loss.
        direction: "maximize" or "minimize" that metric. Default: as that callback or `greater_is_better` says, or else
            by its name.
        budget: wall time for the whole run, "10m" (the default), "1h30m" or seconds. A resumed run may get more.
        train_time: how long the real training will take. Configurations are compared after this much training, or
            after a 16th of the budget that is left after profiling (an eighth with several workers), if that is less.
        device, memory_limit, headroom: as in `find_max_batch`.
        seed: for every random choice. Default: 0.
        search: the method that chooses the next trial. "freeze-thaw": a Gaussian process over all rungs weighs new
            trials against paused ones. "tpe": Optuna's TPE proposes, successive halving promotes. "auto", the default:
            first the one, then the other (docs/search.md).
        warm_start: reports of earlier runs, or their files. What they chose is tried first.
        max_trials: the largest number of configurations to try, without the fresh seeds. Default: as many as the time
            allows.
        keep_checkpoints: how many of the best completed trials keep their last checkpoint in the run's folder.
            Default: 0.
        run_dir: folder for the run's journal, report and log. Default: `.autobatch/<task>/<time>/`.
        resume: continue a run that was stopped in any way: its folder, or True for the run in `run_dir`, or without
            `run_dir` the latest unfinished run of this task. It keeps its results, and the pause costs no budget.
        force: resume even if the task, the data, the device or a setting has changed.
        nproc: how many processes train each trial together with DistributedDataParallel, one GPU each. On a CPU they
            share its cores. Batch sizes are per process, the baseline's too, as in a script that torchrun starts.
        workers: how many trials are trained at the same time, each in its own process. Default: one on each GPU of the
            same kind as the first, and one on a CPU. Several workers share the cores of a CPU.
        storage: URL of a database that also records the run, as for Optuna. The run's folder is complete without it.
            The password is neither shown nor kept. A resumed run needs the URL again.
        engine: where workers run: "local", the default, on this machine; "ray" on a Ray cluster, one GPU each.
        address: address of that cluster, as for `ray.init`: "auto", "ray://host:10001". Default: start a cluster here.
            A resumed run needs the address again.
        command: the command to note in the report.
        on_progress: called with every beginning and every result.
        started_s: `time.monotonic()` when the program began, if start-up is to count against the budget.

    Returns:
        The report. Its `interrupted` is True if Ctrl-C ended the run early.

    Raises:
        TaskError: the check found problems of the task; one message lists them all.
        BudgetTooShort: the budget ended before anything was measured. One that pays for measurements and for no
            comparison gives a report that says so (`Report.not_compared`).
        DoesNotFit: not even one sample fits.
        NoValidResult: every trial failed, or the time ran out first.
        ReportError: the run's folder cannot be written, or a report to start from cannot be read.
        SettingError: an argument has a value that cannot be used.
        RunError: there is no run to resume, another process is using it, or its conditions have changed.
        StorageError: the disk is full; the run can be resumed when there is room.
    """
    if force and not resume:
        raise SettingError("force is only for resuming a run: leave it out, or say which run to resume (resume=)")
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
            raise SettingError(f"{what} is one of {', '.join(words)}; got {word!r}{did_you_mean(word, words)}")
    if storage is not None:
        check_url(storage)
    if address is not None and engine != "ray" and not resume:
        raise SettingError(f"address is of a Ray cluster; got {address} without engine='ray' (--engine ray)")
    of_some = {"datamodule": datamodule, "trainer": trainer, "monitor": monitor, "direction": direction}
    given_task = as_task(task, whole=True, **of_some)
    name = given_task.name
    spec = spec_for(given_task, device or "auto", memory_limit, headroom, nproc=1 if nproc is None else nproc)
    if spec.command is not None and engine == "ray":
        raise SettingError("a command is run on this machine alone; got engine='ray': leave it out")
    script = spec.path if spec.command is None else spec.command.script
    sources = {} if script is None or not script.exists() else source_hashes(script)
    said = {} if spec.command is None else spec.command.conditions()
    folder = None if run_dir is None else Path(run_dir)
    state: RunState
    if resume:
        place = folder if isinstance(resume, bool) else Path(resume)
        opened, state = reopened(place or latest_unfinished(name, spec.path), given, sources, force=force, said=said)
    else:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        if storage is not None:  # an array of jobs starts several runs in the same second
            given["study"] = f"{name} {created} {secrets.token_hex(2)}"
        settings = TuneSettings(name=name, **given)
        opened = RunFolder.made(folder, name)
        state = RunState(
            created=created,
            settings=settings,
            path=None if spec.path is None else str(spec.path),
            conditions=conditions_of_settings(settings, sources, said),
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
        # A thread of Ray's prints to stdout when workers die, but stdout is for results.
        with kept_short(opened.log), redirect_stdout(sys.stderr) if settings.engine == "ray" else nullcontext():
            return run_tune(opened, state, spec, on_progress, started_s=started_s, force=force, storage=storage)
