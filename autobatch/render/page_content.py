"""The content of the page of a `tune` run: all that the terminal shows, and what can only be drawn."""

from __future__ import annotations

from ..core.units import format_duration
from ..reports.report import Report
from .content import (
    baseline_name,
    batch_marks,
    comparison_section,
    decimals_of,
    horizon_section,
    not_compared_section,
    origin_section,
    trials_section,
    use_section,
)
from .document import Bullets, Document, Figure, Paragraph, Part, Section
from .evidence import lr_sentence, max_batch_summary, throughput_summary
from .long_run import long_run_section
from .run_charts import (
    confirmation_figure,
    landscape_chart,
    ledger_figure,
    memory_chart,
    range_test_chart,
    score_chart,
    throughput_chart,
)

_AGAIN = (
    "The same command, with the same versions on the same device, does the same again. A new run measures its step "
    "times anew, and with several workers the clock decides who is idle first: its trials may differ."
)


def page_document(report: Report) -> Document:
    """The whole report as a page of its own."""
    decimals = decimals_of(report)
    sections = [
        use_section(report),
        Section(title="Why", parts=(Bullets(items=report.why),)),
    ]
    if report.not_compared is not None or report.horizon_s is None:
        sections.append(not_compared_section(report))
    else:
        sections += [
            _with_figures(comparison_section(report), confirmation_figure(report)),
            horizon_section(report.horizon_s, report.train_time_s),
        ]
    if report.long_run is not None:
        sections.append(long_run_section(report.long_run, baseline_name(report), decimals))
    if report.horizon_s is not None and (report.trials or report.not_compared is None):
        trials, scores = trials_section(report, decimals), score_chart(report, report.horizon_s)
        sections.append(_with_figures(trials, scores, landscape_chart(report)))
    parts: list[Part] = [*max_batch_summary(report.max_batch)]
    if report.throughput is not None and report.throughput.get("assumed") is None:
        parts.append(throughput_chart(report, report.throughput))
    parts.append(memory_chart(report))
    if report.throughput is not None:
        parts += throughput_summary(report.throughput, batch_marks(report))
    sections.append(Section(title="Speed and memory", parts=tuple(parts)))
    if report.learning_rate is not None:
        about = Section(title="Range test", parts=(Paragraph(text=lr_sentence(report.learning_rate)),))
        sections.append(_with_figures(about, range_test_chart(report)))
    sections.append(Section(title="Where the time went", parts=(ledger_figure(report),)))
    if report.warnings:
        sections.append(Section(title="Warnings", parts=(Bullets(items=report.warnings),)))
    origin = origin_section(report)
    sections.append(Section(title="How to reproduce", parts=(Paragraph(text=_AGAIN), *origin.parts)))
    subtitle = f"autobatch tune, {format_duration(report.budget_s)}, {report.created[:10]}"
    return Document(title=report.task, subtitle=subtitle, sections=tuple(sections))


def _with_figures(section: Section, *figures: Figure | None) -> Section:
    """The section with figures behind its first sentences."""
    first, *others = section.parts
    drawn: tuple[Part, ...] = tuple(figure for figure in figures if figure is not None)
    return Section(title=section.title, parts=(first, *drawn, *others))
