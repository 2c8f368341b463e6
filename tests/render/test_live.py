from __future__ import annotations

import dataclasses
import io
import re
import sys

import pytest
from rich.console import Console

from autobatch.core.progress import Progress, Standing
from autobatch.render.live import LiveLine, live_progress
from autobatch.render.standing import best_line, trials_line
from autobatch.simulated.sim import VirtualClock


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


FINDING = Progress(stage="memory", kind="found", text="batch 128: ok, peak 12 MiB")
PIECE = Progress(stage="search", kind="began", text="trial 3: batch 128, lr 0.01", predicted_s=9.5)


def test_off_a_terminal_each_fact_is_a_plain_line() -> None:
    file, clock = io.StringIO(), VirtualClock(100.0)
    with live_progress(Console(file=file, width=40), budget_s=60.0, clock=clock) as listen:
        clock.advance(12.34)
        listen(FINDING)
        assert file.getvalue() == "[ 12.3 s] memory: batch 128: ok, peak 12 MiB\n"  # at once
        clock.advance(1.0)
        listen(PIECE)
    assert file.getvalue().splitlines()[1:] == ["[ 13.3 s] search: trial 3: batch 128, lr 0.01 (about 9.50 s)"]


def test_each_plain_line_is_flushed() -> None:
    flushed: list[str] = []

    class Buffered(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    with live_progress(Console(file=Buffered()), budget_s=None, clock=VirtualClock()) as listen:
        listen(FINDING)
        assert flushed[-1].endswith("peak 12 MiB\n")


@pytest.mark.parametrize(("name", "value"), [("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1")])
def test_forced_colour_turns_no_codes_on_in_a_pipe(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    file = io.StringIO()
    console = Console(file=file)
    assert console.is_terminal  # as rich sees it
    with live_progress(console, budget_s=60.0, clock=VirtualClock()) as listen:
        listen(FINDING)
    assert file.getvalue() == "[  0.0 s] memory: batch 128: ok, peak 12 MiB\n"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = Terminal()
    with live_progress(Console(file=file), budget_s=60.0, clock=VirtualClock()) as listen:
        listen(FINDING)
    assert file.getvalue() == "[  0.0 s] memory: batch 128: ok, peak 12 MiB\n"


def test_text_from_outside_is_neither_markup_nor_a_control_code() -> None:
    file = io.StringIO()
    with live_progress(Console(file=file), budget_s=None, clock=VirtualClock()) as listen:
        listen(Progress(stage="search", kind="note", text="[red]x[/red] \x1b[2J\nnext :smile:"))
    assert file.getvalue() == "[  0.0 s] search: [red]x[/red] \\x1b[2J next :smile:\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(terminal: bool) -> None:
    file = Terminal() if terminal else io.StringIO()
    with live_progress(Console(file=file), budget_s=60.0, quiet=True) as listen:
        listen(FINDING)
        listen(PIECE)
    assert file.getvalue() == ""


def _console(file: io.StringIO, width: int = 80) -> Console:
    return Console(file=file, width=width, height=24, color_system=None)


def _line(line: LiveLine, width: int) -> str:
    """The line as it is drawn, without its end."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(line.draw())
    return file.getvalue().removesuffix("\n")


def test_the_line_tells_the_stage_the_piece_and_the_time() -> None:
    clock = VirtualClock(100.0)
    line = LiveLine(_console(io.StringIO(), 100), 90.0, clock, 100.0)
    assert _line(line, 100).startswith("start: opening the task and the device")
    clock.advance(61.0)
    line.note(PIECE)
    clock.advance(2.0)
    assert _line(line, 100).startswith("search: trial 3: batch 128, lr 0.01, about 0:07 left")
    assert _line(line, 100).rstrip().endswith("0:27 left of 1:30")
    clock.advance(20.0)
    assert "lr 0.01, longer than predicted" in _line(line, 100)
    clock.advance(20.0)
    assert _line(line, 100).rstrip().endswith("nothing left of 1:30")


def test_without_a_budget_the_line_tells_the_elapsed_time_alone() -> None:
    clock = VirtualClock()
    line = LiveLine(_console(io.StringIO(), 80), None, clock, 0.0)
    clock.advance(3723.0)
    assert _line(line, 80).rstrip().endswith("1:02:03")
    assert " of " not in _line(line, 80)


def began(key: str) -> Progress:
    return Progress(stage="search", kind="began", key=key, text=key, predicted_s=20.0)


def ended(key: str) -> Progress:
    return Progress(stage="search", kind="found", key=key, text=f"{key}: 0.9")


def test_of_several_pieces_the_latest_is_told_and_how_many_more() -> None:
    line = LiveLine(_console(Terminal()), 600.0, lambda: 10.0, 0.0)
    for trial in (3, 4, 5):
        line.note(began(f"trial {trial}"))
    assert "search: trial 5, about 0:20 left, and 2 more" in _line(line, 80)
    line.note(ended("trial 5"))
    assert "search: trial 4, about 0:20 left, and 1 more" in _line(line, 80)
    line.note(ended("trial 3"))
    assert "search: trial 4, about 0:20 left " in _line(line, 80)
    line.note(ended("trial 4"))
    assert "choosing what to try next" in _line(line, 80)


def test_a_finding_ends_the_piece() -> None:
    line = LiveLine(_console(io.StringIO(), 80), None, VirtualClock(), 0.0)
    line.note(PIECE)
    line.note(FINDING)
    assert _line(line, 80).startswith("memory: looking for the largest batch ")


@pytest.mark.parametrize("width", [10, 20, 40, 59, 80, 120])
@pytest.mark.parametrize("budget_s", [None, 36_000.0])
def test_the_live_line_is_one_line(width: int, budget_s: float | None) -> None:
    line = LiveLine(_console(io.StringIO(), width), budget_s, VirtualClock(), 0.0)
    line.note(Progress(stage="range test", kind="began", text="x" * 300, predicted_s=3.0))
    shown = _line(line, width)
    assert shown.strip()
    assert "\n" not in shown
    assert len(shown.rstrip()) <= width - len("^C")  # which the terminal itself writes there


def test_findings_scroll_by_and_pieces_do_not() -> None:
    file = Terminal()
    with live_progress(_console(file), budget_s=60.0, clock=VirtualClock()) as listen:
        listen(PIECE)
        assert "search: trial 3: batch 128" in file.getvalue()
        listen(FINDING)
    assert "memory: batch 128: ok, peak 12 MiB\n" in file.getvalue()
    assert "trial 3: batch 128, lr 0.01\n" not in file.getvalue()


@pytest.mark.parametrize("ending", [KeyboardInterrupt, ValueError, None])
def test_the_terminal_is_left_clean_however_it_ends(ending: type[BaseException] | None) -> None:
    file = Terminal()
    stdout, stderr = sys.stdout, sys.stderr
    caught: type[BaseException] | None = None
    try:
        with live_progress(_console(file), budget_s=60.0, clock=VirtualClock()) as listen:
            listen(PIECE)
            if ending is not None:
                raise ending
    except (KeyboardInterrupt, ValueError) as error:
        caught = type(error)
    assert caught is ending
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    text = file.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is put back
    assert text.endswith("\x1b[1A\x1b[2K")  # and the line is wiped


def test_no_color_on_a_terminal_drops_colours_and_keeps_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    with live_progress(Console(file=file, width=80, height=24), budget_s=60.0, clock=VirtualClock()) as listen:
        listen(PIECE)
    assert "\x1b[3" not in file.getvalue()
    assert "\x1b[?25l" in file.getvalue()


STANDING = Standing(
    score=0.97123,
    noise=0.0031,
    share=1.0,
    batch_size=256,
    lr=0.0034,
    is_baseline=False,
    baseline=0.9512,
    rungs=((0.125, 14), (0.5, 6), (1.0, 5)),
    failed=2,
    peak_bytes=1.7 * 2**30,
    limit_bytes=7.6 * 2**30,
)
TOLD = dataclasses.replace(PIECE, standing=STANDING, key="trial 3")


def test_how_a_race_stands_is_told_in_two_lines() -> None:
    assert best_line(STANDING) == "best 0.9712 ± 0.0031: batch 256, lr 0.0034; baseline 0.9512"
    assert trials_line(STANDING, 1) == "trials: 14 at T/8, 6 at T/2, 5 at T; 2 failed; memory 1.7 GiB of 7.6 GiB"
    early = dataclasses.replace(STANDING, noise=None, share=0.125, baseline=None, rungs=((0.125, 1),), failed=0)
    assert best_line(early) == "best 0.9712 ± ? after T/8: batch 256, lr 0.0034"
    assert trials_line(dataclasses.replace(early, peak_bytes=None), 3) == "trials: 1 at T/8; 3 under way"
    assert best_line(dataclasses.replace(STANDING, is_baseline=True)).endswith(": the baseline")


@pytest.mark.parametrize("width", [10, 20, 40, 80, 120])
def test_the_lines_keep_to_the_width(width: int) -> None:
    line = LiveLine(_console(io.StringIO(), width), 600.0, VirtualClock(), 0.0)
    line.note(TOLD)
    lines = _line(line, width).split("\n")
    assert len(lines) == 3
    assert all(len(one.rstrip()) <= width - len("^C") for one in lines)
    if width >= 80:
        assert lines[1].rstrip() == best_line(STANDING)
        assert lines[2].rstrip() == trials_line(STANDING, 1)


def test_a_low_terminal_has_one_line_and_an_ascii_one_has_ascii() -> None:
    low = LiveLine(Console(file=io.StringIO(), width=80, height=7), 600.0, VirtualClock(), 0.0)
    low.note(TOLD)
    assert len(_line(low, 80).split("\n")) == 1
    ascii_file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    plain = LiveLine(Console(file=ascii_file, width=80, height=24), 600.0, VirtualClock(), 0.0)
    plain.note(TOLD)
    assert plain.draw().renderables[1].plain == best_line(STANDING).replace("±", "+-")  # type: ignore[union-attr]


def test_how_it_stands_is_kept_until_something_newer_is_told() -> None:
    line = LiveLine(_console(io.StringIO()), 600.0, VirtualClock(), 0.0)
    line.note(TOLD)
    line.note(Progress(stage="confirmation", kind="found", key="trial 3", text="trial 3: 0.97"))
    assert best_line(STANDING) in _line(line, 80)


class Reflowing:
    """A terminal that wraps what it shows anew when it is made narrower, as most do: rows of the screen."""

    def __init__(self, width: int) -> None:
        self.width, self.lines, self.row, self.column = width, [""], 0, 0

    def resize(self, width: int) -> None:
        rows: list[str] = []
        for line in self.lines:
            rows += [line[at : at + width] for at in range(0, max(1, len(line)), width)]
        self.width, self.lines, self.row = width, rows, len(rows) - 1

    def write(self, text: str) -> None:
        for code, plain in re.findall(r"(\x1b\[[?\d;]*[A-Za-z])|([^\x1b])", text):
            if code.endswith("A"):
                self.row = max(0, self.row - int(code[2:-1] or 1))
            elif code.endswith("K"):
                self.lines[self.row] = ""
            elif plain == "\r":
                self.column = 0
            elif plain == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif plain:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + plain + line[self.column + 1 :]
                self.column += 1

    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


@pytest.mark.parametrize("narrow", [79, 60, 41, 30])
def test_right_after_a_resize_nothing_of_the_wider_lines_is_left(narrow: int) -> None:
    file, screen = Terminal(), Reflowing(100)
    console = _console(file, 100)
    with live_progress(console, budget_s=600.0, clock=VirtualClock()) as listen:
        listen(TOLD)
        listen(FINDING)
        screen.write(file.getvalue())
        assert len(screen.shown()) == 4
        told = file.tell()
        screen.resize(narrow)
        console.width = narrow
        listen(TOLD)
        screen.write(file.getvalue()[told:])
        shown = screen.shown()
        assert "".join(shown).count("best 0.97") == 1
        assert "".join(shown).count("search") + "".join(shown).count("memory: looking") == 1
        assert len(shown) <= 5  # the finding, perhaps in two rows, and three lines
    assert all(len(line) <= narrow for line in shown)


def test_the_words_of_a_piece_matter_more_than_the_bar_at_80_columns() -> None:
    clock = VirtualClock()
    line = LiveLine(_console(io.StringIO(), 80), 600.0, clock, 0.0)
    clock.advance(63.0)
    words = "trial 12: effective batch 1024, lr 0.0034"
    line.note(Progress(stage="search", kind="began", key="trial 12", text=words, predicted_s=9.5))
    assert _line(line, 80).rstrip() == f"search: {words}, about 0:09 left  8:57 left"
    line.note(dataclasses.replace(PIECE, text="trial 1"))
    assert re.fullmatch(r"search: trial 1, about 0:09 left .*━.* 8:57 left of 10:00", _line(line, 80).rstrip())
