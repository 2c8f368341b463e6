"""The content of a comparison of bench reports: what is compared, then each report against the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..reports.compare import Against, Comparison, Pair, Ratio
from .curves import series_table
from .document import Bullets, Chart, Column, Document, Facts, Paragraph, Part, Point, Section, Series, Table
from .evidence import provenance
from .numbers import capitalized

_HOW = (
    "A ratio above 1 is more than in the first report: more samples per second, a larger batch, more energy.",
    'After a ratio comes its 95 % interval. "No difference" means that 1 is inside it.',
    "The interval combines those of the two median step times, taken as independent: on a logarithmic scale their "
    "half-widths add in squares. Differences between days, or between cards of one kind, are not included.",
    "Largest batches are counted and have no interval. If memory was not the limit in one report, only a bound is "
    "known. The error of an energy is unknown, so no difference of energies is called one.",
)


def comparison_document(comparison: Comparison) -> Document:
    """The whole comparison, with every choice of content and digits made."""
    devices = [comparison.report.device.name, *(other.report.device.name for other in comparison.against)]
    sections = [_section(comparison, other) for other in comparison.against]
    sections.append(Section(title="How to read it", parts=(Bullets(items=_HOW),)))
    for name, report in ((comparison.name, comparison.report), *((o.name, o.report) for o in comparison.against)):
        measured = provenance(report.device, version=report.version, created=report.created, command=report.command)
        sections.append(Section(title=f"{name}: measured on", parts=measured.parts))
    return Document(
        title=" against ".join([" and ".join(devices[1:]), devices[0]]),
        subtitle=f"autobatch report, models of {comparison.report.size} size",
        sections=tuple(sections),
    )


def ratio_text(ratio: Ratio | None) -> str:
    """`1.52 (1.49 to 1.55)`, `1.01 (0.98 to 1.03), no difference`; without errors `2.00`; "-" for None.

    With only one end, `at least 2.00`.
    """
    if ratio is None:
        return "-"
    if ratio.low is None and ratio.high is None:
        return f"{_times(ratio.value, 2)}, interval unknown"
    if ratio.high is None:
        return f"at least {_times(ratio.low or 0.0, 2)}"
    if ratio.low is None:
        return f"at most {_times(ratio.high, 2)}"
    if ratio.low == ratio.high:
        return "the same" if ratio.value == 1 else _times(ratio.value, 2)
    # The interval to two digits, at most three decimals.
    decimals = min(3, max(2, 1 - math.floor(math.log10((ratio.high - ratio.low) / 2))))
    value, low, high = (_times(number, decimals) for number in (ratio.value, ratio.low, ratio.high))
    same = ", no difference" if ratio.verdict == "no difference" else ""
    return f"{value} ({low} to {high}){same}"


def _times(value: float, decimals: int) -> str:
    """The ratio with this many decimals; small and large ratios have three digits."""
    return f"{value:.{decimals}f}" if 0.1 <= value < 100 else f"{value:.3g}"


def _section(comparison: Comparison, other: Against) -> Section:
    facts = Facts(
        rows=tuple(
            (name, f"{report.device.name}, {report.created[:10]}")
            for name, report in ((other.name, other.report), (comparison.name, comparison.report))
        )
    )
    remarks = tuple(capitalized(f"{sentence}.") for sentence in (*other.remarks, *other.left_out))
    parts: list[Part] = [facts, Paragraph(text=_summary(other.pairs)), _overview(other.pairs)]
    if remarks:
        parts.append(Bullets(items=remarks))
    parts += _charts(other.pairs)
    return Section(title=f"{other.name} against {comparison.name}", parts=tuple(parts))


def _summary(pairs: Sequence[Pair]) -> str:
    """How many are faster, slower, and neither."""
    verdicts = [pair.at_recommended.verdict for pair in pairs if pair.at_recommended is not None]
    words = {"more": "faster", "less": "slower", "no difference": "without a difference", "unknown": "not known"}
    counts = [f"{verdicts.count(v)} {words[v]}" for v in ("more", "less", "no difference", "unknown") if v in verdicts]
    return f"Of {len(pairs)} in common, at the recommended batch sizes: {', '.join(counts) or 'none was timed'}."


def _overview(pairs: Sequence[Pair]) -> Table:
    has_energy = any(pair.energy is not None for pair in pairs)
    columns = [
        Column(title="model"),
        Column(title="computed in"),
        Column(title="samples/s, recommended", is_number=True),
        Column(title="samples/s, same batch", is_number=True, optional=True),
        Column(title="largest batch", is_number=True),
        *([Column(title="J/sample", is_number=True, optional=True)] if has_energy else []),
    ]
    rows = [
        (
            pair.model,
            pair.compute_mode,
            ratio_text(pair.at_recommended),
            ratio_text(pair.over_common),
            _largest_text(pair.largest),
            *([ratio_text(pair.energy)] if has_energy else []),
        )
        for pair in pairs
    ]
    return Table(columns=tuple(columns), rows=tuple(rows), caption="Ratios, each to the first report's value")


def _largest_text(ratio: Ratio) -> str:
    """The ratio of two counts; "unknown" if memory was the limit in neither report."""
    return "unknown" if ratio.low is None and ratio.high is None else ratio_text(ratio)


def _charts(pairs: Sequence[Pair]) -> Iterator[Chart]:
    """For each model: the ratio at each batch size that both timed."""
    slots = {compute_mode: slot for slot, compute_mode in enumerate(dict.fromkeys(pair.compute_mode for pair in pairs))}
    models: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.at_common:
            models.setdefault(pair.model, []).append(pair)
    for model, of_model in models.items():
        series = tuple(_series(pair, slots[pair.compute_mode]) for pair in of_model)
        found = [f"{pair.compute_mode} {ratio_text(pair.over_common)}" for pair in of_model]
        yield Chart(
            title=model,
            finding=f"Over the batch sizes in common: {'; '.join(found)}.",
            unit="times",
            series=series,
            level=("no difference", 1.0),
            table=series_table(f"{model}: samples/s, times the first report's", series, _point_text),
        )


def _series(pair: Pair, slot: int) -> Series:
    points = [Point(x=size, value=one.value, low=one.low, high=one.high) for size, one in pair.at_common.items()]
    marks = (("recommended", pair.batch_sizes[1]),) if pair.batch_sizes[1] in pair.at_common else ()
    return Series(name=pair.compute_mode, slot=slot, points=tuple(points), marks=marks)


def _point_text(point: Point) -> str:
    return ratio_text(Ratio(value=point.value, low=point.low, high=point.high))
