"""What the page of a `tune` run says: all that the terminal does, and what can only be drawn."""

from __future__ import annotations

from ..reports.report import Report
from .content import report_document
from .document import Document


def page_document(report: Report) -> Document:
    """The whole report as a page of its own."""
    return report_document(report)
