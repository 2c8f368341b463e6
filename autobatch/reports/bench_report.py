"""`BenchReport`: what a device did with well-known models; as JSON and back.

It is data, like `Report`: reading one executes nothing, and a file that is not a whole report of a known schema is
refused with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.codec import device_from_json, device_to_json
from ..core.facts import DeviceInfo
from ..core.files import load_json, write_json
from ..core.json_reader import NUMBER, NUMBER_OR_NULL, TEXT_OR_NULL, WHOLE_OR_NULL, Json, Reader, check
from ..errors import ReportError
from .report import MAX_BATCH, THROUGHPUT, Report

KIND = "bench"
# Increased by one whenever a key changes its meaning or goes away; new keys alone do not increase it.
SCHEMA = 1

Size = Literal["small", "full"]
CellOutcome = Literal["ok", "failed"]

_LOSS: Json = {"steps": int, "first": NUMBER, "largest": NUMBER}
_LOSSES: Json = {"steps": int, "diverged_at": WHOLE_OR_NULL, "message": TEXT_OR_NULL}
_REQUESTED: Json = {"model": str, "arm": str}
_SETTINGS: Json = {
    **dict.fromkeys(("memory_limit_bytes", "max_batch_size"), WHOLE_OR_NULL),
    "headroom": NUMBER,
    "threads": int,
}
_PROFILE: Json = {
    **THROUGHPUT,
    "recommended_batch_size": int,
    "measurements": [
        THROUGHPUT["measurements"][0]
        | {"joules_per_sample": NUMBER_OR_NULL, "watts": NUMBER_OR_NULL, "remarks": [str], "phases_s": dict}
    ],
}
# No size, time, speed or energy comes near this or its inverse, and quotients of values in between are finite. Assumed.
_LARGEST = 1e30

# Optional keys of a profile: a key that is missing or null was not measured.
_PROFILE_MAY_HOLD: Json = {
    "recommended": str,
    "fit": {"largest_residual": NUMBER_OR_NULL},
    "remedy": str,
    "warnings": [str],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model in one compute mode.

    Attributes:
        model: its name, such as "resnet50".
        compute_mode: its `ComputeMode.name`.
        outcome: "ok", or "failed" with the reason in `message`.
        parameters: how many numbers are trained.
        max_batch: `MaxBatch.to_json`; None if it failed.
        throughput: `ThroughputCurve.to_json`; None if it failed.
        flops_per_sample: floating-point operations of the matrix products and convolutions of one forward and backward
            pass, where a multiplication and an addition count as two; None if they could not be counted.
        flops_per_s: these operations per second, at the recommended batch size.
        matmul_flops_per_s: the speed of one large matrix product on this device in this precision.
        loss_difference: between the losses of the first `steps` training steps and those in fp32, relative to the
            latter: the `first`, and the `largest` of all; None for fp32 itself and if one of them failed.
        losses: `compute_modes.losses_to_json` of those steps: how many, the one at which the loss diverged, and why
            they are not compared; None if it failed, and in older reports.
        source: the digest of the task's file and the modules beside it that it imports (`task_sources.source_digest`);
            None in older reports.
        seconds: the time of all of it.
    """

    model: str
    compute_mode: str
    outcome: CellOutcome
    message: str | None = None
    parameters: int | None = None
    max_batch: Json | None = None
    throughput: Json | None = None
    flops_per_sample: float | None = None
    flops_per_s: float | None = None
    matmul_flops_per_s: float | None = None
    loss_difference: Json | None = None
    losses: Json | None = None
    source: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """The results of a device.

    Attributes:
        created: when it began, ISO 8601 in UTC.
        command: the command that made it.
        version: that of autobatch.
        device: the device.
        size: the models' size: "full" is their own, "small" one that a CPU can train.
        quick: whether each model got less time.
        objective: what the recommended batch sizes are best in.
        cells: one for each model and compute mode that is done, in the order in which they were run.
        planned: how many cells there will be. A report with fewer was interrupted, and can be resumed.
        warnings: what its readers should know.
        requested: the (model, compute mode) of each cell that the command requested. There may also be cells of other
            commands.
        settings: what else determines its figures: `memory_limit_bytes`, `max_batch_size` (null for no limit),
            `headroom`, and `threads` on the host; None in older reports.
    """

    created: str
    command: str
    version: str
    device: DeviceInfo
    size: Size
    quick: bool
    objective: str
    cells: tuple[Cell, ...]
    planned: int
    warnings: tuple[str, ...] = ()
    requested: tuple[tuple[str, str], ...] = ()
    settings: Json | None = None

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """The requested cells that are not there yet, for example because the command was stopped."""
        there = {(cell.model, cell.compute_mode) for cell in self.cells}
        return tuple(key for key in self.requested if key not in there)

    @property
    def found_nothing(self) -> bool:
        """Whether all requested cells are there, and failed."""
        cells = [cell for cell in self.cells if (cell.model, cell.compute_mode) in self.requested]
        return bool(cells) and not self.missing and all(cell.outcome == "failed" for cell in cells)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; `kind` and `schema` say how to read it."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "version": self.version,
            "created": self.created,
            "command": self.command,
            "device": device_to_json(self.device),
            "size": self.size,
            "quick": self.quick,
            "objective": self.objective,
            "planned": self.planned,
            "warnings": list(self.warnings),
            "asked": [{"model": model, "arm": compute_mode} for model, compute_mode in self.requested],
            "settings": None if self.settings is None else dict(self.settings),
            "cells": [_cell_to_json(cell) for cell in self.cells],
        }

    @classmethod
    def from_json(cls, data: object) -> BenchReport:
        """The report from `to_json`.

        Raises:
            ReportError: it is no such report, or has a schema that this version does not read.
        """
        found = Reader(data, "the report")
        if not is_bench(data):
            raise ReportError("the report is not one of `autobatch bench`: it has another `kind`")
        schema = found.get("schema", int)
        if schema != SCHEMA:
            raise ReportError(f"this version reads bench reports of schema {SCHEMA}; this one has schema {schema}")
        cells = found.get("cells", [dict])
        return cls(
            created=found.get("created", str),
            command=found.get("command", str),
            version=found.get("version", str),
            device=device_from_json(found.inside("device")),
            size=found.one_of("size", Size),
            quick=found.get("quick", bool),
            objective=found.get("objective", str),
            cells=tuple(_cell(cell, f"cell {number} of the report") for number, cell in enumerate(cells)),
            planned=found.get("planned", int),
            warnings=found.list_of("warnings", str),
            requested=tuple((one["model"], one["arm"]) for one in found.get_or_none("asked", [_REQUESTED]) or ()),
            settings=found.get_or_none("settings", _SETTINGS),
        )

    def save(self, path: Path) -> None:
        """Write the report as JSON, completely or not at all.

        Raises:
            ReportError: the file cannot be written.
        """
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> BenchReport:
        """The report in a file.

        Raises:
            ReportError: there is none, or it cannot be read.
        """
        return cls.from_json(load_json(path))


