"""Opens the runner for a task or a live model, and refuses arguments that have no effect on it.

A task from a file, or one that can be pickled, runs in worker processes. A live model on a GPU is borrowed in this
process. On a CPU it is copied into fresh ones, because only there is the answer repeatable (see `devices/cpu.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.facts import DeviceInfo, TaskFacts
from ..core.plan import Mode, Plan, Precision
from ..core.runner import Runner
from ..core.units import parse_size
from ..devices.backend import BACKENDS, PROCESSOR
from ..devices.environment import default_threads
from ..errors import DoesNotFit, SettingError, TaskError, after_warnings
from ..tasks.doors.door import GivenTask
from ..tasks.doors.table import as_task
from ..tasks.libraries import hush_libraries
from .group import open_workers
from .ranks.agreement import RankInfo
from .remote import RemoteRunner
from .served import RunnerSpec

if TYPE_CHECKING:
    from torch import nn

    from ..tasks.command import Command
    from ..tasks.task import Task


def spec_for(
    given: GivenTask,
    device: str,
    memory_limit: str | int | None,
    headroom: float,
    mode: Mode = "training",
    rank_info: RankInfo | None = None,
    soak: int = 0,
    nproc: int = 1,
    is_timed: bool = True,
) -> RunnerSpec:
    if nproc < 1:
        raise SettingError(f"nproc is a number of processes, at least 1; got {nproc}")
    if nproc > 1 and mode == "inference":
        raise SettingError(f"nproc={nproc} is for training, and mode='inference' takes no step: leave it out")
    if nproc > 1 and rank_info is not None:
        raise SettingError(f"nproc={nproc} starts the processes itself; found a process group: leave one of them out")
    if nproc > 1 and given.alone is not None:
        raise SettingError(f"nproc={nproc}: {given.alone}")
    if not 0 <= headroom < 1:
        raise SettingError(f"headroom is a share of the memory limit, at least 0 and below 1; got {headroom}")
    common = RunnerSpec(
        device=device,
        memory_limit_bytes=None if memory_limit is None else parse_size(memory_limit),
        headroom=headroom,
        mode=mode,
        threads=default_threads(),
        rank_info=rank_info,
        soak_steps=soak,
        nproc=nproc,
        is_timed=is_timed,
        libraries=given.libraries,
    )
    if given.command is not None:
        _refuse_for_command(common)
        return replace(common, command=given.command)
    if given.path is not None:
        return replace(common, path=given.path)
    from ..tasks.inputs import pickle_task  # imports torch, which the task's maker has imported already

    task = given.task or given.later
    assert task is not None
    return replace(common, pickled=pickle_task(task))


def _refuse_for_command(spec: RunnerSpec) -> None:
    """Refuse what only a task can be asked for.

    Raises:
        SettingError: something is.
    """
    if spec.nproc > 1:
        raise SettingError(
            f"a command starts its own processes; got --nproc {spec.nproc}: leave it out, and put what starts them, "
            "such as torchrun, into the command"
        )
    if spec.mode == "inference":
        raise SettingError("a command is run as it is, and it trains; got mode='inference': leave it out")
    if spec.soak_steps:
        raise SettingError(f"a command takes its own steps; got soak={spec.soak_steps}: leave it out")
    if spec.device.strip().lower() not in ("auto", PROCESSOR.torch_name):
        raise SettingError(
            f"a command chooses its device itself; got --device {spec.device}: leave it out, and say it in the "
            "command, as in CUDA_VISIBLE_DEVICES=1 python train.py"
        )


@contextmanager
def open_task(
    model: nn.Module | Task | Command | str | Path,
    *,
    sample: Any = None,
    data: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    precision: Precision | None = None,
    of_some: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory_limit: str | int | None = None,
    headroom: float = 0.05,
    mode: Mode = "training",
    isolate: bool | None = None,
    rank_info: RankInfo | None = None,
    accumulation_steps: int | None = None,
    soak: int = 0,
    nproc: int = 1,
    is_timed: bool = True,
) -> Iterator[tuple[Runner, Plan, tuple[str, ...]]]:
    """A runner for whatever was passed, the plan to vary, and what was assumed; closed afterwards.

    Arguments that only some of what may be passed takes are in `of_some`.
    """
    given = as_task(
        model, sample=sample, data=data, loss=loss, optimizer=optimizer, precision=precision, **(of_some or {})
    )
    if not given.is_live and isolate is False:
        raise SettingError("isolate=False is for a live module; a task always runs in worker processes: leave it out")
    if given.is_live and nproc != 1:
        raise SettingError(
            "nproc= is for a task, whose processes make their own models: put the model into a task file"
        )
    is_here = given.is_live and not (_on_cpu(device) if isolate is None else isolate)
    runner: Runner
    if is_here:
        runner = _in_process(given, device, memory_limit, headroom, mode, soak)
    else:
        runner = open_workers(spec_for(given, device, memory_limit, headroom, mode, rank_info, soak, nproc, is_timed))
    try:
        if given.is_live:
            assert given.task is not None
            with _hushed() if is_here else nullcontext():
                yield runner, _plan_to_vary(given.task, accumulation_steps), given.assumed
        else:
            facts = runner.facts()
            with after_warnings(facts.warnings):
                yield runner, _plan_to_vary(facts, accumulation_steps), given.assumed
    except TaskError as error:
        if given.guess is None or given.task is None:
            raise
        from ..tasks.wrong_guess import explained

        explanation = explained(given.task, given.guess, error)
        if explanation is error:
            raise
        raise explanation from None
    except DoesNotFit as error:
        if given.guess is None:
            raise
        raise DoesNotFit(f"{error}. It was assumed that {given.guess}: pass sample= where yours is smaller") from None
    finally:
        runner.close()


@contextmanager
def _hushed() -> Iterator[None]:
    """Apply the settings of a worker to this process, and restore its own afterwards."""
    with warnings.catch_warnings():
        hush_libraries()
        yield


def _plan_to_vary(of: Task | TaskFacts, accumulation_steps: int | None) -> Plan:
    """The plan whose batch size varies. More than two micro-batches need no more memory than two."""
    if accumulation_steps is None:
        accumulation_steps = of.baseline.plan.accumulation_steps if isinstance(of, TaskFacts) else 1
    elif accumulation_steps < 1:
        raise SettingError(f"accumulation_steps is at least 1; got {accumulation_steps}")
    smallest = of.smallest_plan if isinstance(of, TaskFacts) else Plan(batch_size=1, precision=of.precision)
    return replace(smallest, accumulation_steps=min(2, accumulation_steps))


def _in_process(
    given: GivenTask, device: str, memory_limit: str | int | None, headroom: float, mode: Mode, soak: int
) -> Runner:
    from ..devices import open_device
    from ..worker.torch_runner import TorchRunner

    limit = None if memory_limit is None else parse_size(memory_limit)
    assert given.task is not None
    return TorchRunner(
        given.task,
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
    """A runner in worker processes, and the plan whose batch size varies. The runner is closed afterwards."""
    with closing(RemoteRunner(spec, environment=environment)) as runner:
        yield runner, _plan_to_vary(runner.facts(), accumulation_steps)


def counts_memory(device: DeviceInfo, memory_limit: object) -> bool:
    """Whether a worker keeps a limit by counting memory to the page, which slows down each of its steps."""
    return BACKENDS[device.kind].is_processor and memory_limit is not None


def device_of(spec: RunnerSpec) -> DeviceInfo:
    """The device that a spec names, as a worker sees it."""
    with closing(RemoteRunner(spec)) as runner:
        return runner.device()
