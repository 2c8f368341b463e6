"""What a worker process serves: the runner that a `RunnerSpec` describes, opened there and called by name.

The coordinator imports this module too. It must not import torch, so what needs torch is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.compute_mode import ComputeMode
from ..core.facts import WorstCase
from ..core.plan import Mode
from ..core.runner import Runner
from ..devices import host_memory
from ..devices.backend import Backend
from ..devices.environment import count_exactly, keep_freed_memory
from ..errors import DeviceError, first_line
from ..tasks.command import Command
from ..tasks.libraries import NO_LIBRARIES, Libraries, Watch, hush_libraries
from .ranks.agreement import RankInfo, Rendezvous

if TYPE_CHECKING:
    from ..tasks.task import Task
    from ..worker.data_parallel import DataParallel


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSpec:
    """Everything that a worker needs to open the runner: only data, so that it can be sent to any process or machine.

    Attributes:
        path: of the task file; or
        pickled: a task made in code, by `inputs.pickle_task`; or
        command: a script, which needs no worker: the coordinator runs it.
        device: as the user names it: "auto", "cpu", "cuda:1".
        memory_limit_bytes, headroom, mode: as `TorchRunner` takes them.
        checkpoints: folder of paused trials.
        threads: CPU threads of a training step.
        rank_info: among the ranks that train the model together; the worker's process group says the same, and holds
            nobody else. None for training in one process.
        compute_mode: how it is computed, in place of what the task says; None for what it says.
        nproc: processes that each trial is trained in together, the one at `rank_info` and others (`group.py`).
        workers: such groups that train trials at once (`pool.py`), and on a CPU share its threads and its memory; None
            for one on each GPU. In an actor of Ray's those of its machine.
        rendezvous: where they find each other; None for one that takes its steps without the others.
        find_unused: as `DataParallel` takes it.
        is_timed: as `worker_environment` takes it.
        libraries: as `GivenTask` has them.
    """

    path: Path | None = None
    pickled: bytes | None = None
    command: Command | None = None
    device: str = "auto"
    memory_limit_bytes: int | None = None
    headroom: float = 0.05
    mode: Mode = "training"
    checkpoints: Path | None = None
    threads: int = 1
    worst_cases: Mapping[str, WorstCase] = field(default_factory=dict)
    soak_steps: int = 0
    rank_info: RankInfo | None = None
    compute_mode: ComputeMode | None = None
    nproc: int = 1
    workers: int | None = 1
    rendezvous: Rendezvous | None = None
    find_unused: bool = False
    is_timed: bool = True
    libraries: Libraries = NO_LIBRARIES


# What a fork server imports for a worker that only reads the task and its data, and for all others.
TO_READ = ("autobatch.worker.warm", "autobatch.engines.served")
TO_STEP = ("autobatch.worker.first_step", "autobatch.engines.served")

# In a worker: its open runner, and its spec.
_runner: Runner | None = None
_watch: Watch | None = None


def _open(spec: RunnerSpec) -> Runner:
    import torch

    from ..devices import open_device
    from ..worker.torch_runner import TorchRunner

    torch.set_num_threads(spec.threads)  # a fork inherits the server's single thread
    try:
        device = open_device(_device_of(spec))
        # As in the user's own script: `.cuda()` and `fully_shard` use the current device.
        device.backend.make_current(device.torch_device)
    except DeviceError:
        raise
    except RuntimeError as error:  # a card that is gone or does not respond is still listed
        raise DeviceError(f"{_device_of(spec)} cannot be opened: {first_line(error)}") from None
    memory_limit_bytes = spec.memory_limit_bytes
    sharing = spec.nproc * (spec.workers or 1)
    if sharing > 1 and memory_limit_bytes is None and device.backend.is_processor:
        free = host_memory.available()
        memory_limit_bytes = None if free is None else free.free_bytes // sharing
    group = _join(spec, device.backend)
    task = _task(spec)
    if spec.compute_mode is not None:
        compute_mode = spec.compute_mode
        task = replace(
            task,
            precision=compute_mode.precision,
            channels_last=compute_mode.channels_last,
            compile=compute_mode.compile,
        )
    return TorchRunner(
        task,
        device,
        memory_limit_bytes=memory_limit_bytes,
        headroom=spec.headroom,
        mode=spec.mode,
        checkpoints=spec.checkpoints,
        worst_cases=spec.worst_cases,
        soak_steps=spec.soak_steps,
        group=group,
    )


def _task(spec: RunnerSpec) -> Task:
    from ..tasks.inputs import unpickle_task
    from ..tasks.task import load_task

    task = unpickle_task(spec.pickled) if spec.pickled is not None else load_task(spec.path or "")
    hush_libraries()  # only now: a task file may have set its own filters
    return task


def worst_cases(spec: RunnerSpec) -> dict[str, WorstCase]:
    """In a worker that does nothing else: where the largest samples of the task's data are."""
    import torch

    from ..tasks.data import load_data
    from ..tasks.worst_case import find_worst_case

    torch.set_num_threads(spec.threads)
    task = _task(spec)
    names = [] if task.train_loader is not None else ["train_data"]
    if spec.mode == "training":
        names.append("val_data")
    return {name: find_worst_case(load_data(task, name), task.sample_size) for name in names}


def _device_of(spec: RunnerSpec) -> str:
    if spec.nproc == 1 or spec.rank_info is None:
        return spec.device
    from ..worker.data_parallel import device_of_rank

    return device_of_rank(spec.device, spec.rank_info.local_rank, spec.rank_info.local_size)


def _join(spec: RunnerSpec, backend: Backend) -> DataParallel | None:
    """Make this process a rank if it should be one; returns its connection with the others."""
    if spec.rank_info is None:
        return None
    rank, size, rendezvous = spec.rank_info.rank, spec.rank_info.size, spec.rendezvous
    # Imported here: torch.distributed is only for those who need it.
    from ..worker.data_parallel import DataParallel, meet, tell_environment
    from .ranks.stand_in import stand_in

    if spec.nproc > 1:
        tell_environment(rank, size, rendezvous.port if rendezvous is not None else 0)
    if rendezvous is None:
        stand_in(rank, size)
    else:
        meet(rank, size, rendezvous.file, rendezvous.limit_s, backend)
    return DataParallel(rank=rank, size=size, find_unused=spec.find_unused) if spec.nproc > 1 else None


def open_runner(spec: RunnerSpec, *, exact: bool) -> None:
    """In a worker: open the runner that `spec` describes. With `exact`, memory is counted to the page from now on."""
    global _runner, _watch
    _watch = Watch()
    if exact:
        count_exactly()
    else:
        keep_freed_memory()
    _runner = _open(spec)


def imported_libraries() -> Libraries:
    """In a worker: the libraries that the task has imported."""
    assert _watch is not None
    return _watch.libraries()


def names_of_devices() -> list[str]:
    """In a worker: the devices that it sees."""
    from ..devices import device_names

    return device_names()


def call(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In a worker: what `method` of its runner returns."""
    return getattr(_runner, method)(*args, **kwargs)
