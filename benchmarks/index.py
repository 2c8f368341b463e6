"""Makes the tables of devices in README.md, and the pages beside each stored bench report.

    python benchmarks/index.py           write what is not up to date
    python benchmarks/index.py --check   only say what is not, and exit with 1 if anything is

A report that cannot be read is named and ends the work.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from autobatch.core.files import load_json, write_whole
from autobatch.errors import ReportError
from autobatch.render.bench_content import bench_document
from autobatch.render.curves import recommended_point
from autobatch.render.html import to_html
from autobatch.render.markdown import escaped, to_markdown
from autobatch.render.numbers import known, si_text, speed_text
from autobatch.reports.bench_report import BenchReport, is_bench

HERE = Path(__file__).parent
BEGIN = "<!-- devices: begin, made by python benchmarks/index.py -->"
END = "<!-- devices: end -->"

# Models that have a column of their own: as many as `autobatch bench` runs by itself. Measured (Chromium, a README in
# the style of GitHub): with six both tables fit into 830 pixels; one table of all needs 1,128, GitHub gives 1,012.
_COLUMNS = 6


def outdated(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file that is not what it should be, and the text that it should have.

    Args:
        folder: where README.md and results/ are.

    Raises:
        ReportError: a report cannot be read, or README.md has no place for the table.
    """
    reports = bench_reports(folder / "results")
    for path, report in reports:
        document = bench_document(report)
        yield from _differs(path.with_suffix(".md"), to_markdown(document))
        yield from _differs(path.with_suffix(".html"), to_html(document))
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ReportError(f"{readme} needs the lines {BEGIN} and {END}: the table goes between them")
    yield from _differs(readme, f"{before}{BEGIN}\n\n{device_tables(reports, folder)}\n\n{END}{after}")


def bench_reports(results: Path) -> list[tuple[Path, BenchReport]]:
    """Every bench report below a folder, by device and then from the newest to the oldest.

    Raises:
        ReportError: one cannot be read.
    """
    found = []
    for path in sorted(results.glob("*/*.json")):
        data = load_json(path)
        if is_bench(data):
            try:
                found.append((path, BenchReport.from_json(data)))
            except ReportError as error:
                raise ReportError(f"{path}: {error}") from None
    found.sort(key=lambda one: one[1].created, reverse=True)
    return sorted(found, key=lambda one: (one[1].device.kind == "cpu", one[1].device.name))


def device_tables(reports: Sequence[tuple[Path, BenchReport]], folder: Path) -> str:
    """As Markdown: what each report is of and where it lies, then the speeds; a sentence where there is no report."""
    if not reports:
        return "No report is stored yet."
    ran = Counter(model for _, report in reports for model in {c.model for c in report.cells if c.outcome == "ok"})
    models = sorted(sorted(ran), key=lambda model: -ran[model])[:_COLUMNS]
    about = [
        ["device", "date", "models", "cells", "torch", "matrix product"],
        ["---"] * 3 + ["---:", "---", "---:"],
        *(_about(path, report, folder) for path, report in reports),
    ]
    speeds = [
        ["device", "date", "models", *map(escaped, models)],
        ["---"] * 3 + ["---:"] * len(models),
        *([*_which(report), *(_fastest(report, model) for model in models)] for _, report in reports),
    ]
    return "\n\n".join((_markdown(about), _OF_THE_SPEEDS, _markdown(speeds)) if models else (_markdown(about),))


_OF_THE_SPEEDS = (
    "Samples per second at the recommended batch size, computed in the way that was fastest (in brackets). A small\n"
    "model is another one than the full one of its name: compare like with like."
)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _which(report: BenchReport) -> list[str]:
    """What tells a report from the others."""
    size = f"{report.size}{', quick' if report.quick else ''}"
    return [escaped(report.device.name), escaped(report.created[:10]), size]


def _about(path: Path, report: BenchReport, folder: Path) -> list[str]:
    here = path.relative_to(folder)
    links = ", ".join(f"[{word}]({here.with_suffix(end).as_posix()})" for word, end in _LINKS.items())
    done = sum(cell.outcome == "ok" for cell in report.cells)
    products = [cell.matmul_flops_per_s for cell in report.cells if cell.matmul_flops_per_s is not None]
    device, date, size = _which(report)
    return [
        device,
        f"{date}: {links}",
        size,
        f"{done} of {report.planned}",
        escaped(known(report.device.torch)),
        known(max(products, default=None), lambda flops: si_text(flops, "FLOP/s"), "-"),
    ]


_LINKS = {"JSON": ".json", "Markdown": ".md", "page": ".html"}


def _fastest(report: BenchReport, model: str) -> str:
    """The most samples per second at a recommended batch size, and how they were computed."""
    speeds = {}
    for cell in report.cells:
        point = recommended_point(cell.throughput) if cell.model == model and cell.throughput is not None else None
        if point is not None:
            speeds[cell.compute_mode] = point["samples_per_s"]
    if not speeds:
        return "-"
    compute_mode = max(speeds, key=lambda compute_mode: speeds[compute_mode])
    return f"{speed_text(speeds[compute_mode])} ({escaped(compute_mode)})"


def _differs(path: Path, text: str) -> Iterator[tuple[Path, str]]:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        yield path, text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something is outdated")
    arguments = parser.parse_args()
    try:
        files = list(outdated(HERE))
        for path, text in files:
            if not arguments.check:
                write_whole(path, text)
            print(f"{'outdated' if arguments.check else 'wrote'}: {path.relative_to(HERE)}")
    except ReportError as error:
        sys.exit(str(error))
    sys.exit(1 if arguments.check and files else 0)


if __name__ == "__main__":
    main()
