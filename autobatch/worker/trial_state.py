"""The part of a trial that outlives its process: written between two steps, read, and continued.

A checkpoint is data that loads with `weights_only=True`. In a group, each rank keeps what only it has in its own file,
beside that of rank 0.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ..core.checkpoints import is_whole, part_of_rank
from ..core.files import full_disk, sync_folder
from ..errors import CheckpointError, TaskError, first_line
from ..tasks.state import rng_state, set_rng_state
from .carried_state import objects_of, plain_of
from .modes import judged, to_train

if TYPE_CHECKING:
    from .training import Trainer

_WARNED: set[str] = set()  # the warnings that this process has given


def save_trainer(trainer: Trainer, path: Path, *, name: Path | None = None) -> None:
    """Write everything that a later process needs to continue as if nothing had happened; completely or not at all.

    When this returns, it is on the disk, under a name that survives a loss of power. In a group, all ranks call it.
    Each writes what only it keeps beside the model into its own file, which may be large. Then rank 0 writes the rest,
    with the state of all ranks' generators. The saved weights are those to evaluate, if the optimizer trains other
    ones.

    Args:
        trainer: has the state to save.
        path: the file to write. `name` is where rank 0 will move it, if that differs.

    Raises:
        OSError: it cannot be written. For a full disk, an error that `files.full_disk` recognises.
    """
    if trainer.step_count < trainer.total_steps:  # one that has ended does not go on
        _warn_of_lost(trainer)
    generators = rng_state()
    if trainer.group is not None and not trainer.group.is_first:
        refusal = _write_part(trainer, part_of_rank(name or path, trainer.group.rank))
        trainer.group.gather((generators, refusal))
        if refusal is not None:
            raise refusal
        return
    others = [] if trainer.group is None else trainer.group.gather(None)[1:]
    for _, refusal in others:
        if refusal is not None:
            raise refusal
    with judged(trainer.optimizer):
        _write(_state(trainer, [generators, *(state for state, _ in others)]), path)


def _write_part(trainer: Trainer, path: Path) -> OSError | None:
    """Write what only this rank keeps. Returns the error if the disk is full, for the other ranks."""
    try:
        _write({"step": trainer.step_count, "carried": trainer.carried.state(whole=False)}, path)
    except Exception as error:
        if (refusal := full_disk(error)) is None:
            raise
        return OSError(refusal.errno, refusal.strerror, refusal.filename or str(path))
    return None


def _warn_of_lost(trainer: Trainer) -> None:
    """Warn, once per process, of changes in training that are not saved."""
    for warning in trainer.carried.warnings():
        if warning not in _WARNED:
            _WARNED.add(warning)
            warnings.warn(warning, stacklevel=2)


def _state(trainer: Trainer, generators: list[dict[str, Any]]) -> dict[str, Any]:
    model = trainer.model.state_dict()
    state: dict[str, Any] = {
        "step": trainer.step_count,
        "scheduler_steps": trainer.scheduler_steps,
        "total_steps": trainer.total_steps,
        "model": {name: value for name, value in model.items() if isinstance(value, Tensor)},
        # A module's get_extra_state() may return any object.
        "extra": plain_of({name: value for name, value in model.items() if not isinstance(value, Tensor)}),
        "rng": generators,
        "carried": [trainer.carried.state()],
    }
    for name in ("scheduler", "scaler"):
        part = getattr(trainer, name)
        if part is not None and hasattr(part, "state_dict"):
            state[name] = _plain(part.state_dict())
    if trainer.after_step is not None and hasattr(trainer.after_step, "state_dict"):
        # Separately, so that its tensors are read back onto their own devices: only the hook knows where it wants them.
        buffer = io.BytesIO()
        torch.save(_plain(trainer.after_step.state_dict()), buffer)
        state["after_step"] = buffer.getvalue()
    return state


def _write(state: dict[str, Any], path: Path) -> None:
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk it takes the room
        raise
    sync_folder(path.parent)


def restore_trainer(trainer: Trainer, state: dict[str, Any]) -> None:
    """Make `trainer` continue from what `save_trainer` wrote and `read_checkpoint` read.

    Call it after the batches are set up: it restores the random generators.

    Raises:
        CheckpointError: another number of ranks wrote it.
    """
    generators = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]
    rank, ranks = (trainer.group.rank, trainer.group.size) if trainer.group is not None else (0, 1)
    if len(generators) != ranks:
        raise CheckpointError(f"the checkpoint is of {len(generators)} ranks; found {ranks} to go on with")
    carried = state.get("carried")
    if carried is not None and trainer.carried.order_of_groups(carried[0]) is not None:
        _reorder(trainer, carried[0])
    _load_model(trainer, state)
    trainer.step_count, trainer.scheduler_steps = state["step"], state["scheduler_steps"]
    for name in ("scheduler", "scaler"):
        if name in state:
            getattr(trainer, name).load_state_dict(state[name])
    if trainer.scheduler is not None and "scheduler" not in state:
        for _ in range(trainer.scheduler_steps):  # a schedule without a state is stepped to its position
            trainer.scheduler.step()
    # After the schedule, which may set rates when it is stepped or read.
    if carried is None:
        _restore_by_position(trainer, state["optimizer"])
    else:
        for one in carried:
            trainer.carried.restore(one, trainer.device)
    if "after_step" in state:
        cast(Any, trainer.after_step).load_state_dict(state["after_step"])
    to_train(trainer.optimizer)
    set_rng_state(generators[rank])


def _reorder(trainer: Trainer, carried: dict[str, Any]) -> None:
    """Put the optimizer's groups into the order of the process that began the trial, and make its schedule.

    Groups that are built from sets come in another order in each process, and a schedule uses their positions.
    """
    trainer.optimizer = trainer.task.optimizer(trainer.model, trainer.config.lr)
    to_train(trainer.optimizer)
    groups = list(trainer.optimizer.param_groups)
    order = trainer.carried_anew().order_of_groups(carried)  # it may differ from that of the previous process
    trainer.optimizer.param_groups[:] = groups if order is None else [groups[at] for at in order]
    if trainer.task.scheduler is not None:
        trainer.scheduler = trainer.task.scheduler(trainer.optimizer, trainer.total_steps)
    trainer.carried = trainer.carried_anew()


def _load_model(trainer: Trainer, state: dict[str, Any]) -> None:
    """Load the weights and buffers. A buffer that training has resized or added is allocated first."""
    modules = dict(trainer.model.named_modules())
    for name, value in state["model"].items():
        path, _, key = name.rpartition(".")
        buffers = modules[path]._buffers if path in modules else {}
        if key in buffers and (buffers[key] is None or cast(Tensor, buffers[key]).shape != value.shape):
            buffers[key] = torch.empty_like(value, device=trainer.device)
    extra = objects_of(state["extra"]) if "extra" in state else {}
    trainer.model.load_state_dict({**state["model"], **extra})


def _restore_by_position(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore the optimizer's state from an older autobatch's checkpoint.

    Raises:
        CheckpointError: it is not known which parameters the state belongs to.
    """
    mine = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    in_order = [parameter for parameter in trainer.model.parameters() if any(parameter is one for one in mine)]
    if len(trainer.optimizer.param_groups) > 1 or any(a is not b for a, b in zip(mine, in_order, strict=False)):
        raise CheckpointError(
            "the checkpoint is of an older autobatch that kept the optimizer's state by position, and this optimizer's "
            "parameters may have other positions in this process: start a new run"
        )
    trainer.optimizer.load_state_dict(state)


