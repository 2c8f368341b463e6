"""A document as one HTML page that needs nothing else: no script, no request to any server, light and dark.

The markup is in page.html, and the style in page.css. Every string goes through `visible` and Jinja's escaping. Only
what this package makes itself, the charts and the stylesheet, is markup. The page's own policy forbids scripts and
requests too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, assert_never

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .document import (
    Bullets,
    Chart,
    Code,
    Document,
    Facts,
    Figure,
    Intervals,
    Paragraph,
    Part,
    Shares,
    Table,
    visible,
)
from .figures import legend_of, picture_of


def to_html(document: Document) -> str:
    """The document as a page, ending in a newline: the same content as on the terminal, with the charts drawn."""
    return _environment().get_template("page.html").render(document=document) + "\n"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("autobatch", "render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"kind": _kind, "grouped": _grouped, "legend": _legend, "captioned": _captioned}
    environment.globals |= {"picture": lambda figure, name: Markup(picture_of(figure, name))}
    return environment


def _shown(value: Any) -> Any:
    """What the template prints: text from outside without control codes, our own markup as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return visible(value).replace(" %", "\N{NO-BREAK SPACE}%")  # keeps a number and its sign on one line


def _kind(part: Part) -> str:
    """The name of the part's macro in the template."""
    match part:
        case Paragraph():
            return "paragraph"
        case Bullets():
            return "bullets"
        case Code():
            return "code"
        case Facts():
            return "facts"
        case Table():
            return "table"
        case Chart() | Intervals() | Shares():
            return "figure"
        case _:
            assert_never(part)


def _legend(figure: Figure) -> list[tuple[Markup, str]]:
    return [(Markup(drawn), words) for drawn, words in legend_of(figure)]


def _captioned(table: Table, caption: str) -> Table:
    return dataclasses.replace(table, caption=caption)


def _grouped(parts: tuple[Part, ...]) -> Iterator[tuple[Part, ...]]:
    """The parts one by one, but figures that follow one another together: they stand side by side."""
    figures: list[Part] = []
    for part in parts:
        if isinstance(part, Figure):
            figures.append(part)
            continue
        if figures:
            yield tuple(figures)
            figures = []
        yield (part,)
    if figures:
        yield tuple(figures)
