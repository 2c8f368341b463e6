"""Whatever a verb was given, opened: a task or a live model becomes a runner, and what is void for it is refused.

A task from a file, or one that can be pickled, runs in worker processes. A live model on a GPU is borrowed in this
process; on a CPU it is copied into fresh ones, because only there does the answer repeat (see `devices/cpu.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.facts import DeviceInfo, TaskFacts
from ..core.plan import Mode, Plan, Precision
from ..core.runner import Runner
from ..core.units import parse_size
from ..devices.backend import BACKENDS
from ..devices.environment import default_threads
from ..errors import DoesNotFit, SettingError, TaskError, after_warnings
from ..tasks.libraries import hush_libraries
from ..tasks.task_file import existing_file
from .group import open_workers
from .ranks.agreement import Place
from .remote import RemoteRunner
from .served import RunnerSpec

if TYPE_CHECKING:
    from torch import nn

    from ..tasks.task import Task

# What a task says itself, by the argument that says it of a live module.
_SAID_BY_TASK = {
    "sample": "the task's train_data()",
    "data": "the task's train_data()",
    "loss": "the task's loss(model, batch)",
    "optimizer": "the task's optimizer(model, lr)",
    "precision": "the task's `precision`",
}


def spec_for(
    task: Task | str | Path,
    device: str,
    memory_limit: str | int | None,
    headroom: float,
    mode: Mode = "training",
    place: Place | None = None,
    soak: int = 0,
    nproc: int = 1,
    is_timed: bool = True,
) -> RunnerSpec:
    if nproc < 1:
        raise SettingError(f"nproc is a number of processes, at least 1; got {nproc}")
    if nproc > 1 and mode == "inference":
        raise SettingError(f"nproc={nproc} is for training, and mode='inference' takes no step: leave it out")
    if nproc > 1 and place is not None:
        raise SettingError(f"nproc={nproc} starts the processes itself; found a process group: leave one of them out")
    if not 0 <= headroom < 1:
        raise SettingError(f"headroom is a share of the memory limit, at least 0 and below 1; got {headroom}")
    common = RunnerSpec(
        device=device,
        memory_limit_bytes=None if memory_limit is None else parse_size(memory_limit),
        headroom=headroom,
        mode=mode,
        threads=default_threads(),
        place=place,
        soak_steps=soak,
        nproc=nproc,
        is_timed=is_timed,
    )
    if isinstance(task, (str, Path)):
        return replace(common, path=existing_file(Path(task)))  # told before a worker is started for it
    from ..tasks.inputs import pickle_task  # torch is only needed where there is an object made with it
    from ..tasks.task import Task

    if not isinstance(task, Task):
        raise SettingError(
            f"a Task or the path of a task file is needed, which say what is trained on which data; got "
            f"{type(task).__name__}. `find_max_batch` and `profile` take a model as it is"
        )
    if task.path is not None:
        return replace(common, path=task.path)
    return replace(common, pickled=pickle_task(task))


@contextmanager
def open_task(
    model: nn.Module | Task | str | Path,
    *,
    sample: Any = None,
    data: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    precision: Precision | None = None,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    mode: Mode = "training",
    isolate: bool | None = None,
    place: Place | None = None,
    accumulation_steps: int | None = None,
    soak: int = 0,
    nproc: int = 1,
    is_timed: bool = True,
) -> Iterator[tuple[Runner, Plan, tuple[str, ...]]]:
    """A runner for whatever was passed, the plan to vary, and what was assumed; closed afterwards."""
    assumed: tuple[str, ...] = ()
    task: Any = model
    is_live = False
    if not isinstance(model, (str, Path)):
        from torch import nn

        from ..tasks.inputs import task_for_model

        is_live = isinstance(model, nn.Module)
        if isinstance(model, nn.Module):
            task, assumed = task_for_model(
                model, sample, data=data, loss=loss, optimizer=optimizer, precision=precision or "fp32"
            )
    if not is_live:
        given = {"sample": sample, "data": data, "loss": loss, "optimizer": optimizer, "precision": precision}
        _refuse_for_task({name for name, value in given.items() if value is not None}, isolate)
    elif nproc != 1:
        raise SettingError(
            "nproc= is for a task, whose processes make their own models: put the model into a task file"
        )
    runner: Runner
    is_here = is_live and not (_on_cpu(device) if isolate is None else isolate)
    if is_here:
        runner = _in_process(task, device, memory_limit, headroom, mode, soak)
    else:
        runner = open_workers(spec_for(task, device, memory_limit, headroom, mode, place, soak, nproc, is_timed))
    is_guess = is_live and sample is None and data is None
    try:
        if is_live:
            with _hushed() if is_here else nullcontext():
                yield runner, _plan_to_vary(task, accumulation_steps), assumed
        else:
            facts = runner.facts()
            with after_warnings(facts.warnings):
                yield runner, _plan_to_vary(facts, accumulation_steps), assumed
    except TaskError as error:
        if not is_guess:
            raise
        from ..tasks.wrong_guess import explained

        told = explained(task, assumed[0], error)
        if told is error:
            raise
        raise told from None
    except DoesNotFit as error:
        if not is_guess:
            raise
        raise DoesNotFit(f"{error}. It was assumed that {assumed[0]}: pass sample= where yours is smaller") from None
    finally:
        runner.close()


@contextmanager
def _hushed() -> Iterator[None]:
    """In this process as in a worker, and afterwards as it was."""
    with warnings.catch_warnings():
        hush_libraries()
        yield


def _plan_to_vary(of: Task | TaskFacts, accumulation_steps: int | None) -> Plan:
    """The plan whose batch size is looked for; more than two micro-batches need no more memory than two."""
    if accumulation_steps is None:
        accumulation_steps = of.baseline.plan.accumulation_steps if isinstance(of, TaskFacts) else 1
    elif accumulation_steps < 1:
        raise SettingError(f"accumulation_steps is at least 1; got {accumulation_steps}")
    smallest = of.smallest_plan if isinstance(of, TaskFacts) else Plan(batch_size=1, precision=of.precision)
    return replace(smallest, accumulation_steps=min(2, accumulation_steps))


def _refuse_for_task(given: Set[str], isolate: bool | None) -> None:
    """Arguments that a task makes void are refused, so that nobody takes the answer for theirs."""
    for name, place in _SAID_BY_TASK.items():
        if name in given:
            raise SettingError(f"{name}= is for a live module; with a task it is {place} that counts: change it there")
    if isolate is False:
        raise SettingError("isolate=False is for a live module; a task always runs in worker processes: leave it out")


def _in_process(
    task: Task, device: str, memory_limit: str | int | None, headroom: float, mode: Mode, soak: int
) -> Runner:
    from ..devices import open_device
    from ..worker.torch_runner import TorchRunner

    limit = None if memory_limit is None else parse_size(memory_limit)
    return TorchRunner(
        task,
        open_device(device),
        memory_limit_bytes=limit,
        headroom=headroom,
        mode=mode,
        live=True,
        soak_steps=soak,
    )


def _on_cpu(device: str) -> bool:
    from ..devices import open_device

    return open_device(device).backend.is_processor


@contextmanager
def open_spec(
    spec: RunnerSpec, *, accumulation_steps: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Runner, Plan]]:
    """A runner in worker processes, and the plan whose batch size is looked for; closed afterwards."""
    with closing(RemoteRunner(spec, environment=environment)) as runner:
        yield runner, _plan_to_vary(runner.facts(), accumulation_steps)


def counts_memory(device: DeviceInfo, memory_limit: object) -> bool:
    """Whether a worker keeps a limit by counting memory to the page, which slows down each of its steps."""
    return BACKENDS[device.kind].is_processor and memory_limit is not None


def device_of(spec: RunnerSpec) -> DeviceInfo:
    """The device that a spec names, as a worker sees it."""
    with closing(RemoteRunner(spec)) as runner:
        return runner.device()
