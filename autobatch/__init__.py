"""The batch size, learning rate and accumulation steps that give a PyTorch task its best score in the time there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .api import find_lr as find_lr
    from .api import find_max_batch as find_max_batch
    from .api import profile as profile
    from .api import tune as tune
    from .core.plan import Plan as Plan
    from .core.script_log import log as log
    from .errors import AutobatchError as AutobatchError
    from .guarding.guard import oom_safe as oom_safe
    from .measuring.memory import MaxBatch as MaxBatch
    from .render.notebook import show_progress as show_progress
    from .reports.report import Report as Report
    from .tasks.command import Command as Command
    from .tasks.task import Task as Task
    from .tasks.task import load_task as load_task

_HOMES = {
    "AutobatchError": "errors",
    "Command": "tasks.command",
    "MaxBatch": "measuring.memory",
    "Plan": "core.plan",
    "Report": "reports.report",
    "Task": "tasks.task",
    "find_lr": "api",
    "find_max_batch": "api",
    "load_task": "tasks.task",
    "log": "core.script_log",
    "oom_safe": "guarding.guard",
    "profile": "api",
    "show_progress": "render.notebook",
    "tune": "api",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `autobatch --help` needs neither torch nor optuna."""
    if name not in _HOMES:
        raise AttributeError(f"module 'autobatch' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
