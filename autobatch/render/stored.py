"""Stored reports for display: one alone, or several as a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ReportError
from ..reports.bench_report import BenchReport, load_report
from ..reports.compare import compare
from ..reports.report import Report
from .bench_content import bench_document
from .compare_content import comparison_document
from .content import report_document
from .document import Document
from .page_content import page_document


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A stored report, or a comparison of several.

    Attributes:
        result: as plain JSON values.
        document, page: for a terminal and Markdown, and for a separate page.
        tuned: the report, if it is one of `tune`.
    """

    result: dict[str, Any]
    document: Document
    page: Document
    tuned: Report | None = None


def read_reports(files: Sequence[Path]) -> Stored:
    """A report, or several of them against the first.

    Raises:
        ReportError: one cannot be read; several are not of `autobatch bench`, or cannot be compared.
    """
    stored = [load_report(file) for file in files]
    if len(stored) == 1:
        (one,) = stored
        if isinstance(one, Report):
            return Stored(result=one.to_json(), document=report_document(one), page=page_document(one), tuned=one)
        document = bench_document(one)
        return Stored(result=one.to_json(), document=document, page=document)
    named = [(name, one) for name, one in zip(_names(files), stored, strict=True) if isinstance(one, BenchReport)]
    if len(named) < len(stored):
        others = [str(file) for file, one in zip(files, stored, strict=True) if not isinstance(one, BenchReport)]
        raise ReportError(f'only reports of "autobatch bench" are compared; of "autobatch tune": {", ".join(others)}')
    comparison = compare(named)
    document = comparison_document(comparison)
    return Stored(result=comparison.to_json(), document=document, page=document)


def _names(files: Sequence[Path]) -> list[str]:
    """The names of the files if those differ, otherwise their paths."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]
