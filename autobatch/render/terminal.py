"""Results on a terminal: documents drawn with rich, at any width, with or without colour.

Text from outside is never markup and never a control code: everything goes through `visible` and into `rich.text.Text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from io import StringIO
from typing import assert_never

from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from ..plan import DeviceInfo
from ..reports.report import Json
from .document import Bullets, Chart, Code, Document, Facts, Paragraph, Part, Section, Table, visible
from .evidence import device_section, lr_section, max_batch_section, runs_section, throughput_section
from .side_by_side import arms_sections

_INDENT = 2
_GAP = 2  # between columns
_BAR_WIDTHS = (5, 30)  # assumed: a shorter bar shows no proportion, a longer one shows no more of it
_EIGHTHS = " ▏▎▍▌▋▊▉"


def print_document(document: Document, console: Console) -> None:
    """Print a whole document."""
    console.print(plain_text(document.title, console, "bold"), highlight=False)
    if document.subtitle:
        console.print(plain_text(document.subtitle, console), highlight=False)
    _print_sections(document.sections, console)


def print_max_batch(max_batch: Json, console: Console) -> None:
    """Print the largest batch and every probe; `max_batch` as `MaxBatch.to_json` gives it."""
    _print_sections([max_batch_section(max_batch)], console)


def print_profile(throughput: Json, console: Console) -> None:
    """Print the throughput curve; `throughput` as `ThroughputCurve.to_json` gives it."""
    _print_sections([throughput_section(throughput)], console)


def rehearse(throughput: Json) -> None:
    """Draw a table for nobody, with all that a report is drawn with imported: what drawing takes at this moment."""
    import_module(".content", __package__)
    print_profile(throughput, Console(file=StringIO()))


def print_arms(arms: Json, console: Console) -> None:
    """Print ways of computing side by side; `arms` as `arms.compared` gives them."""
    _print_sections(arms_sections(arms), console)


def print_lr(learning_rate: Json, console: Console) -> None:
    """Print the range test; `learning_rate` as `LrCurve.to_json` gives it."""
    _print_sections([lr_section(learning_rate)], console)


def print_runs(runs: Sequence[Json], console: Console) -> None:
    """Print a line for each run; `runs` as `RunSummary.to_json` gives them."""
    _print_sections([runs_section(runs)], console)


def print_devices(devices: Sequence[DeviceInfo], console: Console) -> None:
    """Print every fact about each device, and why one is missing."""
    _print_sections([device_section(device) for device in devices], console)


def plain_text(text: str, console: Console, style: str = "") -> Text:
    """The text as it can be shown on `console`: no markup, no control codes, what its encoding lacks written out."""
    encoding = console.encoding
    shown = visible(text).encode(encoding, "backslashreplace").decode(encoding)
    return Text(shown, style=style, overflow="fold")


def _print_sections(sections: Iterable[Section], console: Console) -> None:
    for section in sections:
        console.print()
        console.print(plain_text(section.title, console, "bold cyan"), highlight=False)
        for part in section.parts:
            console.print(Padding(_drawn(part, console), (0, 0, 0, _INDENT), expand=False), highlight=False)


def _drawn(part: Part, console: Console) -> RenderableType:
    match part:
        case Paragraph():
            return plain_text(part.text, console)
        case Code():
            return Text("\n".join(part.lines), style="bold", overflow="fold")
        case Bullets():
            grid = _grid(2, gap=1)
            for item in part.items:
                grid.add_row(Text("-"), plain_text(item, console))
            return grid
        case Facts():
            grid = _grid(2, gap=_GAP)
            for name, fact in part.rows:
                grid.add_row(plain_text(name, console, "dim"), plain_text(fact, console))
            return grid
        case Table():
            caption = [Text(""), plain_text(part.caption, console)] if part.caption else []
            return Group(*caption, _table(part, console))
        case Chart():
            # The caption of its table begins with what the chart shows.
            return Group(_drawn(part.table, console), plain_text(part.finding, console))
        case _:
            assert_never(part)


def _table(table: Table, console: Console) -> Grid:
    """The columns that there is room for, and the bars where room is left."""
    room = console.width - _INDENT
    widths = [
        max(cell_len(visible(cell)) for cell in (column.title, *(row[index] for row in table.rows)))
        for index, column in enumerate(table.columns)
    ]
    kept = [index for index, width in enumerate(widths) if width]  # rich would give an empty one room
    for index in reversed(range(len(table.columns))):
        if index in kept and table.columns[index].optional and _width(widths, kept) > room:
            kept.remove(index)
    shortest, longest = _BAR_WIDTHS
    bar_width = min(longest, room - _width(widths, kept) - _GAP)
    bars = table.bars if bar_width >= shortest and any(table.bars) else ()

    grid = Grid(box=None, show_edge=False, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for index in kept:
        column = table.columns[index]
        justify: JustifyMethod = "right" if column.is_number else "left"
        grid.add_column(plain_text(column.title, console), justify=justify, overflow="fold")
    if bars:
        grid.add_column()
    for number, row in enumerate(table.rows):
        bar = [Text(_bar(bars[number], bar_width, console.options.ascii_only), style="cyan")] if bars else []
        grid.add_row(*(plain_text(row[index], console) for index in kept), *bar)
    return grid


def _width(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[index] for index in kept) + _GAP * (len(kept) - 1)


def _grid(columns: int, gap: int) -> Grid:
    grid = Grid.grid(padding=(0, gap, 0, 0))
    for _ in range(columns):
        grid.add_column(overflow="fold")
    return grid


def _bar(share: float, width: int, ascii_only: bool) -> str:
    """A bar of `share` of the width, to an eighth of a character where the terminal has blocks."""
    if ascii_only:
        return "#" * round(share * width)
    whole, eighths = divmod(round(8 * share * width), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()
