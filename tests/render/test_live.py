from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from autobatch.core.progress import Progress
from autobatch.render.live import LiveLine, live_progress
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
    assert _line(line, 100).rstrip().endswith("1:03 of 1:30")
    clock.advance(20.0)
    assert "lr 0.01, longer than predicted" in _line(line, 100)


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
