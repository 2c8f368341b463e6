"""What a command prints: its result to stdout, its progress to stderr."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DeviceLost, StorageError, after_warnings
from ..render.document import visible
from .exits import INTERRUPTED, fail
from .exports import write_page

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.progress import Listener, Progress
    from ..render.document import Document
    from ..reports.bench_report import BenchReport
    from ..reports.report import Report

# When the command is ended, the results of these stages are already in a file.
_FILED = {"bench"}


def check_output(options: Mapping[str, Any]) -> None:
    if options["output"] is not None:
        from ..core.files import check_writable

        check_writable(options["output"])


def show_report(report: Report, options: Mapping[str, Any]) -> None:
    from ..render.content import report_document

    show_document(report.to_json(), report_document(report), options)


def show_document(result: Any, document: Document, options: Mapping[str, Any]) -> None:
    from ..render.terminal import print_document

    show(result, lambda _, console: print_document(document, console), options)


def show(result: Any, draw: Callable[[Any, Console], None], options: Mapping[str, Any]) -> None:
    """Print the result to stdout, drawn or as JSON, and write it to the --output file if there is one."""
    text = json.dumps(result, indent=1, allow_nan=False)
    if options["output"] is not None:
        from ..core.files import write_whole

        write_whole(options["output"], text + "\n")
    if options["as_json"]:
        click.echo(text)
        return
    from rich.console import Console

    draw(result, Console())


@contextmanager
def progress_on_stderr(
    options: Mapping[str, Any], budget_s: float | None = None, how_to_resume: str | None = None
) -> Iterator[Listener]:
    """A listener that writes progress to stderr: a live line on a terminal, plain lines elsewhere, nothing if quiet.

    If Ctrl-C ends the command, it prints the last result of each stage. In the memory stage that is the largest batch
    that ran, because no smaller one is tried afterwards.
    """
    from rich.console import Console

    from ..render.live import live_progress

    found: dict[str, str] = {}
    try:
        with live_progress(Console(stderr=True), budget_s=budget_s, quiet=options["quiet"]) as listen:

            def heard(progress: Progress) -> None:
                if progress.kind == "found" and progress.stage not in _FILED:
                    found[progress.stage] = progress.text
                listen(progress)

            yield heard
    except KeyboardInterrupt:
        if not found:
            raise
        lines = [f"{stage}: {text}" for stage, text in found.items()]
        if how_to_resume is not None:
            lines.append(f"Continue with: {how_to_resume}")
        fail("\n".join(["interrupted. Results so far:", *lines]), INTERRUPTED)
    except StorageError as error:
        if how_to_resume is None:
            raise
        with after_warnings(error.warnings):
            raise StorageError(
                f"{error}. The results are kept: make room, then continue with: {how_to_resume}"
            ) from None
    except DeviceLost as lost:
        if how_to_resume is None:
            raise
        with after_warnings(lost.warnings):
            raise DeviceLost(f"{lost}. Once there is one, continue with: {how_to_resume}") from None


def show_bench(report: BenchReport, path: Path, options: Mapping[str, Any]) -> None:
    """Print the overview to stdout; the report is already in its file."""
    from ..render.bench_content import bench_document, bench_summary
    from ..render.terminal import print_document

    write_page(bench_document(report), options)
    summary = bench_summary(report)
    show(report.to_json(), lambda _, console: print_document(summary, console), {**options, "output": None})
    click.echo(
        f"The whole report is in {visible(str(path))}: `autobatch report {visible(shlex.quote(str(path)))}` prints it",
        err=True,
    )
