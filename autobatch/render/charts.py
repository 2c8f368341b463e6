"""A chart as inline SVG: lines with markers and intervals, drawn by the numbers in it and nothing else.

The picture scales with its `viewBox`; colours are the page's (`currentColor` and classes), so that it is right in light
and dark. What an element says is set through ElementTree, which escapes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import assert_never
from xml.etree.ElementTree import Element, SubElement, tostring

from ..core.units import format_size
from .document import Chart, Point, Series, Unit, visible
from .numbers import si_text, speed_text
from .scales import Scale, label_sizes, size_scale, tick_text, ticks, value_scale

# Pixels of the viewBox: as wide as a chart is on a telephone, for its letters of 12 to be readable there.
_WIDTH, _HEIGHT = 360.0, 268.0
_LEFT, _TOP, _BOTTOM = 54.0, 34.0, 44.0
_LETTER = 6.9  # width of a letter at 12 pixels: that of the digits of a wide system font (DejaVu Sans, Verdana)
_LINE = 14.0  # height of a line of such letters

_FAILED = "did not fit"  # marks a size without a value

COLORS = 8  # that a page defines, as --series-0 to --series-7
_DASHES = ("", "7 3", "2 3", "10 3 2 3", "5 2 1 2")
_SHAPES = ("circle", "square", "triangle", "wedge", "cross")
# Eight colours and five shapes have no common divisor: 40 slots look different.


def svg(chart: Chart, name: str) -> str:
    """The chart as an `<svg>` element whose title and description are in words; `name` begins each of its ids.

    Where the chart has no point, only its words are drawn.
    """
    root = Element("svg", viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}", role="img")
    root.set("class", "chart")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    _say(root, "title", chart.title, id=f"{name}-title")
    _say(root, "desc", chart.finding or "Nothing was measured.", id=f"{name}-desc")
    if any(series.points for series in chart.series):
        _Drawing(root, chart).draw()
    else:
        _text(root, _WIDTH / 2, _HEIGHT / 2, "nothing was measured", anchor="middle")
    return tostring(root, encoding="unicode")


def swatch(slot: int) -> str:
    """What a series looks like, for the legend."""
    root = Element("svg", viewBox="0 0 34 14", width="34", height="14")
    root.set("aria-hidden", "true")
    root.set("class", f"series-{slot % COLORS}")
    SubElement(root, "line", _line(1, 7, 33, 7) | _dashes(slot))
    _marker(root, slot, 17, 7)
    return tostring(root, encoding="unicode")


def mark_swatch(word: str) -> str:
    """What a mark looks like, for the legend."""
    root = Element("svg", viewBox="0 0 20 20", width="20", height="20")
    root.set("aria-hidden", "true")
    root.set("class", "mark")
    _ring(root, word, 10, 10)
    return tostring(root, encoding="unicode")


@dataclass(slots=True)
class _Room:
    """What of the plot is taken, as boxes of (left, top, right, bottom)."""

    frame: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def place(self, text: str, spots: Iterable[tuple[float, float, str]]) -> tuple[float, float, str] | None:
        """The first spot (x, baseline, anchor) where the text hits nothing, which is then taken; None if none is."""
        for x, y, anchor in spots:
            width = _LETTER * len(text)
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, y - 0.8 * _LINE, left + width, y + 0.2 * _LINE)
            inside = self.frame[0] <= box[0] and self.frame[1] <= box[1] and box[2] <= self.frame[2]
            if inside and box[3] <= self.frame[3] and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                return x, y, anchor
        return None

    def take_line(self, path: list[tuple[float, float]]) -> None:
        """A line is taken in small boxes, so that text may lie beside a steep one."""
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            steps = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / 4))
            for step in range(steps + 1):
                x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
                self.taken.append((x - 2, y - 2, x + 2, y + 2))


class _Drawing:
    """One chart on its way into an element."""

    def __init__(self, root: Element, chart: Chart) -> None:
        self.root, self.chart = root, chart
        self.series = [series for series in chart.series if series.points]
        sizes = {size for series in self.series for size in (*(p.batch_size for p in series.points), *series.failed)}
        values = [v for s in self.series for p in s.points for v in (p.value, p.low, p.high) if v is not None]
        if chart.level is not None:
            values.append(chart.level[1])
        self.sizes = sorted(sizes)
        self.right = _WIDTH - max(10.0, _LETTER * len(str(self.sizes[-1])) / 2)  # the last size is named there
        self.x: Scale = size_scale(sizes, _LEFT, self.right)
        self.y: Scale = value_scale(values, _HEIGHT - _BOTTOM, _TOP, is_log=chart.is_log, unit=chart.unit)
        self.room = _Room(frame=(_LEFT, _LINE, _WIDTH, _HEIGHT - _BOTTOM))

    def draw(self) -> None:
        self._axes()
        level = self._level()
        for series in self.series:
            self._curve(series)
        # Words last: they go where no curve is.
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
            SubElement(grid, "line", _line(_LEFT, y, right, y) | {"class": "grid"})
            _text(grid, _LEFT - 6, y + 4, tick_text(value, self.chart.unit), anchor="end")
        SubElement(grid, "line", _line(_LEFT, bottom, right, bottom))
        marked = [size for series in self.series for word, size in reversed(series.marks)]
        for size in self.sizes:
            SubElement(grid, "line", _line(self.x(size), bottom, self.x(size), bottom + 4))
        for size in label_sizes(self.sizes, self.x, marked, _LETTER):
            _text(grid, self.x(size), bottom + 17, str(size), anchor="middle")
        _text(grid, (_LEFT + right) / 2, _HEIGHT - 7, "batch size, log scale", anchor="middle")
        scale = ", log scale" if self.chart.is_log else ""
        _text(grid, 4, 12, f"{_NAMES[self.chart.unit]}{scale}", anchor="start")

    def _level(self) -> float | None:
        """The level's line; its pixel, None where there is none."""
        if self.chart.level is None:
            return None
        y, right = self.y(self.chart.level[1]), self.right
        SubElement(self.root, "line", _line(_LEFT, y, right, y) | {"class": "level"})
        self.room.take_line([(_LEFT, y), (right, y)])
        return y

    def _name_level(self, y: float) -> None:
        assert self.chart.level is not None, "it has a line"
        word, value = self.chart.level
        text = word if self.chart.unit == "times" else f"{word} {_value_text(value, self.chart.unit)}"
        ends = ((_LEFT + 4, "start"), (self.right, "end"))
        spot = self.room.place(text, [(x, y + up, anchor) for x, anchor in ends for up in (-6, 15)])
        if spot is not None:
            _text(self.root, spot[0], spot[1], text, anchor=spot[2])

    def _curve(self, series: Series) -> None:
        group = SubElement(self.root, "g", {"class": f"series-{series.slot % COLORS}"})
        path = [(self.x(p.batch_size), self.y(p.value)) for p in series.points]
        self.room.take_line(path if len(path) > 1 else path * 2)
        if len(path) > 1:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
            SubElement(group, "polyline", {"points": points, "class": "curve"} | _dashes(series.slot))
        for size in series.failed:
            cross = SubElement(group, "g", {"class": "failed"})
            _say(cross, "title", f"{series.name}, batch {size}: did not fit")
            _ring(cross, _FAILED, self.x(size), _HEIGHT - _BOTTOM - 8)  # it has no value: it lies on the axis
        for point, (x, y) in zip(series.points, path, strict=True):
            dot = SubElement(group, "g", {"class": "point"})
            words = [word for word, size in series.marks if size == point.batch_size]
            _say(dot, "title", _told(series, point, words, self.chart.unit))
            if point.low is not None and point.high is not None:
                self._whisker(dot, x, point.low, point.high)
            _marker(dot, series.slot, x, y)
            for word in words:
                _ring(dot, word, x, y)

    def _whisker(self, parent: Element, x: float, low: float, high: float) -> None:
        """The interval, as an upright line with a foot at each end."""
        bottom, top = self.y(low), self.y(high)
        self.room.take_line([(x, bottom), (x, top)])
        d = f"M{x - 3:.1f} {bottom:.1f}h6M{x - 3:.1f} {top:.1f}h6M{x:.1f} {bottom:.1f}V{top:.1f}"
        SubElement(parent, "path", {"d": d, "class": "interval"})

    def _name(self, series: Series) -> None:
        """The name at the end of the curve, where several are to be told apart and it fits."""
        if len(self.series) < 2:
            return
        last = series.points[-1]
        x, y = self.x(last.batch_size), self.y(last.value)
        edge = min(x + _LETTER * len(series.name) / 2, _WIDTH - 2)
        spot = self.room.place(
            series.name,
            [(edge, y - 10, "end"), (edge, y + 18, "end"), (x - 10, y - 10, "end"), (x - 10, y + 18, "end")],
        )
        if spot is not None:
            group = SubElement(self.root, "g", {"class": f"series-{series.slot % COLORS}"})
            _text(group, spot[0], spot[1], series.name, anchor=spot[2])

    def _name_marks(self, series: Series) -> None:
        """The knee with its batch size in words; the other marks are in the legend."""
        at = {point.batch_size: point for point in series.points}
        for word, size in series.marks:
            if word != "knee":
                continue
            x, y, text = self.x(size), self.y(at[size].value), f"knee {size}"
            spots = [(x - 9, y - 8, "end"), (x + 9, y + 16, "start"), (x, y - 13, "middle"), (x, y + 22, "middle")]
            spot = self.room.place(text, spots)
            if spot is not None:
                group = SubElement(self.root, "g", {"class": f"series-{series.slot % COLORS}"})
                _text(group, spot[0], spot[1], text, anchor=spot[2])


