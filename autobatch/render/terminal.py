"""Results on a terminal: documents drawn with rich, at any width, with or without colour.

Text from outside is never markup and never a control code: it goes through `visible`, and to rich as literal text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from io import StringIO
from typing import assert_never, final

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from ..core.facts import DeviceInfo
from ..core.json_reader import Json
from .document import Bullets, Chart, Code, Document, Facts, Intervals, Paragraph, Part, Section, Shares, Table, visible
from .evidence import device_section, lr_section, max_batch_section, runs_section, throughput_section
from .side_by_side import compute_modes_sections

_INDENT = 2
_GAP = 2  # between columns
_BAR_WIDTHS = (5, 30)  # assumed: a shorter bar shows no proportion, and a longer one no more of it
_EIGHTHS = " ▏▎▍▌▋▊▉"
_WORD = re.compile(r"\s*\S+\s*|\s+")

Line = tuple[tuple[str, str], ...]  # pieces of text, each with its style


def print_document(document: Document, console: Console) -> None:
    """Print a whole document."""
    _print(_paragraph(document.title, console, console.width, "bold"), console)
    if document.subtitle:
        _print(_paragraph(document.subtitle, console, console.width), console)
    _print_sections(document.sections, console)


def print_max_batch(max_batch: Json, console: Console) -> None:
    """Print the largest batch and every probe; `max_batch` is `MaxBatch.to_json`."""
    _print_sections([max_batch_section(max_batch)], console)


def print_profile(throughput: Json, console: Console) -> None:
    """Print the throughput curve; `throughput` is `ThroughputCurve.to_json`."""
    _print_sections([throughput_section(throughput)], console)


def rehearse(throughput: Json) -> None:
    """Draw a table that nobody sees, with all imports that drawing a report needs, to measure how long that takes."""
    import_module(".content", __package__)
    print_profile(throughput, Console(file=StringIO()))


def print_compute_modes(compute_modes: Json, console: Console) -> None:
    """Print compute modes side by side; `compute_modes` is `compute_modes.compared`."""
    _print_sections(compute_modes_sections(compute_modes), console)


def print_lr(learning_rate: Json, console: Console) -> None:
    """Print the range test; `learning_rate` is `LrCurve.to_json`."""
    _print_sections([lr_section(learning_rate)], console)


def print_runs(runs: Sequence[Json], console: Console) -> None:
    """Print a line for each run; `runs` are `RunSummary.to_json`."""
    _print_sections([runs_section(runs)], console)


def print_devices(devices: Sequence[DeviceInfo], console: Console) -> None:
    """Print every fact about each device, and why a fact is missing."""
    _print_sections([device_section(device) for device in devices], console)


def plain_text(text: str, console: Console, style: str = "") -> Text:
    """The text as it can be shown on `console`: no markup, no control codes, and escapes for characters it cannot
    encode.
    """
    return Text(_plain(text, console), style=style, overflow="fold")


def _plain(text: str, console: Console) -> str:
    shown = visible(text)
    return shown if shown.isascii() else shown.encode(console.encoding, "backslashreplace").decode(console.encoding)


@final
class _Lines:
    """Lines that are known to fit, which rich prints as they are: wrapping would take milliseconds for each."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            for text, style in line:
                yield Segment(text, console.get_style(style) if style else None)
            yield Segment.line()


def _print(lines: Iterable[Line], console: Console, indent: int = 0) -> None:
    start: Line = ((" " * indent, ""),) if indent else ()
    console.print(_Lines((*start, *line) for line in lines), crop=False, end="", highlight=False)


def _print_sections(sections: Iterable[Section], console: Console) -> None:
    for section in sections:
        console.print()
        _print(_paragraph(section.title, console, console.width, "bold cyan"), console)
        for part in section.parts:
            indent = min(_INDENT, console.width - 1)
            _print(_drawn(part, console, console.width - indent), console, indent)


def _drawn(part: Part, console: Console, room: int) -> Iterator[Line]:
    match part:
        case Paragraph():
            yield from _paragraph(part.text, console, room)
        case Code():
            for line in part.lines:
                yield from _paragraph(line, console, room, "bold")
        case Bullets():
            yield from _side_by_side([("-", item) for item in part.items], console, room, gap=1)
        case Facts():
            yield from _side_by_side(part.rows, console, room, styles=("dim", ""))
        case Table():
            if part.caption:
                yield ()
                yield from _paragraph(part.caption, console, room)
            yield from _table(part, console, room)
        case Chart() | Intervals() | Shares():
            # The caption of its table begins with what the chart shows.
            yield from _drawn(part.table, console, room)
            yield from _paragraph(part.finding, console, room)
        case _:
            assert_never(part)


