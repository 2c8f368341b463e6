"""Stored reports as what is shown of them: one as it is, several as a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ReportError
from ..reports.bench_report import BenchReport, load_report
from ..reports.compare import compare
from .bench_content import bench_document
from .compare_content import comparison_document
from .content import report_document
from .document import Document


def read_reports(files: Sequence[Path]) -> tuple[dict[str, Any], Document]:
    """A report, or several of them against the first: as plain JSON values, and as a document.

    Raises:
        ReportError: one cannot be read; several are not of `autobatch bench`, or cannot be compared.
    """
    stored = [load_report(file) for file in files]
    if len(stored) == 1:
        (one,) = stored
        return one.to_json(), bench_document(one) if isinstance(one, BenchReport) else report_document(one)
    named = [(name, one) for name, one in zip(_names(files), stored, strict=True) if isinstance(one, BenchReport)]
    if len(named) < len(stored):
        others = [str(file) for file, one in zip(files, stored, strict=True) if not isinstance(one, BenchReport)]
        raise ReportError(f'only reports of "autobatch bench" are compared; of "autobatch tune": {", ".join(others)}')
    comparison = compare(named)
    return comparison.to_json(), comparison_document(comparison)


def _names(files: Sequence[Path]) -> list[str]:
    """The files' own names where those tell them apart, else all of their paths."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]
