"""The conditions under which a run was started, and what has changed when it is resumed.

A condition is a name that a person understands, with a plain value. Trials are only comparable under the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .._version import __version__
from ..core.facts import DeviceInfo, TaskFacts
from ..core.units import format_duration, format_lr, format_size
from ..devices.backend import BACKENDS
from ..errors import RunError
from .settings import TuneSettings

Condition = str | int | float | bool | None

# What a run cannot go on without, whatever the user says: its scores would mean something else. Where the learning rate
# peaks, and whether trials are paused, says where the rungs are that they were taken at.
FIXED = ("direction", "peak of the schedule", "trials can be paused")


def conditions_of_settings(
    settings: TuneSettings, sources: Mapping[str, str], said: Mapping[str, Condition] | None = None
) -> dict[str, Condition]:
    """Those that are known before a worker is started.

    The budget is no condition: a resumed run may get more time. Nor are `max_trials`, `keep_checkpoints` and the place
    of the workers: a trial is the same on any device of the same kind. (A processor of the same kind has as many
    threads, which its worker reports.)

    Args:
        settings: of the run.
        sources: hashes of the task's files by their names; none for a task made in code.
        said: what the task itself says that its scores depend on.
    """
    limit, hint = settings.memory_limit_bytes, settings.train_time_s
    return {
        "autobatch": __version__,
        **{f"file {name}": digest for name, digest in sources.items()},
        **(said or {}),
        "training time": None if hint is None else format_duration(hint),
        "memory limit": None if limit is None else format_size(limit),
        "headroom": settings.headroom,
        "seed": settings.seed,
        "search": settings.search,
        "processes": settings.nproc,
        "warm starts": ", ".join(f"{one.batch} at {format_lr(one.config.lr)}" for one in settings.earlier) or None,
    }


def conditions_of_task(facts: TaskFacts, device: DeviceInfo, workers: int) -> dict[str, Condition]:
    """The conditions that a worker reports once it has opened the task on its device.

    Args:
        facts, device: those from the worker.
        workers: the requested number. They share a processor's cores; each other device belongs to one worker.
    """
    plan, on_cpu = facts.baseline.plan, BACKENDS[device.kind].is_processor
    # A processor's memory changes with what its container or its machine has free. A card's memory is its own.
    memory = None if on_cpu or device.memory_bytes is None else format_size(device.memory_bytes)
    return {
        "training samples": facts.train_size,
        "validation samples": facts.val_size,
        "direction": facts.direction,
        "baseline": f"batch {plan.batch_size} x {plan.accumulation_steps} at {facts.baseline.lr!r}",
        "precision": facts.precision,
        "accumulation": facts.accumulates,
        "test data": facts.has_test_data,
        "peak of the schedule": facts.peak_lr_fraction,
        "trials can be paused": facts.is_pausable,
        "device": f"{device.name} ({device.kind})",
        "memory of the device": memory,
        "workers on the processor": workers if on_cpu else None,
        # The number of threads over which a sum is split determines its last bits. On a card they only feed it, and
        # their number depends on the number and place of the workers. Older runs have it among their conditions there
        # too.
        **({"threads of a worker": device.threads} if on_cpu else {}),
        "torch": device.torch,
    }


def changes(before: Mapping[str, Condition], now: Mapping[str, Condition]) -> list[str]:
    """One line for each condition that has changed. Conditions that one side does not have are left out.

    A file of the task that was added or removed is a change.
    """
    files = sorted({key for key in (*before, *now) if key.startswith("file ")})
    lines = []
    for key in files:
        name = key.removeprefix("file ")
        if key not in now or key not in before:
            if any(other.startswith("file ") for other in now) and any(other.startswith("file ") for other in before):
                lines.append(f"{name} is {'imported no longer' if key not in now else 'new'}")
        elif before[key] != now[key]:
            lines.append(f"{name} has changed")
    for key, value in now.items():
        if key in before and key not in files and before[key] != value:
            lines.append(f"{key}: {_condition_text(before[key])} then, {_condition_text(value)} now")
    return lines


def check_conditions(path: Path, before: Mapping[str, Condition], now: Mapping[str, Condition], *, force: bool) -> None:
    """Refuse to resume the run in `path` if something on which its trials depend has changed.

    Raises:
        RunError: it lists all changes, unless they are forced. Changes that cannot be forced are always listed.
    """
    fixed = [key for key in FIXED if key in now and key in before and before[key] != now[key]]
    lines = changes(before, now)
    if fixed or (lines and not force):
        listed = "\n".join(f"  {line}" for line in lines)
        way = "start a new run" if fixed else "start a new run, or go on all the same with --force"
        raise RunError(f"the run in {path} was started under other conditions:\n{listed}\n{way[0].upper()}{way[1:]}")


def _condition_text(value: Condition) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