def _paragraph(text: str, console: Console, room: int, style: str = "") -> Iterator[Line]:
    return (((line, style),) for line in _wrapped(_plain(text, console), room))


def _table(table: Table, console: Console, room: int) -> Iterator[Line]:
    """The columns that fit, and the bars if there is room left."""
    titles = [column.title for column in table.columns]
    widths = [
        max(_cells(visible(cell)) for cell in (title, *(row[index] for row in table.rows)))
        for index, title in enumerate(titles)
    ]
    kept = [index for index, width in enumerate(widths) if width]
    for index in reversed(range(len(table.columns))):
        if index in kept and table.columns[index].optional and _width(widths, kept) > room:
            kept.remove(index)
    shortest, longest = _BAR_WIDTHS
    bar_width = min(longest, room - _width(widths, kept) - _GAP)
    bars = table.bars if bar_width >= shortest and any(table.bars) else ()
    ends = [_bar(share, bar_width, console.options.ascii_only) for share in bars]
    yield from _side_by_side(
        [[row[index] for index in kept] for row in (titles, *table.rows)],
        console,
        room,
        on_the_right=[table.columns[index].is_number for index in kept],
        ends=["", *ends] if ends else (),
        has_head=True,
    )


def _side_by_side(
    rows: Sequence[Sequence[str]],
    console: Console,
    room: int,
    *,
    gap: int = _GAP,
    styles: Sequence[str] = (),
    on_the_right: Sequence[bool] = (),
    ends: Sequence[str] = (),
    has_head: bool = False,
) -> Iterator[Line]:
    """The cells of each row in columns, wrapped if those are too wide for the room; `ends` follow the rows."""
    shown = [[_plain(cell, console) for cell in row] for row in rows]
    count = len(shown[0]) if shown else 0
    widths = _fitted([max(_cells(row[index]) for row in shown) for index in range(count)], room - gap * (count - 1))
    fits = sum(widths) + gap * (count - 1) <= room
    for number, row in enumerate(shown):
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for at in range(max(map(len, cells), default=0)):
            line: list[tuple[str, str]] = []
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                text = cell[at] if at < len(cell) else ""
                blank = " " * (width - _cells(text))
                text = blank + text if on_the_right and on_the_right[index] else text + blank
                is_last = index == count - 1 and not ends
                style = "dim" if has_head and not number else styles[index] if styles else ""
                line.append((text.rstrip() if is_last else text + " " * gap, style))
            if ends and not at:
                line.append((ends[number], "cyan"))
            yield tuple(line) if fits else _cropped(line, room)


def _cropped(line: Sequence[tuple[str, str]], room: int) -> Line:
    """The part of a line that fits, in a terminal with fewer characters than a table has columns."""
    cropped = []
    for text, style in line:
        cropped.append((set_cell_size(text, min(room, _cells(text))), style))
        room -= _cells(cropped[-1][0])
    return tuple(cropped)


def _fitted(widths: Sequence[int], room: int) -> list[int]:
    """The widths, with the widest reduced until all fit; none is less than a character."""
    if sum(widths) <= room:
        return list(widths)
    cap = max(1, max(c for c in range(max(0, room) + 1) if sum(min(width, c) for width in widths) <= max(0, room)))
    left = room - sum(min(width, cap) for width in widths)
    fitted = []
    for width in widths:
        more = 1 if width > cap and left > 0 else 0
        left -= more
        fitted.append(max(1, min(width, cap) + more))
    return fitted


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, broken between words if possible."""
    if _cells(text) <= width:
        return [text]
    lines: list[str] = []
    line: list[str] = []
    size = 0
    for word in _WORD.findall(text):
        bare = _cells(word.rstrip())
        if line and size + bare > width:
            lines.append("".join(line).rstrip())
            line, size = [], 0
        if bare > width:
            *whole, word = chop_cells(word, width)
            lines += whole
        line.append(word)
        size += _cells(word)
    return [*lines, "".join(line).rstrip()] if line else lines


def _cells(text: str) -> int:
    """The width of a text that went through `visible`, so that each ASCII character has one cell."""
    return len(text) if text.isascii() else cell_len(text)


def _width(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[index] for index in kept) + _GAP * (len(kept) - 1)


def _bar(share: float, width: int, ascii_only: bool) -> str:
    """A bar of `share` of the width, to an eighth of a character if the terminal has block characters."""
    if ascii_only:
        return "#" * round(share * width)
    whole, eighths = divmod(round(8 * share * width), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()
