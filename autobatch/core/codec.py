"""The core types as plain JSON values, and back: in one place for run folders, reports and recordings.

Every number survives to the last bit. A file may hold anything: an impossible value is a `ReportError` that names its
place.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any, get_type_hints

from ..errors import ReportError
from .facts import DeviceInfo, MemoryLimit
from .json_reader import NUMBER, NUMBER_OR_NULL, TEXT_OR_NULL, Reader
from .measurement import LrSweep, Measurement, Outcome
from .plan import Config, Plan, Precision
from .segment import GradNorms


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan, key by key."""
    return asdict(plan)


def plan_from_json(reader: Reader) -> Plan:
    """The plan that `plan_to_json` or `config_to_json` wrote.

    Raises:
        ReportError: the data is something else, or the plan cannot be run.
    """
    known: dict[str, Any] = {
        "batch_size": reader.get("batch_size", int),
        "accumulation_steps": reader.get("accumulation_steps", int),
        "precision": reader.one_of("precision", Precision),
        "ranks": reader.get("ranks", int) if "ranks" in reader else 1,  # earlier files have no such key
    }
    try:
        return Plan(**known)
    except ValueError as error:  # a Plan checks its numbers
        raise ReportError(f"{reader.where} cannot be: {error}") from None


def config_to_json(config: Config) -> dict[str, Any]:
    """A configuration, as the numbers to use in one's own training."""
    return {
        "batch_size": config.plan.batch_size,
        "accumulation_steps": config.plan.accumulation_steps,
        "ranks": config.plan.ranks,
        "effective_batch_size": config.plan.effective_batch_size,
        "lr": config.lr,
        "precision": config.plan.precision,
    }


def config_from_json(reader: Reader) -> Config:
    """The configuration that `config_to_json` wrote.

    Raises:
        ReportError: the data is something else, or cannot be trained with.
    """
    plan, lr = plan_from_json(reader), reader.number("lr")
    try:
        return Config(plan=plan, lr=lr)
    except ValueError as error:  # a Config checks its rate
        raise ReportError(f"{reader.where} cannot be: {error}") from None


def norms_from_json(reader: Reader) -> GradNorms:
    """The gradient norms of a segment, as a trial's JSON has them.

    Raises:
        ReportError: it is something else.
    """
    return GradNorms(
        median=reader.number("median"), largest=reader.number("largest"), clipped=reader.number_or_none("clipped")
    )


def device_to_json(device: DeviceInfo) -> dict[str, Any]:
    """A device, fact by fact; null for an unknown fact."""
    return asdict(device) | {"notes": list(device.notes)}


def device_from_json(reader: Reader) -> DeviceInfo:
    """The device that `device_to_json` wrote.

    Raises:
        ReportError: a fact is missing or has the wrong type.
    """
    names = {field.name for field in fields(DeviceInfo)} - {"kind", "notes"}
    texts = dict.fromkeys(("driver", "runtime", "torch", "python", "uuid"), TEXT_OR_NULL)
    kinds = {"name": str, "power_limit_w": NUMBER_OR_NULL} | texts
    known = {name: reader.get(name, kinds.get(name, (int, type(None)))) for name in sorted(names)}
    kind = reader.one_of("kind", get_type_hints(DeviceInfo)["kind"])
    return DeviceInfo(**known, kind=kind, notes=reader.list_of("notes", str))


def limit_to_json(limit: MemoryLimit) -> dict[str, Any]:
    """A memory limit, in bytes."""
    return asdict(limit)


def limit_from_json(reader: Reader) -> MemoryLimit:
    """The memory limit that `limit_to_json` wrote.

    Raises:
        ReportError: the data is something else.
    """
    return MemoryLimit(
        capacity_bytes=reader.get("capacity_bytes", int),
        budget_bytes=reader.get("budget_bytes", int),
        source=reader.get("source", str),
    )


def measurement_to_json(measurement: Measurement) -> dict[str, Any]:
    """A measurement, with sizes in bytes and times in seconds, without what was not measured."""
    measured = asdict(measurement)
    return {key: value for key, value in measured.items() if value is not None and value not in ((), {})}


def measurement_from_json(reader: Reader) -> Measurement:
    """The measurement that `measurement_to_json` wrote.

    Raises:
        ReportError: the data is something else.
    """
    known: dict[str, Any] = {
        key: reader.list_of(key, NUMBER) for key in ("step_s", "compute_s", "loader_s", "visits_s") if key in reader
    }
    sizes = ("peak_bytes", "allocated_bytes", "others_bytes", "alloc_retries")
    known |= {key: reader.get(key, int) for key in sizes if key in reader}
    known |= {key: reader.number(key) for key in ("joules", "watts") if key in reader}
    if "phases_s" in reader:
        phases = reader.inside("phases_s")
        known["phases_s"] = {part: phases.number(part) for part in reader.get("phases_s", dict)}
    if "remarks" in reader:
        known["remarks"] = reader.list_of("remarks", str)
    return Measurement(
        plan=plan_from_json(reader.inside("plan")),
        outcome=reader.one_of("outcome", Outcome),
        seconds=reader.number("seconds"),
        fresh=reader.get("fresh", bool),
        message=reader.get("message", str) if "message" in reader else None,
        **known,
    )


def sweep_to_json(sweep: LrSweep) -> dict[str, Any]:
    """A range test, step by step; null for a loss that is not finite, which JSON cannot hold."""
    return asdict(sweep) | {"losses": [loss if math.isfinite(loss) else None for loss in sweep.losses]}


def sweep_from_json(reader: Reader) -> LrSweep:
    """The range test that `sweep_to_json` wrote; NaN for a loss that was not finite.

    Raises:
        ReportError: the data is something else.
    """
    return LrSweep(
        plan=plan_from_json(reader.inside("plan")),
        lrs=reader.list_of("lrs", NUMBER),
        losses=tuple(math.nan if loss is None else loss for loss in reader.list_of("losses", NUMBER_OR_NULL)),
        diverged=reader.get("diverged", bool),
        seconds=reader.number("seconds"),
        without_schedule=bool(reader.get_or_none("without_schedule", bool)),  # earlier files have no such key
    )
