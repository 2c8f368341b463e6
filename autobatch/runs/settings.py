"""The user's settings of `tune`, as plain data that a run keeps and is resumed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..core.codec import config_from_json, config_to_json
from ..core.json_reader import Reader
from ..core.plan import Config
from ..errors import ReportError
from ..reports.report import Report
from ..searching.schedulers.table import SEARCHES

Engine = Literal["local", "ray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The choice of an earlier run, to be tried first.

    Attributes:
        config: its answer.
        created: when that run began.
        task: that run's task.
    """

    config: Config
    created: str
    task: str

    @classmethod
    def of(cls, report: Report) -> Earlier:
        """The answer of a report."""
        return cls(config=report.config, created=report.created, task=report.task)

    @property
    def origin(self) -> str:
        """Its source, in words."""
        return f"the answer of the run of {self.created}"

    @property
    def batch(self) -> int:
        """Its effective batch size."""
        return self.config.plan.effective_batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSettings:
    """The settings of `tune`, in base units; see `api.tune`.

    Of `storage` it has only what may be shown; `study` is the run's name in that database. A resumed run does not use
    `storage` and `address` from here, which would let a folder decide where data goes: the user sets them again.
    """

    name: str
    budget_s: float = 600.0
    train_time_s: float | None = None
    device: str = "auto"
    memory_limit_bytes: int | None = None
    headroom: float = 0.05
    seed: int = 0
    search: str = "auto"
    earlier: tuple[Earlier, ...] = ()
    max_trials: int | None = None
    keep_checkpoints: int = 0
    nproc: int = 1
    workers: int | None = None
    storage: str | None = None
    study: str | None = None
    engine: Engine = "local"
    address: str | None = None
    command: str = "autobatch.tune"

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {
            "name": self.name,
            "budget_s": self.budget_s,
            "train_time_s": self.train_time_s,
            "device": self.device,
            "memory_limit_bytes": self.memory_limit_bytes,
            "headroom": self.headroom,
            "seed": self.seed,
            "search": self.search,
            "earlier": [
                {"plan": config_to_json(one.config), "created": one.created, "task": one.task} for one in self.earlier
            ],
            "max_trials": self.max_trials,
            "keep_checkpoints": self.keep_checkpoints,
            "nproc": self.nproc,
            "workers": self.workers,
            "storage": self.storage,
            "study": self.study,
            "engine": self.engine,
            "address": self.address,
            "command": self.command,
        }

    @classmethod
    def from_json(cls, found: Reader) -> TuneSettings:
        """The settings from `to_json`.

        Raises:
            ReportError: they are missing, or the data is something else.
        """
        if found.number("budget_s") <= 0:
            raise ReportError(f"a run's budget is above zero; found {found.number('budget_s')}")
        return cls(
            name=found.get("name", str),
            budget_s=found.number("budget_s"),
            train_time_s=found.number_or_none("train_time_s"),
            device=found.get("device", str),
            memory_limit_bytes=found.get("memory_limit_bytes", int, or_null=True),
            headroom=found.number("headroom"),
            seed=found.get("seed", int),
            search=found.one_of("search", SEARCHES),
            earlier=tuple(_earlier(Reader(one, "an earlier run")) for one in found.list_of("earlier", dict)),
            max_trials=found.get("max_trials", int, or_null=True),
            keep_checkpoints=found.get("keep_checkpoints", int),
            nproc=found.get("nproc", int),
            # Older runs had no choice, and one worker.
            workers=found.get("workers", int, or_null=True) if "workers" in found else 1,
            storage=found.get("storage", str, or_null=True) if "storage" in found else None,
            study=found.get("study", str, or_null=True) if "study" in found else None,
            engine=found.one_of("engine", Engine) if "engine" in found else "local",
            address=found.get("address", str, or_null=True) if "address" in found else None,
            command=found.get("command", str),
        )


def _earlier(found: Reader) -> Earlier:
    config = config_from_json(found.inside("plan"))
    return Earlier(config=config, created=found.get("created", str), task=found.get("task", str))
