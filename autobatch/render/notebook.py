"""Results and progress in a notebook: a page in a frame of its own, and one output that is brought up to date.

IPython is imported only where it is running already.
"""

from __future__ import annotations

import html
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..core.progress import Listener, Progress, Standing
from ..core.units import format_duration
from .document import Document, Section, visible
from .html import to_html
from .standing import best_line, trials_line

# Findings that stay in sight. Assumed: enough to see what is going on, and few enough not to push the rest away.
_KEPT = 6
_TALL, _LOW = "42rem", "22rem"  # of a report with its charts, and of a single table; assumed


def framed(document: Document, *, tall: bool = True) -> str:
    """The document's page in a frame, so that neither its style nor the notebook's reaches the other."""
    page = html.escape(to_html(document), quote=True)
    height = _TALL if tall else _LOW
    return (
        f'<iframe srcdoc="{page}" sandbox="" title="{html.escape(visible(document.title))}" '
        f'style="width: 100%; height: {height}; border: 0"></iframe>'
    )


def section_frame(section: Section) -> str:
    """A single section in a frame."""
    return framed(Document(title=section.title, sections=(section,)), tall=False)


def show_progress() -> Listener:
    """A listener for `on_progress=`: in a notebook one output that is brought up to date, elsewhere lines on stderr.

    In a notebook it shows what is under way, in a race how that stands, and the latest findings.
    """
    shell = _notebook()
    if shell is None:
        return _Lines(time.monotonic)
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return _Output(lambda text: handle.update(HTML(text)), time.monotonic)


def _notebook() -> Any:
    """The shell of a notebook that runs here; None in a terminal, a script or IPython's own terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if shell is not None and getattr(shell, "kernel", None) is not None else None


class _Lines:
    """Each event as a line on stderr."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began_s = clock, clock()

    def __call__(self, progress: Progress) -> None:
        about = "" if progress.predicted_s is None else f" (about {format_duration(progress.predicted_s)})"
        elapsed_s = self._clock() - self._began_s
        print(f"[{elapsed_s:5.1f} s] {progress.stage}: {visible(progress.text)}{about}", file=sys.stderr, flush=True)


class _Output:
    """One output of a notebook: what is under way, how it stands, and the latest findings."""

    def __init__(self, show: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._show, self._clock, self._began_s = show, clock, clock()
        self._findings: deque[str] = deque(maxlen=_KEPT)
        self._standing: Standing | None = None

    def __call__(self, progress: Progress) -> None:
        self._standing = progress.standing or self._standing
        now = f"{progress.stage}: {progress.text}"
        if progress.kind != "began":
            self._findings.append(now)
        elapsed = format_duration(self._clock() - self._began_s)
        lines = [f"<strong>{_text(now)}</strong> ({elapsed})"]
        if self._standing is not None:
            lines += [_text(best_line(self._standing)), _text(trials_line(self._standing, 1))]
        lines.append(f"<small>{'<br>'.join(map(_text, self._findings))}</small>")
        self._show(f'<div style="font-variant-numeric: tabular-nums">{"<br>".join(lines)}</div>')


def _text(text: str) -> str:
    return html.escape(visible(text))
