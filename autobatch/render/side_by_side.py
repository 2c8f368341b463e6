"""Ways of computing one task, side by side: what `autobatch profile --precisions` says."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.json_reader import Json
from ..core.units import format_size
from .document import (
    Bullets,
    Column,
    Paragraph,
    Part,
    Section,
    Table,
)
from .evidence import (
    loss_differs,
    losses_told,
    or_more,
    throughput_section,
)
from .numbers import count_text, known, speed_text


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
    steps = {arm["arm"]: arm["loss_difference"]["steps"] for arm in arms if arm["loss_difference"]}
    if steps:
        most = max(steps.values())
        fewer = ", ".join(f"{count} in {arm}" for arm, count in steps.items() if count < most)
        over = count_text(most, "step") + (f" ({fewer})" if fewer else "")
        parts.append(
            Paragraph(
                text=f"The loss is compared over {over} from the same weights on the same batches, with that in "
                f"{found['reference']}, relative to it: of the first step, and the largest of all."
            )
        )
    remarks = [remark for arm in ran for remark in _remarks(arm, found["reference"])]
    if remarks:
        parts.append(Bullets(items=tuple(remarks)))
    each = [_titled(throughput_section(arm["throughput"]), arm["arm"]) for arm in ran]
    return (Section(title="Side by side", parts=tuple(parts)), *each)


def _remarks(arm: Json, reference: str) -> Iterator[str]:
    """What the column of the losses has no room for."""
    losses, difference = arm["losses"], arm["loss_difference"]
    for clause in losses_told(losses):
        yield f"In {arm['arm']} {clause}."
    if losses["diverged_at"] is not None and difference is not None:
        yield f"Before, the loss in {arm['arm']} {loss_differs(difference, reference)}."


def _loss_text(arm: Json) -> str:
    losses, difference = arm["losses"], arm["loss_difference"]
    if losses["diverged_at"] is not None:
        return f"diverged at step {losses['diverged_at']}"
    if difference is not None:
        return f"{difference['first']:+.1e}, {difference['largest']:+.1e}"
    return "unknown" if losses["message"] is not None else ""


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
    return (
        arm["arm"],
        f"{arm['max_batch']['batch_size']:,}{or_more(arm['max_batch'])}",
        f"{arm['throughput']['recommended_batch_size']:,}",
        speed_text(speed),
        "" if base is None else f"{speed / base:.2f}",
        _loss_text(arm),
        known(arm["max_batch"]["peak_bytes"], format_size, "-"),
        known(joules, lambda value: f"{value:.3g}", "-"),
    )


def _at_best(arm: Json) -> Json:
    best = arm["throughput"]["recommended_batch_size"]
    return next(point for point in arm["throughput"]["measurements"] if point["batch_size"] == best)


def _speed(arm: Json) -> float | None:
    return _at_best(arm)["samples_per_s"] if arm["outcome"] == "ok" else None