_NAMES: dict[Unit, str] = {
    "samples/s": "samples per second",
    "bytes": "peak memory",
    "J": "joules per sample",
    "times": "times the first",
}


def _value_text(value: float, unit: Unit) -> str:
    match unit:
        case "bytes":
            return format_size(value)
        case "J":
            return si_text(value, "J")
        case "times":
            return f"{value:.4g} times"
        case "samples/s":
            return f"{speed_text(value)} samples/s"
        case _:
            assert_never(unit)


def _told(series: Series, point: Point, words: list[str], unit: Unit) -> str:
    """What a pointer over a point is told."""
    text = f"{series.name}, batch {point.batch_size}: {_value_text(point.value, unit)}"
    if point.low is not None and point.high is not None:
        text += f", 95 % interval {_value_text(point.low, unit)} to {_value_text(point.high, unit)}"
    return ", ".join([text, *words])


def _marker(parent: Element, slot: int, x: float, y: float) -> None:
    match _SHAPES[slot % len(_SHAPES)]:
        case "circle":
            SubElement(parent, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3.2", "class": "marker"})
        case "square":
            shape = {"x": f"{x - 3:.1f}", "y": f"{y - 3:.1f}", "width": "6", "height": "6", "class": "marker"}
            SubElement(parent, "rect", shape)
        case "triangle":
            SubElement(parent, "path", {"d": f"M{x - 3.8:.1f} {y + 3:.1f}h7.6l-3.8 -6.8z", "class": "marker"})
        case "wedge":
            SubElement(parent, "path", {"d": f"M{x - 3.8:.1f} {y - 3:.1f}h7.6l-3.8 6.8z", "class": "marker"})
        case _:
            _cross(parent, x, y, 3.0)


def _cross(parent: Element, x: float, y: float, half: float) -> None:
    d = f"M{x - half:.1f} {y - half:.1f}l{2 * half} {2 * half}m0 {-2 * half}l{-2 * half} {2 * half}"
    SubElement(parent, "path", {"d": d, "class": "cross"})


def _ring(parent: Element, word: str, x: float, y: float) -> None:
    """What marks a point: a diamond around the knee, a circle around what is recommended, a square for the rest."""
    if word == "knee":
        SubElement(parent, "path", {"d": f"M{x:.1f} {y - 9:.1f}l9 9l-9 9l-9 -9z", "class": "ring"})
    elif word == "recommended":
        SubElement(parent, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "7", "class": "ring"})
    elif word == "largest":
        shape = {"x": f"{x - 6.5:.1f}", "y": f"{y - 6.5:.1f}", "width": "13", "height": "13", "class": "ring"}
        SubElement(parent, "rect", shape)
    else:
        _cross(parent, x, y, 4.5)


def _line(x0: float, y0: float, x1: float, y1: float) -> dict[str, str]:
    return {"x1": f"{x0:.1f}", "y1": f"{y0:.1f}", "x2": f"{x1:.1f}", "y2": f"{y1:.1f}"}


def _dashes(slot: int) -> dict[str, str]:
    dashes = _DASHES[slot % len(_DASHES)]
    return {"stroke-dasharray": dashes} if dashes else {}


def _text(parent: Element, x: float, y: float, text: str, *, anchor: str) -> None:
    _say(parent, "text", text, x=f"{x:.1f}", y=f"{y:.1f}", **{"text-anchor": anchor})


def _say(parent: Element, tag: str, text: str, **attributes: str) -> None:
    SubElement(parent, tag, attributes).text = visible(text)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def marks_of(chart: Chart) -> Iterator[str]:
    """The words that mark something in it, each once, for the legend."""
    words = [word for series in chart.series for word, _ in series.marks]
    failures = [_FAILED] if any(series.failed for series in chart.series) else []
    yield from dict.fromkeys([*words, *failures])
