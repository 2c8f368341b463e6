"""Ways of computing one task, side by side: what `autobatch profile --precisions` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..units import format_size
from .document import Bullets, Column, Paragraph, Part, Section, Table
from .evidence import throughput_section
from .numbers import known, speed_text

Json = Mapping[str, Any]


def arms_sections(found: Json) -> tuple[Section, ...]:
    """The comparison, then each way of computing for itself.

    Args:
        found: as `arms.compared` gives it.
    """
    arms = found["arms"]
    ran = [arm for arm in arms if arm["outcome"] == "ok"]
    parts: list[Part] = [_table(arms, found["reference"])] if ran else []
    failed = [arm for arm in arms if arm["outcome"] != "ok"]
    if failed:
        parts.append(Bullets(items=tuple(f"{arm['arm']} failed: {arm['message']}" for arm in failed)))
    if any(arm["loss_difference"] for arm in arms):
        steps = max(arm["loss_difference"]["steps"] for arm in arms if arm["loss_difference"])
        parts.append(
            Paragraph(
                text=f"The loss is compared over {steps} steps from the same weights on the same batches, with that in "
                f"{found['reference']}, relative to it: of the first step, and the largest of all."
            )
        )
    each = [_titled(throughput_section(arm["throughput"]), arm["arm"]) for arm in ran]
    return (Section(title="Side by side", parts=tuple(parts)), *each)


def _titled(section: Section, arm: str) -> Section:
    return Section(title=f"{section.title} in {arm}", parts=section.parts)


def _table(arms: list[Json], reference: str) -> Table:
    base = next((_speed(arm) for arm in arms if arm["arm"] == reference and arm["outcome"] == "ok"), None)
    columns = (
        Column(title="computed in"),
        Column(title="largest batch", is_number=True),
        Column(title="best at", is_number=True),
        Column(title="samples/s", is_number=True),
        Column(title=f"x {reference}", is_number=True),
        Column(title="loss differs", is_number=True),
        Column(title="peak", is_number=True, optional=True),
        Column(title="J/sample", is_number=True, optional=True),
    )
    rows = tuple(_row(arm, base) for arm in arms)
    speeds = [_speed(arm) or 0.0 for arm in arms]
    fastest = max(speeds)
    return Table(columns=columns, rows=rows, bars=tuple(speed / fastest for speed in speeds) if fastest else ())


def _row(arm: Json, base: float | None) -> tuple[str, ...]:
    speed = _speed(arm)
    if speed is None:
        return (arm["arm"], "failed", *[""] * 6)
    joules = _at_best(arm)["joules_per_sample"]
    difference = arm["loss_difference"]
    return (
        arm["arm"],
        f"{arm['max_batch']['batch_size']:,}",
        f"{arm['throughput']['recommended_batch_size']:,}",
        speed_text(speed),
        "" if base is None else f"{speed / base:.2f}",
        "" if difference is None else f"{difference['first']:+.1e}, {difference['largest']:+.1e}",
        known(arm["max_batch"]["peak_bytes"], format_size, "-"),
        known(joules, lambda value: f"{value:.3g}", "-"),
    )


def _at_best(arm: Json) -> Json:
    best = arm["throughput"]["recommended_batch_size"]
    return next(point for point in arm["throughput"]["measurements"] if point["batch_size"] == best)


def _speed(arm: Json) -> float | None:
    return _at_best(arm)["samples_per_s"] if arm["outcome"] == "ok" else None
