"""A chart as inline SVG: lines with markers and intervals, drawn from its numbers alone.

The picture scales with its `viewBox`; colours are the page's (`currentColor` and classes), so that it is right in light
and dark.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import assert_never
from xml.etree.ElementTree import Element, SubElement, tostring

from ..core.units import format_duration, format_size
from .document import Chart, Point, Series, Unit
from .drawing import COLORS, LETTER, LINE, WIDTH, dashes, line_between, marker, overlap, picture, ring, say, write
from .numbers import lr_text, si_text, speed_text
from .scales import Scale, label_sizes, size_scale, tick_text, ticks, time_scale, time_ticks, value_scale

# Pixels of the viewBox.
_HEIGHT = 268.0
_LEFT, _TOP, _BOTTOM = 54.0, 34.0, 44.0

_FAILED = "did not fit"  # marks a size without a value


def svg(chart: Chart, name: str) -> str:
    """The chart as an `<svg>` element with a title and a description in words. `name` begins each of its ids.

    A chart without a point has only the words.
    """
    root = picture(name, _HEIGHT, chart.title, chart.finding)
    if any(series.points for series in chart.series):
        _Drawing(root, chart).draw()
    else:
        write(root, WIDTH / 2, _HEIGHT / 2, "nothing was measured", anchor="middle")
    return tostring(root, encoding="unicode")


@dataclass(slots=True)
class _Room:
    """The occupied parts of the plot, as boxes of (left, top, right, bottom)."""

    frame: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def place(self, text: str, spots: Iterable[tuple[float, float, str]]) -> tuple[float, float, str] | None:
        """The first spot (x, baseline, anchor) where the text hits nothing, which is then occupied; None if there is
        none.
        """
        for x, y, anchor in spots:
            width = LETTER * len(text)
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, y - 0.8 * LINE, left + width, y + 0.2 * LINE)
            inside = self.frame[0] <= box[0] and self.frame[1] <= box[1] and box[2] <= self.frame[2]
            if inside and box[3] <= self.frame[3] and not any(overlap(box, other) for other in self.taken):
                self.taken.append(box)
                return x, y, anchor
        return None

    def take_line(self, path: list[tuple[float, float]]) -> None:
        """Occupy a line in small boxes, so that text may be placed beside a steep one."""
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            steps = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / 4))
            for step in range(steps + 1):
                x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
                self.taken.append((x - 2, y - 2, x + 2, y + 2))


class _Drawing:
    """One chart while it is drawn into an element."""

    def __init__(self, root: Element, chart: Chart) -> None:
        self.root, self.chart = root, chart
        self.series = [series for series in chart.series if series.points]
        places = {x for series in self.series for x in (*(p.x for p in series.points), *series.failed)}
        values = [v for s in self.series for p in s.points for v in (p.value, p.low, p.high) if v is not None]
        if chart.level is not None:
            values.append(chart.level[1])
        if chart.within is not None:
            values = [*chart.within]
        self.places = sorted(places)
        self.right = WIDTH - max(10.0, LETTER * len(f"{self.places[-1]:.0f}") / 2)  # the last place is named there
        self.x: Scale = self._across(places)
        self.y: Scale = value_scale(values, _HEIGHT - _BOTTOM, _TOP, is_log=chart.is_log, unit=chart.unit)
        self.room = _Room(frame=(_LEFT, LINE, WIDTH, _HEIGHT - _BOTTOM))

    def _across(self, places: Iterable[float]) -> Scale:
        match self.chart.across:
            case "batch size":
                return size_scale(map(int, places), _LEFT, self.right)
            case "training time":
                return time_scale(places, _LEFT, self.right)
            case "learning rate":
                return value_scale([*places], _LEFT, self.right, is_log=True, unit="lr")
            case _:
                assert_never(self.chart.across)

    def draw(self) -> None:
        self._axes()
        level = self._level()
        for series in self.series:
            self._curve(series)
        # Words last: they go where there is no curve.
        if level is not None:
            self._name_level(level)
        for series in self.series:
            self._name(series)
        for series in self.series:
            self._name_marks(series)

    def _axes(self) -> None:
        grid = SubElement(self.root, "g", {"class": "axes"})
        bottom, right = _HEIGHT - _BOTTOM, self.right
        for value in ticks(self.y, self.chart.unit):
            y = self.y(value)
            SubElement(grid, "line", line_between(_LEFT, y, right, y) | {"class": "grid"})
            write(grid, _LEFT - 6, y + 4, tick_text(value, self.chart.unit), anchor="end")
        SubElement(grid, "line", line_between(_LEFT, bottom, right, bottom))
        if self.chart.across == "batch size":
            sizes = [int(size) for size in self.places]
            marked = [int(size) for series in self.series for _, size in reversed(series.marks)]
            labels: list[tuple[float, str]] = [(size, str(size)) for size in label_sizes(sizes, self.x, marked, LETTER)]
            notches: list[float] = [*sizes]
        elif self.chart.across == "learning rate":
            notches = ticks(self.x, "lr")
            labels = [(rate, lr_text(rate, 2)) for rate in notches]
        else:
            notches = time_ticks(self.x)
            labels = [(seconds, _clock_text(seconds)) for seconds in notches]
        for place in notches:
            SubElement(grid, "line", line_between(self.x(place), bottom, self.x(place), bottom + 4))
        for place, label in labels:
            write(grid, self.x(place), bottom + 17, label, anchor="middle")
        across = self.chart.across + ("" if self.chart.across == "training time" else ", log scale")
        write(grid, (_LEFT + right) / 2, _HEIGHT - 7, across, anchor="middle")
        scale = ", log scale" if self.chart.is_log else ""
        write(grid, 4, 12, f"{_NAMES[self.chart.unit]}{scale}", anchor="start")

    def _level(self) -> float | None:
        """Draw the level's line. Returns its pixel; None if there is no level."""
        if self.chart.level is None:
            return None
        y, right = self.y(self.chart.level[1]), self.right
        SubElement(self.root, "line", line_between(_LEFT, y, right, y) | {"class": "level"})
        self.room.take_line([(_LEFT, y), (right, y)])
        return y

    def _name_level(self, y: float) -> None:
        assert self.chart.level is not None, "it has a line"
        word, value = self.chart.level
        is_said = self.chart.unit in ("times", "score")
        text = word if is_said else f"{word} {_value_text(value, self.chart.unit)}"
        ends = ((_LEFT + 4, "start"), (self.right, "end"))
        spot = self.room.place(text, [(x, y + up, anchor) for x, anchor in ends for up in (-6, 15)])
        if spot is not None:
            write(self.root, spot[0], spot[1], text, anchor=spot[2])

    def _curve(self, series: Series) -> None:
        faint = " faint" if series.is_faint else ""
        group = SubElement(self.root, "g", {"class": f"series-{series.slot % COLORS}{faint}"})
        path = [(self.x(p.x), self.y(p.value)) for p in series.points]
        if len(path) > 1 and series.is_line:
            self.room.take_line(path)
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
            SubElement(group, "polyline", {"points": points, "class": "curve"} | dashes(series.slot))
        else:
            for place in path:
                self.room.take_line([place] * 2)
        for size in series.failed:
            mark = SubElement(group, "g", {"class": "failed"})
            say(mark, "title", f"{series.name}, {self._place(size)}: did not fit")
            ring(mark, _FAILED, self.x(size), _HEIGHT - _BOTTOM - 8)  # it has no value: it lies on the axis
        for point, (x, y) in zip(series.points, path, strict=True):
            dot = SubElement(group, "g", {"class": "point"})
            if point.weight < 1:
                dot.set("opacity", f"{point.weight:.2f}")
            words = [word for word, place in series.marks if place == point.x]
            say(dot, "title", self._told(series, point, words))
            if point.low is not None and point.high is not None:
                self._whisker(dot, x, point.low, point.high)
            marker(dot, series.slot, x, y)
            for word in words:
                ring(dot, word, x, y)

    def _place(self, x: float) -> str:
        """Where a point is, in words."""
        match self.chart.across:
            case "batch size":
                return f"batch {x:.0f}"
            case "training time":
                return f"after {format_duration(x)}"
            case "learning rate":
                return f"learning rate {lr_text(x)}"
            case _:
                assert_never(self.chart.across)

    def _told(self, series: Series, point: Point, words: list[str]) -> str:
        """What a pointer over a point is told."""
        unit = self.chart.unit
        text = f"{series.name}, {self._place(point.x)}: {_value_text(point.value, unit)}"
        if point.low is not None and point.high is not None:
            text += f", 95 % interval {_value_text(point.low, unit)} to {_value_text(point.high, unit)}"
        return ", ".join([text, *filter(None, (point.note,)), *words])

    def _whisker(self, parent: Element, x: float, low: float, high: float) -> None:
        """The interval, as an upright line with a foot at each end."""
        bottom, top = self.y(low), self.y(high)
        self.room.take_line([(x, bottom), (x, top)])
        d = f"M{x - 3:.1f} {bottom:.1f}h6M{x - 3:.1f} {top:.1f}h6M{x:.1f} {bottom:.1f}V{top:.1f}"
        SubElement(parent, "path", {"d": d, "class": "interval"})

    def _name(self, series: Series) -> None:
        """The name at the end of the curve, if there are several curves and it fits."""
        if len(self.series) < 2:
            return
        last = series.points[-1]
        if not series.is_line or series.is_faint:
            return
        x, y = self.x(last.x), self.y(last.value)
        edge = min(x + LETTER * len(series.name) / 2, WIDTH - 2)
        spot = self.room.place(
            series.name,
            [(edge, y - 10, "end"), (edge, y + 18, "end"), (x - 10, y - 10, "end"), (x - 10, y + 18, "end")],
        )
        if spot is not None:
            group = SubElement(self.root, "g", {"class": f"series-{series.slot % COLORS}"})
            write(group, spot[0], spot[1], series.name, anchor=spot[2])

    def _name_marks(self, series: Series) -> None:
        """The knee with its batch size in words; the other marks are in the legend."""
        at = {point.x: point for point in series.points}
        for word, size in series.marks:
            if word != "knee":
                continue
            x, y, text = self.x(size), self.y(at[size].value), f"knee {size:.0f}"
            spots = [(x - 9, y - 8, "end"), (x + 9, y + 16, "start"), (x, y - 13, "middle"), (x, y + 22, "middle")]
            spot = self.room.place(text, spots)
            if spot is not None:
                group = SubElement(self.root, "g", {"class": f"series-{series.slot % COLORS}"})
                write(group, spot[0], spot[1], text, anchor=spot[2])


_NAMES: dict[Unit, str] = {
    "samples/s": "samples per second",
    "bytes": "peak memory",
    "J": "joules per sample",
    "times": "times the first",
    "score": "validation score",
    "loss": "smoothed loss",
    "lr": "learning rate",
}


def _value_text(value: float, unit: Unit) -> str:
    match unit:
        case "bytes":
            return format_size(value)
        case "J":
            return si_text(value, "J")
        case "times":
            return f"{value:.4g} times"
        case "score" | "loss":
            return f"{value:.5g}"
        case "lr":
            return lr_text(value)
        case "samples/s":
            return f"{speed_text(value)} samples/s"
        case _:
            assert_never(unit)


def _clock_text(seconds: float) -> str:
    """A tick of seconds: `0`, `0.5 s`, `20 s`, `5 min`, `2 h`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.3g} h"
    if seconds >= 120:
        return f"{seconds / 60:.3g} min"
    return f"{seconds:.3g} s" if seconds else "0"


def marks_of(chart: Chart) -> Iterator[str]:
    """The words of the chart's marks, each once, for the legend."""
    words = [word for series in chart.series for word, _ in series.marks]
    failures = [_FAILED] if any(series.failed for series in chart.series) else []
    yield from dict.fromkeys([*words, *failures])
