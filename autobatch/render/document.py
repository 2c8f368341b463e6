"""A document as data: its content in order. Renderers draw it, and choose nothing."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

# Categories of characters on which a terminal or a reader would act instead of showing them: control codes, invisible
# format characters (some of which turn the reading direction), lone surrogates, line and paragraph separators.
_ACTED_ON = ("Cc", "Cf", "Cs", "Zl", "Zp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """A few sentences."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Lines to be typed as they are; never text from outside."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names with their values."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        is_number: whether it is aligned to the right.
        optional: whether it is left out if there is no room. The last such column goes first.
    """

    title: str
    is_number: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text.

    Attributes:
        columns, rows: each row has a cell for each column.
        bars: one share in [0, 1] for each row, to be drawn as a bar behind it; empty for no bars. They repeat a column,
            so a renderer may leave them out.
        caption: what the table shows; empty if the heading above it says so.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    bars: tuple[float, ...] = ()
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value at a place on the axis across, and between what it lies where that is known.

    Attributes:
        x: where, such as a batch size.
        value, low, high: in the chart's unit.
        weight: how strongly it is drawn, from 0 to 1.
        note: what else a pointer over it is told.
    """

    x: float
    value: float
    low: float | None = None
    high: float | None = None
    weight: float = 1.0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend, where each pair of a name and a slot stands once.
        slot: tells it from the others by colour, marker and dashes; a name has one slot all through a document.
        points: from left to right.
        marks: a word for the place of a point, such as "knee".
        failed: places that did not run; they have no value.
        is_line: whether its points follow one another.
        is_faint: whether it is one of many, behind the others.
    """

    name: str
    slot: int
    points: tuple[Point, ...]
    marks: tuple[tuple[str, float], ...] = ()
    failed: tuple[float, ...] = ()
    is_line: bool = True
    is_faint: bool = False


Unit = Literal["samples/s", "bytes", "J", "times", "score", "loss", "lr"]
Across = Literal["batch size", "training time", "learning rate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Values over batch sizes, or over something else.

    Attributes:
        title: what is drawn.
        finding: what the chart shows, in words. It replaces the chart where nothing can be drawn.
        unit: of the values.
        series: at least one.
        table: the same values as rows.
        is_log: the values are drawn on a logarithmic scale.
        level: a value to be drawn across the whole chart, and what it is; None for none.
        across: what lies across, sizes and rates on a logarithmic scale, a time in seconds.
        within: the values that the scale reaches to; what lies beyond is drawn at its edge. None for all.
    """

    title: str
    finding: str
    unit: Unit
    series: tuple[Series, ...]
    table: Table
    is_log: bool = False
    level: tuple[str, float] | None = None
    across: Across = "batch size"
    within: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean, the ends of its interval where they are known, and what it is the mean of."""

    name: str
    slot: int
    mean: float
    low: float | None
    high: float | None
    singles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Means below one another, with their intervals, on one axis of scores; `table` has the same as rows."""

    title: str
    finding: str
    estimates: tuple[Estimate, ...]
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Parts of a whole as one bar, in their order; `table` has the same as rows.

    Attributes:
        parts: each with its name, in any unit.
        whole: in the same unit, at least their sum.
    """

    title: str
    finding: str
    parts: tuple[tuple[str, float], ...]
    whole: float
    table: Table


Figure = Chart | Intervals | Shares
Part = Paragraph | Bullets | Code | Facts | Table | Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Sections under a title, with an optional line below it."""

    title: str
    sections: tuple[Section, ...]
    subtitle: str = ""


class _Shown(dict[int, str]):
    """The shown form of each character, computed once."""

    def __missing__(self, code: int) -> str:
        shown = chr(code)
        if unicodedata.category(shown) in _ACTED_ON:
            shown = shown.encode("unicode_escape").decode("ascii")
        self[code] = shown
        return shown


_shown = _Shown({ord(blank): " " for blank in "\n\r\t"})


def visible_lines(text: str) -> str:
    """Like `visible`, for a text of several lines, which keeps them."""
    return "\n".join(map(visible, text.split("\n")))


def visible(text: str) -> str:
    """The text on one line, with every character that is not for reading written out, as in `\\x1b`."""
    return text if text.isprintable() else text.translate(_shown)