def _plain(state: Any) -> Any:
    """The same containers with Python numbers for NumPy's: `np.cos` in a schedule puts those into parameter groups."""
    if isinstance(state, np.generic):
        return state.item()
    if type(state) is dict:
        return {_plain(key): _plain(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(_plain, state))
    return state


def read_checkpoint(path: Path, rank: int = 0) -> dict[str, Any]:
    """What `save_trainer` wrote for a rank. Tensors of the hook are on their devices, and all others on the host.

    "step" is the number of optimizer steps taken. "carried" is that of rank 0, followed by that of `rank` if it is
    another one.

    Raises:
        CheckpointError: it is no whole checkpoint.
        TaskError: the checkpoint holds objects that are not plain data, from the task's own schedule or after_step.
        FileNotFoundError: there is no file.
    """
    if path.exists() and not is_whole(path):
        raise CheckpointError(f"the checkpoint {path} cannot be read: it is not whole")
    try:
        state: dict[str, Any] = _read(path, "cpu")
        if "after_step" in state:
            state["after_step"] = _read(io.BytesIO(state["after_step"]), None)
        missing = {"step", "scheduler_steps", "total_steps", "model", "rng"} - set(state)
    except (RuntimeError, EOFError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, TaskError):
            raise
        reason = first_line(error)
        raise CheckpointError(f"the checkpoint {path} cannot be read: {reason}") from None
    if missing:
        raise CheckpointError(f"the checkpoint {path} cannot be read: it lacks {', '.join(sorted(missing))}")
    if "carried" in state:
        of_all = state["carried"]  # that of all ranks, in older checkpoints
        if not rank or rank >= len(state["rng"]):
            own = []
        else:
            own = [of_all[rank] if len(of_all) > 1 else _read_part(path, rank, state["step"])]
        state["carried"] = [of_all[0], *own]
    return state


def _read_part(path: Path, rank: int, step: int) -> Any:
    part = part_of_rank(path, rank)
    if not is_whole(part):
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: the part of rank {rank}, {part.name}, is not whole"
        )
    state = _read(part, "cpu")
    if state["step"] != step:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: the part of rank {rank} is of step {state['step']}, not of {step}"
        )
    return state["carried"]


def _read(file: Path | io.BytesIO, device: str | None) -> Any:
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise TaskError(
            "the state of this task's scheduler or after_step holds more than tensors, numbers and "
            f"plain containers, so a trial cannot be paused: {first_line(error)}"
        ) from None
