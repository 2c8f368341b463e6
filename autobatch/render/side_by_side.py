"""One task in several compute modes, side by side: the result of `autobatch profile --precisions`."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.json_reader import Json
from ..core.units import format_size
from .document import Bullets, Column, Paragraph, Part, Section, Table
from .evidence import loss_clauses, loss_differs, or_more, throughput_section
from .numbers import count_text, known, speed_text


def compute_modes_sections(found: Json) -> tuple[Section, ...]:
    """The comparison, then each compute mode alone.

    Args:
        found: `compute_modes.compared`.
    """
    compute_modes = found["arms"]
    ran = [compute_mode for compute_mode in compute_modes if compute_mode["outcome"] == "ok"]
    parts: list[Part] = [_table(compute_modes, found["reference"])] if ran else []
    failed = [compute_mode for compute_mode in compute_modes if compute_mode["outcome"] != "ok"]
    if failed:
        parts.append(
            Bullets(items=tuple(f"{compute_mode['arm']} failed: {compute_mode['message']}" for compute_mode in failed))
        )
    steps = {
        compute_mode["arm"]: compute_mode["loss_difference"]["steps"]
        for compute_mode in compute_modes
        if compute_mode["loss_difference"]
    }
    if steps:
        most = max(steps.values())
        fewer = ", ".join(f"{count} in {compute_mode}" for compute_mode, count in steps.items() if count < most)
        over = count_text(most, "step") + (f" ({fewer})" if fewer else "")
        parts.append(
            Paragraph(
                text=f"The loss is compared over {over} from the same weights on the same batches, with that in "
                f"{found['reference']}, relative to it: for the first step, and the largest over all steps."
            )
        )
    remarks = [remark for compute_mode in ran for remark in _remarks(compute_mode, found["reference"])]
    if remarks:
        parts.append(Bullets(items=tuple(remarks)))
    each = [_titled(throughput_section(compute_mode["throughput"]), compute_mode["arm"]) for compute_mode in ran]
    return (Section(title="Side by side", parts=tuple(parts)), *each)


def _remarks(compute_mode: Json, reference: str) -> Iterator[str]:
    """Remarks for which the column of the losses has no room."""
    losses, difference = compute_mode["losses"], compute_mode["loss_difference"]
    for clause in loss_clauses(losses):
        yield f"In {compute_mode['arm']} {clause}."
    if losses["diverged_at"] is not None and difference is not None:
        yield f"Before, the loss in {compute_mode['arm']} {loss_differs(difference, reference)}."


def _loss_text(compute_mode: Json) -> str:
    losses, difference = compute_mode["losses"], compute_mode["loss_difference"]
    if losses["diverged_at"] is not None:
        return f"diverged at step {losses['diverged_at']}"
    if difference is not None:
        return f"{difference['first']:+.1e}, {difference['largest']:+.1e}"
    return "unknown" if losses["message"] is not None else ""


def _titled(section: Section, compute_mode: str) -> Section:
    return Section(title=f"{section.title} in {compute_mode}", parts=section.parts)


def _table(compute_modes: list[Json], reference: str) -> Table:
    base = next(
        (
            _speed(compute_mode)
            for compute_mode in compute_modes
            if compute_mode["arm"] == reference and compute_mode["outcome"] == "ok"
        ),
        None,
    )
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
    rows = tuple(_row(compute_mode, base) for compute_mode in compute_modes)
    speeds = [_speed(compute_mode) or 0.0 for compute_mode in compute_modes]
    fastest = max(speeds)
    return Table(columns=columns, rows=rows, bars=tuple(speed / fastest for speed in speeds) if fastest else ())


def _row(compute_mode: Json, base: float | None) -> tuple[str, ...]:
    speed = _speed(compute_mode)
    if speed is None:
        return (compute_mode["arm"], "failed", *[""] * 6)
    joules = _at_best(compute_mode)["joules_per_sample"]
    return (
        compute_mode["arm"],
        f"{compute_mode['max_batch']['batch_size']:,}{or_more(compute_mode['max_batch'])}",
        f"{compute_mode['throughput']['recommended_batch_size']:,}",
        speed_text(speed),
        "" if base is None else f"{speed / base:.2f}",
        _loss_text(compute_mode),
        known(compute_mode["max_batch"]["peak_bytes"], format_size, "-"),
        known(joules, lambda value: f"{value:.3g}", "-"),
    )


def _at_best(compute_mode: Json) -> Json:
    best = compute_mode["throughput"]["recommended_batch_size"]
    return next(point for point in compute_mode["throughput"]["measurements"] if point["batch_size"] == best)


def _speed(compute_mode: Json) -> float | None:
    return _at_best(compute_mode)["samples_per_s"] if compute_mode["outcome"] == "ok" else None
