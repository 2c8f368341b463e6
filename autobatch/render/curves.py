"""A model's curves as charts: throughput, memory and energy over batch sizes, with one series for each compute mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..core.json_reader import Json
from ..core.units import format_size
from ..reports.bench_report import Cell
from .document import Chart, Column, Point, Series, Table
from .numbers import si_text, speed_text

# Series whose levels differ by more than this factor are drawn on a logarithmic scale: on a linear one the lowest would
# lie on the axis. Assumed.
_FAR_APART = 20.0


def charts_of(model: str, cells: Sequence[Cell], slots: Mapping[str, int]) -> tuple[Chart, ...]:
    """The charts of one model: throughput, memory and energy, each if some of it was measured.

    Args:
        model: its name.
        cells: those of this model.
        slots: the position of each compute mode among all of the report.
    """
    drawn = (_throughput(model, cells, slots), _memory(model, cells, slots), _energy(model, cells, slots))
    return tuple(chart for chart in drawn if chart.series)


def recommended_point(profiled: Json) -> Json | None:
    """The measurement at the recommended batch size; None if it has no time."""
    size = profiled["recommended_batch_size"]
    timed = (point for point in profiled["measurements"] if point["samples_per_s"] is not None)
    return next((point for point in timed if point["batch_size"] == size), None)


def _throughput(model: str, cells: Sequence[Cell], slots: Mapping[str, int]) -> Chart:
    series, found = [], []
    for cell in cells:
        if cell.throughput is None:
            continue
        points = tuple(speed_point(point) for point in by_size(cell.throughput) if point["samples_per_s"] is not None)
        at_knee, best = cell.throughput["knee_batch_size"], cell.throughput["recommended_batch_size"]
        series += _series(cell, slots, points, (("knee", at_knee), ("recommended", best)))
        for point in (point for point in points if point.x == best):
            found.append(
                f"{cell.compute_mode} does {speed_text(point.value)} samples/s at batch {best}, its knee is {at_knee}"
            )
    return Chart(
        title="Throughput",
        finding=_sentence(found),
        unit="samples/s",
        series=tuple(series),
        is_log=_far_apart([max(point.value for point in one.points) for one in series]),
        table=series_table(f"{model}: samples per second, with 95 % intervals", series, _speed_text),
    )


def _memory(model: str, cells: Sequence[Cell], slots: Mapping[str, int]) -> Chart:
    series, found, limits = [], [], set()
    for cell in cells:
        if cell.max_batch is None:
            continue
        largest = cell.max_batch["batch_size"]
        ended = {probe["batch_size"]: probe for probe in cell.max_batch["probes"]}  # the last run of a size counts
        peaks = {s: p["peak_bytes"] for s, p in ended.items() if p["outcome"] == "ok" and (p["peak_bytes"] or 0) > 0}
        points = tuple(Point(x=size, value=float(peak)) for size, peak in sorted(peaks.items()))
        failed = sorted(size for size, probe in ended.items() if probe["outcome"] != "ok")
        series += _series(cell, slots, points, (("largest", largest),), tuple(failed))
        limits.add(cell.max_batch["limit_bytes"])
        if peaks.get(largest):
            which = "the largest" if cell.max_batch["limited_by"] == "memory" else "the largest that was tried"
            found.append(f"{cell.compute_mode} peaks at {format_size(peaks[largest])} at batch {largest}, {which}")
    return Chart(
        title="Peak memory",
        finding=_sentence(found),
        unit="bytes",
        series=tuple(series),
        is_log=True,  # what is in proportion to the batch is a straight line then, what is fixed a level one
        level=limit_level(limits),
        table=series_table(f"{model}: peak memory of a training step", series, lambda point: format_size(point.value)),
    )


def _energy(model: str, cells: Sequence[Cell], slots: Mapping[str, int]) -> Chart:
    series, found = [], []
    for cell in cells:
        if cell.throughput is None:
            continue
        known = [point for point in by_size(cell.throughput) if (point["joules_per_sample"] or 0) > 0]
        points = tuple(Point(x=p["batch_size"], value=p["joules_per_sample"]) for p in known)
        series += _series(cell, slots, points, (("recommended", cell.throughput["recommended_batch_size"]),))
        if points:
            least = min(points, key=lambda point: point.value)
            found.append(f"{cell.compute_mode} takes {si_text(least.value, 'J')} at least, at batch {least.x}")
    values = [point.value for one in series for point in one.points]
    return Chart(
        title="Energy per sample",
        finding=_sentence(found),
        unit="J",
        series=tuple(series),
        is_log=_far_apart(values),
        table=series_table(f"{model}: energy per sample", series, lambda point: si_text(point.value, "J")),
    )


def by_size(profiled: Json) -> list[Json]:
    """The measurements of a profile, by batch size."""
    return sorted(profiled["measurements"], key=lambda point: point["batch_size"])


def speed_point(point: Json) -> Point:
    """Samples per second; the ends of the interval of the step time change places."""
    low, high = point.get("interval_s") or (None, None)
    size = point["batch_size"]
    return Point(
        x=size,
        value=point["samples_per_s"],
        low=None if high is None else size / high,
        high=None if low is None else size / low,
    )


def _series(
    cell: Cell,
    slots: Mapping[str, int],
    points: tuple[Point, ...],
    marks: tuple[tuple[str, int], ...],
    failed: tuple[int, ...] = (),
) -> list[Series]:
    """The series of a cell, as a list that is empty where it has no point."""
    sizes = {point.x for point in points}
    kept = tuple((word, size) for word, size in marks if size in sizes)
    made = Series(name=cell.compute_mode, slot=slots[cell.compute_mode], points=points, marks=kept, failed=failed)
    return [made] if points else []


def limit_level(limits: set[float | None]) -> tuple[str, float] | None:
    """The memory that may be used, where it is known and the same for all."""
    known = [limit for limit in limits if limit is not None and limit > 0]
    return ("limit", known[0]) if len(limits) == len(known) == 1 else None


def series_table(caption: str, series: Iterable[Series], write: Callable[[Point], str]) -> Table:
    """A row for each batch size and a column for each series, with marks after the values."""
    series = tuple(series)
    sizes = sorted({size for one in series for size in (*(point.x for point in one.points), *one.failed)})
    columns = [Column(title="batch", is_number=True)]
    rows = [[str(size)] for size in sizes]
    for one in series:
        columns += [Column(title=one.name, is_number=True), Column(title="")]
        at = {point.x: point for point in one.points}
        for row, size in zip(rows, sizes, strict=True):
            value = write(at[size]) if size in at else "did not fit" if size in one.failed else "-"
            row += [value, ", ".join(word for word, marked in one.marks if marked == size)]
    return Table(columns=tuple(columns), rows=tuple(tuple(row) for row in rows), caption=caption)


def _speed_text(point: Point) -> str:
    if point.low is None or point.high is None:
        return speed_text(point.value)
    return f"{speed_text(point.value)} ({speed_text(point.low)} to {speed_text(point.high)})"


def _far_apart(values: Sequence[float]) -> bool:
    return bool(values) and max(values) > _FAR_APART * min(values)


def _sentence(found: Sequence[str]) -> str:
    return f"{'; '.join(found)}." if found else ""