def _cell_to_json(cell: Cell) -> Json:
    return {"arm" if key == "compute_mode" else key: value for key, value in dataclasses.asdict(cell).items()}


def is_bench(data: object) -> bool:
    """Whether a JSON value declares itself a bench report."""
    return isinstance(data, dict) and data.get("kind") == KIND


def load_report(path: Path) -> Report | BenchReport:
    """The report in a file, of either kind, or in the folder of a run. Messages begin with the file's name.

    Raises:
        ReportError: there is none, or it cannot be read.
    """
    if path.is_dir():
        path = _of_run(path)
    data = load_json(path)
    if isinstance(data, dict) and data.get("kind", KIND) != KIND:
        raise ReportError(f'{path} is no report of "tune" or "bench": it is of kind {data["kind"]!r:.80}')
    try:
        return BenchReport.from_json(data) if is_bench(data) else Report.from_json(data)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def _of_run(folder: Path) -> Path:
    """The report of a run of `tune`, in its folder."""
    report = folder / "report.json"
    if not report.is_file():
        state = "a run that has none yet" if (folder / "run.json").is_file() else "no folder of a run"
        raise ReportError(f"{folder} cannot be read: Is a directory without a report.json, and so {state}")
    return report


def _cell(data: Json, where: str) -> Cell:
    found = Reader(data, where)
    outcome = found.one_of("outcome", CellOutcome)
    did_run = outcome == "ok"
    max_batch = found.get("max_batch", MAX_BATCH, or_null=not did_run)
    profiled = found.get("throughput", _PROFILE, or_null=not did_run)
    if max_batch is not None:
        _check_probes(max_batch, where)
    if profiled is not None:
        _check_profile(profiled, where)
    return Cell(
        model=found.get("model", str),
        compute_mode=found.get("arm", str),
        outcome=outcome,
        message=found.get("message", str, or_null=True),
        parameters=found.get("parameters", int, or_null=True),
        max_batch=max_batch,
        throughput=profiled,
        flops_per_sample=found.number_or_none("flops_per_sample"),
        flops_per_s=found.number_or_none("flops_per_s"),
        matmul_flops_per_s=found.number_or_none("matmul_flops_per_s"),
        loss_difference=found.get("loss_difference", _LOSS, or_null=True),
        losses=found.get_or_none("losses", _LOSSES),
        source=found.get_or_none("source", str),
        seconds=found.number("seconds"),
    )


def _check_probes(found: Json, where: str) -> None:
    """Refuse sizes that cannot be drawn or compared."""
    for number, probe in enumerate(found["probes"]):
        _check_ranges(probe, ("batch_size",), f"item {number} of 'probes' of {where}")
        if probe["peak_bytes"]:  # it may be zero if nothing counts it
            _check_ranges(probe, ("peak_bytes",), f"item {number} of 'probes' of {where}")
    _check_ranges(found, ("batch_size", "limit_bytes"), f"'max_batch' of {where}")


def _check_profile(profiled: Json, where: str) -> None:
    """Refuse such times, speeds and energies, and optional keys of the wrong shape."""
    for key, shape in _PROFILE_MAY_HOLD.items():
        if profiled.get(key) is not None:
            check(profiled[key], shape, f"{key!r} of {where}")
    for number, point in enumerate(profiled["measurements"]):
        place = f"item {number} of 'measurements' of {where}"
        _check_ranges(point, ("batch_size", "samples_per_s", "step_s"), place)
        if point["joules_per_sample"]:  # a counter may have stood still
            _check_ranges(point, ("joules_per_sample",), place)
        for phase, seconds in point["phases_s"].items():
            check(seconds, NUMBER, f"{phase!r} of 'phases_s' of {place}")
        interval = point.get("interval_s")
        if interval is not None:
            check(interval, [NUMBER], f"'interval_s' of {place}")
            if len(interval) != 2 or interval[0] > interval[1]:
                raise ReportError(f"'interval_s' of {place} is two numbers in order; found {interval!r:.80}")
            _check_ranges(dict(enumerate(interval)), (0, 1), f"'interval_s' of {place}")


def _check_ranges(found: Mapping[Any, Any], keys: Iterable[Any], where: str) -> None:
    for key in keys:
        if found[key] is not None and not 1 / _LARGEST <= found[key] <= _LARGEST:
            raise ReportError(f"{key!r} of {where} is above zero and at most {_LARGEST:g}; found {found[key]!r:.80}")
