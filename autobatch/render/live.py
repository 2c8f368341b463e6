"""Progress as it happens: a few live lines on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleRenderable, Group
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Table as Grid
from rich.text import Text

from ..core.progress import Listener, Progress, Stage, Standing, nobody
from ..core.units import format_duration
from .standing import best_line, trials_line
from .terminal import plain_text

# What a stage does, until it reports something itself.
_DOES: dict[Stage, str] = {
    "start": "opening the task and the device",
    "memory": "looking for the largest batch",
    "profile": "timing batch sizes",
    "range test": "raising the learning rate",
    "search": "choosing what to try next",
    "confirmation": "training under fresh seeds",
    "report": "writing the report",
    "bench": "measuring a model",
}

_REFRESHES_PER_S = 4  # assumed: the clock is seen to run, and drawing takes no time from training
_BAR_WIDTH = 10  # assumed: the words matter more
_ROOM_FOR_ECHO = 3  # a terminal shows Ctrl-C as ^C after the line; were it to wrap, the wrong line would be wiped
_LEAST_HEIGHT = 8  # assumed: in a lower terminal the findings need the room
_GAP = 2  # between columns


@contextmanager
def live_progress(
    console: Console,
    *,
    budget_s: float | None,
    clock: Callable[[], float] = time.monotonic,
    quiet: bool = False,
) -> Iterator[Listener]:
    """A listener that shows a run's progress on `console` until the `with` block ends, in any way.

    On a terminal, one line at the bottom tells the stage, what is under way and the time that is left, and in a race
    two more tell how it stands, while findings scroll by above; they are gone afterwards. Elsewhere, and where TERM is
    "dumb", each fact is one line, written out at once, without control codes. Environment variables that force colour
    do not change that: it goes by what the file is.

    Args:
        console: should write to stderr, so that only results go to stdout.
        budget_s: seconds of the run's budget; None to show the elapsed time alone.
        clock: returns seconds.
        quiet: show nothing.
    """
    started_s = clock()
    if quiet or console.quiet:
        yield nobody
    elif console.file.isatty() and console.is_terminal and not console.is_dumb_terminal:
        line = LiveLine(console, budget_s, clock, started_s)
        live = _Calm(
            line,
            console=console,
            get_renderable=line.draw,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            # The task's output goes above the line if it is shown on a terminal, and into the file if it is not.
            redirect_stdout=sys.stdout.isatty(),
        )

        def show(progress: Progress) -> None:
            line.note(progress)
            if progress.predicted_s is None:
                text = f"{progress.stage}: {progress.text}"
                console.print(plain_text(text, console), highlight=False)
            live.refresh()

        with live:
            yield show
    else:

        def write(progress: Progress) -> None:
            about = "" if progress.predicted_s is None else f" (about {format_duration(progress.predicted_s)})"
            text = f"[{clock() - started_s:5.1f} s] {progress.stage}: {progress.text}{about}"
            # Rich flushes after each print.
            console.print(plain_text(text, console), soft_wrap=True, highlight=False)

        yield write


class _Calm(Live):
    """A live display that wipes all of what it drew, also where a narrower terminal has since wrapped it."""

    def __init__(self, line: LiveLine, **settings: Any) -> None:
        super().__init__(**settings)
        self._line = line
        self._was: tuple[int, ...] = ()  # how wide each line was that is on the terminal now

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        room = max(1, self.console.width)
        # Terminals wrap lines that have become too long: rich goes up by the lines that it drew, and not by these.
        more = sum(max(0, -(-width // room) - 1) for width in self._was)
        drawn = super().process_renderables(renderables)
        if not self.console.is_interactive or not self._was:
            self._was = self._line.widths()
            return drawn
        reset, *others = drawn
        up = Control((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        self._was = self._line.widths()
        return [reset, *([up] * more), *others]


class LiveLine:
    """What the live lines know: the stage, what is under way in it, since when, and how the race stands.

    Args:
        console: determines the width of the line.
        budget_s: seconds of the run's budget, or None.
        clock: returns seconds.
        started_s: its value when the run began.
    """

    def __init__(self, console: Console, budget_s: float | None, clock: Callable[[], float], started_s: float) -> None:
        self._console, self._budget_s, self._started_s, self._clock = console, budget_s, started_s, clock
        self._stage: Stage = "start"
        self._pieces: dict[str | None, tuple[Progress, float]] = {}  # what is under way, and when it began
        self._standing: Standing | None = None

    def note(self, progress: Progress) -> None:
        """Record what has begun, or has ended with a result."""
        self._stage = progress.stage
        pieces = {key: piece for key, piece in self._pieces.items() if None not in (key, progress.key)}
        pieces.pop(progress.key, None)
        if progress.predicted_s is not None:
            pieces[progress.key] = progress, self._clock()
        self._pieces = pieces  # at once: another thread draws
        self._standing = progress.standing or self._standing

    def draw(self) -> Group:
        """The lines as they stand now, each a little shorter than the terminal is wide."""
        return Group(self._draw_first(), *(plain_text(line, self._console) for line in self._others()))

    def widths(self) -> tuple[int, ...]:
        """Of each line that is drawn now."""
        first = max(1, self._console.width - _ROOM_FOR_ECHO)
        return (first, *(cell_len(line) for line in self._others()))

    def _others(self) -> list[str]:
        """How the race stands, where the terminal has room for that."""
        if self._standing is None or self._console.height < _LEAST_HEIGHT:
            return []
        lines = best_line(self._standing), trials_line(self._standing, len(self._pieces))
        room = max(1, self._console.width - _ROOM_FOR_ECHO)
        if self._console.options.ascii_only:
            return [line.replace("±", "+-")[:room] for line in lines]
        return [_cut(line, room) for line in lines]

    def _draw_first(self) -> Grid:
        now_s = self._clock()
        pieces = list(self._pieces.values())  # one copy: another thread listens
        does, left = _DOES[self._stage], ""
        if pieces:
            piece, began_s = pieces[-1]
            others = f", and {len(pieces) - 1} more" if len(pieces) > 1 else ""
            does, left = piece.text, _left(piece, now_s - began_s) + others
        text = plain_text(f"{self._stage}: {does}{left}", self._console)
        width = max(1, self._console.width - _ROOM_FOR_ECHO)
        elapsed_s = now_s - self._started_s
        times, bar = self._times(elapsed_s, width - _GAP - cell_len(text.plain))
        grid = Grid.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        grid.width = width
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        cells: list[Text | ProgressBar] = [text]
        if bar is not None:
            grid.add_column(width=_BAR_WIDTH)
            cells.append(bar)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_row(*cells, Text(times))
        return grid

    def _times(self, elapsed_s: float, room: int) -> tuple[str, ProgressBar | None]:
        """The clock, and a bar beside it, as far as there is room beside the words."""
        if self._budget_s is None:
            return _clock_text(elapsed_s), None
        left_s = self._budget_s - elapsed_s
        short = f"{_clock_text(left_s) if left_s >= 0 else 'nothing'} left"
        whole = f"{short} of {_clock_text(self._budget_s)}"
        if room >= _BAR_WIDTH + _GAP + len(whole):
            return whole, ProgressBar(total=self._budget_s, completed=elapsed_s, width=_BAR_WIDTH)
        return whole if room >= len(whole) else short, None


def _cut(line: str, room: int) -> str:
    """What there is room for of a line, with an ellipsis where some is left out."""
    return line if cell_len(line) <= room else set_cell_size(line, room - 1).rstrip() + "…"


def _left(piece: Progress, has_taken_s: float) -> str:
    """How much longer a piece of work should take."""
    left_s = (piece.predicted_s or 0.0) - has_taken_s
    return f", about {_clock_text(left_s)} left" if left_s >= 0 else ", longer than predicted"


def _clock_text(seconds: float) -> str:
    """`0:07`, `12:40`, `1:02:03`: a clock whose width does not change each second."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
