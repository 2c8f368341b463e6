"""`BenchReport`: what a device did with models that everybody knows; as JSON and back.

It is data, as `Report` is: reading one executes nothing, and a file that is not a whole one of a known schema is
refused with what is wrong with it.
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
# Raised by one whenever a key changes its meaning or goes away; new keys alone do not raise it.
SCHEMA = 1

Size = Literal["small", "full"]
CellOutcome = Literal["ok", "failed"]

_LOSS: Json = {"steps": int, "first": NUMBER, "largest": NUMBER}
_LOSSES: Json = {"steps": int, "diverged_at": WHOLE_OR_NULL, "message": TEXT_OR_NULL}
_ASKED: Json = {"model": str, "arm": str}
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
# No size, time, speed or energy is near this or its inverse, and quotients of what lies between are numbers. Assumed.
_LARGEST = 1e30

# What a profile may hold besides: a key that is not there, or null, is what was not measured.
_PROFILE_MAY_HOLD: Json = {
    "recommended": str,
    "fit": {"largest_residual": NUMBER_OR_NULL},
    "remedy": str,
    "warnings": [str],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model computed in one way.

    Attributes:
        model: its name, such as "resnet50".
        compute_mode: how it was computed, as `ComputeMode.name` writes it.
        outcome: "ok", or "failed" with the reason in `message`.
        parameters: numbers that are trained.
        max_batch: as `MaxBatch.to_json` gives it; None where it failed.
        throughput: as `ThroughputCurve.to_json` gives it; None where it failed.
        flops_per_sample: floating-point operations of the matrix products and convolutions of one forward and backward
            pass, a multiplication and an addition counting two; None where they could not be counted.
        flops_per_s: of those, at the recommended batch size.
        matmul_flops_per_s: what one large matrix product reaches on this device in this precision.
        loss_difference: of the losses of the first `steps` training steps from those in fp32, relative to them: of the
            `first`, and the `largest` of all; None for fp32 itself and where one of them failed.
        losses: of those steps, as `compute_modes.told_of_losses` gives it: how many, the one at which the loss
            diverged, and why they are not compared; None where it failed, and in reports from before it was.
        source: what the task's file and the modules beside it that it imports held (`task_sources.source_digest`); None
            in reports from before it was.
        seconds: that all of it took.
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
    """What a device did.

    Attributes:
        created: when it began, ISO 8601 in UTC.
        command: how it was called.
        version: of autobatch.
        device: what it ran on.
        size: of the models: "full" is theirs, "small" one that a processor can train.
        quick: less time was given to each model.
        objective: what the recommended batch sizes are best in.
        cells: one for each model and way of computing that is done, in the order they were run.
        planned: how many there are to be; a report with fewer cells was interrupted, and can be resumed.
        warnings: what its readers should know.
        asked: (model, compute mode) of each cell that the command asked for. Cells of other commands may stand beside
            them.
        settings: what else decides its figures: `memory_limit_bytes`, `max_batch_size` (null for what is there),
            `headroom`, and `threads` on the host; None in reports from before it was.
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
    asked: tuple[tuple[str, str], ...] = ()
    settings: Json | None = None

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """What was asked for and is not there yet, as where the command was ended."""
        there = {(cell.model, cell.compute_mode) for cell in self.cells}
        return tuple(key for key in self.asked if key not in there)

    @property
    def found_nothing(self) -> bool:
        """Whether all that was asked for is there, and failed."""
        asked = [cell for cell in self.cells if (cell.model, cell.compute_mode) in self.asked]
        return bool(asked) and not self.missing and all(cell.outcome == "failed" for cell in asked)

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
            "asked": [{"model": model, "arm": compute_mode} for model, compute_mode in self.asked],
            "settings": None if self.settings is None else dict(self.settings),
            "cells": [_cell_to_json(cell) for cell in self.cells],
        }

    @classmethod
    def from_json(cls, data: object) -> BenchReport:
        """The report that `to_json` made `data` of.

        Raises:
            ReportError: it is not one, or of a schema that this version does not read.
        """
        found = Reader(data, "the report")
        if not is_bench(data):
            raise ReportError("the report is not one of `autobatch bench`: it has no kind that says so")
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
            asked=tuple((one["model"], one["arm"]) for one in found.get_or_none("asked", [_ASKED]) or ()),
            settings=found.get_or_none("settings", _SETTINGS),
        )

    def save(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all.

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
    """Whether a JSON value says of itself that it is a bench report."""
    return isinstance(data, dict) and data.get("kind") == KIND


def load_report(path: Path) -> Report | BenchReport:
    """The report in a file, whichever it is, or in the folder of a run; messages begin with the file's name.

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
    """Refuse sizes that a drawing or a comparison could not take."""
    for number, probe in enumerate(found["probes"]):
        _check_ranges(probe, ("batch_size",), f"item {number} of 'probes' of {where}")
        if probe["peak_bytes"]:  # where nothing counts it, it may be zero
            _check_ranges(probe, ("peak_bytes",), f"item {number} of 'probes' of {where}")
    _check_ranges(found, ("batch_size", "limit_bytes"), f"'max_batch' of {where}")


def _check_profile(profiled: Json, where: str) -> None:
    """The same for times, speeds and energies, and for the keys that need not be there."""
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
