"""A figure as a picture with its legend, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from .charts import marks_of, svg
from .document import Chart, Figure, Intervals, Shares
from .drawing import box_swatch, dot_swatch, mark_swatch, swatch
from .interval_picture import intervals_svg
from .shares_picture import shares_svg


def picture_of(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element; `name` begins each of its ids."""
    match figure:
        case Chart():
            return svg(figure, name)
        case Intervals():
            return intervals_svg(figure, name)
        case Shares():
            return shares_svg(figure, name)
        case _:
            assert_never(figure)


def legend_of(figure: Figure) -> Iterator[tuple[str, str]]:
    """What stands for what: a small picture, and the words for it. Nothing twice."""
    match figure:
        case Chart():
            marks = [*marks_of(figure)]
            seen = dict.fromkeys((series.name, series.slot, series.is_line) for series in figure.series)
            for name, slot, is_line in seen:
                if name not in marks:
                    yield (swatch if is_line else dot_swatch)(slot), name
            for word in marks:
                yield mark_swatch(word), word
        case Intervals():
            return  # each has its name beside it
        case Shares():
            for slot, (name, _) in enumerate(figure.parts):
                yield box_swatch(slot), name
        case _:
            assert_never(figure)
