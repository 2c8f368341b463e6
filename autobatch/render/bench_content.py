"""The content of a bench report: the overview first, then each model with its curves, then how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

from ..core.json_reader import Json
from ..core.units import format_duration, format_size
from ..core.words import limit_sentence
from ..reports.bench_report import BenchReport, Cell
from .curves import charts_of, recommended_point
from .document import Bullets, Column, Document, Facts, Paragraph, Part, Section, Table
from .evidence import loss_clauses, loss_differs, or_more, provenance
from .numbers import capitalized, count_text, grouped, known, percent_text, share_text, si_text, speed_text

_HOW = (
    "A largest batch has run: whole optimizer steps in a fresh process, within the memory limit.",
    "A throughput is that of the median step, timed with the device synchronised after warm-up, with batches of "
    "synthetic data. The interval beside it is the 95 % interval of that median, and ± is half of that.",
    "The knee is the smallest measured batch with 80 % of the highest throughput.",
    "FLOP are those of the matrix products and convolutions of one forward and backward pass, where a multiplication "
    "and an addition count as two. They are compared with one large matrix product that was timed on the same device "
    "in the same precision.",
    "Energy is what the device reports for the time of the steps, idle power included. It is left out if the device "
    "reports none.",
)


def bench_summary(report: BenchReport) -> Document:
    """The overview alone: on a screen, the whole report would scroll away."""
    whole = bench_document(report)
    return replace(whole, sections=tuple(s for s in whole.sections if s.title in ("In short", "Warnings", "Overview")))


def bench_document(report: BenchReport) -> Document:
    """The whole report, with every choice of content and digits made."""
    compute_modes = list(dict.fromkeys(cell.compute_mode for cell in report.cells))
    slots = {compute_mode: slot for slot, compute_mode in enumerate(compute_modes)}
    models: dict[str, list[Cell]] = {}
    for cell in report.cells:
        models.setdefault(cell.model, []).append(cell)
    sections = [Section(title="In short", parts=_summary(report, models, compute_modes))]
    if warnings := (*report.warnings, *_of_tasks(models)):
        sections.append(Section(title="Warnings", parts=(Bullets(items=warnings),)))
    if report.cells:
        sections.append(Section(title="Overview", parts=(_overview(report.cells),)))
    for name, cells in models.items():
        sections.append(Section(title=name, parts=tuple(_model(name, cells, slots))))
    sections.append(Section(title="How it was measured", parts=(Bullets(items=_HOW),)))
    sections.append(provenance(report.device, version=report.version, created=report.created, command=report.command))
    how = f"{report.size} size{', quick' if report.quick else ''}"
    return Document(
        title=report.device.name, subtitle=f"autobatch bench, {how}, {report.created[:10]}", sections=tuple(sections)
    )


def _of_tasks(models: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """The warnings of the tasks' checks, each once for a model."""
    for name, cells in models.items():
        found = (cell.throughput.get("warnings") or () for cell in cells if cell.throughput is not None)
        for warning in dict.fromkeys(warning for warnings in found for warning in warnings):
            yield f"{name}: {warning}"


def _summary(
    report: BenchReport, models: Mapping[str, Sequence[Cell]], compute_modes: Sequence[str]
) -> tuple[Part, ...]:
    """What was run, what failed, and what stands out."""
    seconds = sum(cell.seconds for cell in report.cells)
    size = "of full size" if report.size == "full" else "in a small size that a processor can train"
    text = f"{count_text(len(models), 'model')} {size}, computed in {_listed(compute_modes) or 'no way'}"
    text += f", in {format_duration(seconds)}. Batch sizes are recommended for {report.objective}."
    if report.quick:
        text += " Each got little time: the intervals are wider than those of a full run."
    items = [*_speedups(models, compute_modes), *_of_matmul(report.cells)]
    failures = [cell for cell in report.cells if cell.outcome == "failed"]
    if failures:
        items.append(f"Failed: {_listed([f'{cell.model} in {cell.compute_mode}' for cell in failures])}.")
    blew_up = [cell for cell in report.cells if (cell.losses or {}).get("diverged_at") is not None]
    if blew_up:
        items.append(
            f"The loss diverged in the first steps: {_listed([f'{c.model} in {c.compute_mode}' for c in blew_up])}."
        )
    if len(report.cells) < report.planned:
        done = f"{len(report.cells)} of {count_text(report.planned, 'cell')}"
        items.append(f"The run was stopped before its end: this report has {done}.")
    return (Paragraph(text=text), Bullets(items=tuple(items))) if items else (Paragraph(text=text),)


def _speedups(models: Mapping[str, Sequence[Cell]], compute_modes: Sequence[str]) -> Iterator[str]:
    """For each compute mode but the first: its samples per second as a multiple of the first one's."""
    for compute_mode in compute_modes[1:]:
        ratios = {}
        for name, cells in models.items():
            speeds = {cell.compute_mode: speed for cell in cells if (speed := _speed(cell)) is not None}
            if compute_mode in speeds and compute_modes[0] in speeds:
                ratios[name] = speeds[compute_mode] / speeds[compute_modes[0]]
        if ratios:
            low, high = (f"{ratio:.3g}" for ratio in (min(ratios.values()), max(ratios.values())))
            times = low if low == high else f"{low} to {high} (median {median(ratios.values()):.3g})"
            where = f"over {len(ratios)} models" if len(ratios) > 1 else f"in {next(iter(ratios))}"
            yield f"{compute_mode} does {times} times the samples/s of {compute_modes[0]} {where}."


def _of_matmul(cells: Sequence[Cell]) -> Iterator[str]:
    shares = {f"{cell.model} in {cell.compute_mode}": share for cell in cells if (share := _share(cell)) is not None}
    if shares:
        least, most = min(shares, key=lambda key: shares[key]), max(shares, key=lambda key: shares[key])
        low = "" if least == most else f", {least} the least with {share_text(shares[least])}"
        yield f"{most} comes closest to a plain matrix product, with {share_text(shares[most])} of its FLOP/s{low}."


def _overview(cells: Sequence[Cell]) -> Table:
    """A row for each cell. Its bar is the share of the matrix product."""
    columns = (
        Column(title="model"),
        Column(title="computed in"),
        Column(title="largest", is_number=True),
        Column(title="peak", is_number=True, optional=True),
        Column(title="knee", is_number=True, optional=True),
        Column(title="fastest", is_number=True, optional=True),
        Column(title="recommended", is_number=True),
        Column(title="samples/s", is_number=True),
        Column(title="±", is_number=True, optional=True),
        Column(title="J/sample", is_number=True, optional=True),
        Column(title="FLOP/s", is_number=True, optional=True),
        Column(title="of matmul", is_number=True, optional=True),
    )
    rows, bars = [], []
    for cell in cells:
        share = _share(cell)
        bars.append(min(1.0, max(0.0, share or 0.0)))
        rows.append((cell.model, cell.compute_mode, *_figures(cell), known(share, share_text, "-")))
    # A column without a value in any row, such as the energy of a device that does not report it, is left out.
    kept = [i for i in range(len(columns)) if i < 8 or any(row[i] != "-" for row in rows)]
    return Table(
        columns=tuple(columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in rows),
        bars=tuple(bars) if any(bars) else (),
        caption="Every model in every compute mode; samples/s and later columns are at the recommended batch size",
    )


def _figures(cell: Cell) -> tuple[str, ...]:
    if cell.max_batch is None or cell.throughput is None:
        return ("failed", *("-",) * 8)
    best = recommended_point(cell.throughput)
    return (
        f"{cell.max_batch['batch_size']}{or_more(cell.max_batch)}",
        known(cell.max_batch["peak_bytes"], format_size, "-"),
        str(cell.throughput["knee_batch_size"]),
        str(cell.throughput["fastest_batch_size"]),
        str(cell.throughput["recommended_batch_size"]),
        known(_speed(cell), speed_text, "-"),
        known(_half_width(best), percent_text, "-"),
        known(best["joules_per_sample"] if best else None, lambda joules: si_text(joules, "J"), "-"),
        known(cell.flops_per_s, lambda flops: si_text(flops, ""), "-"),
    )


def _model(name: str, cells: Sequence[Cell], slots: Mapping[str, int]) -> Iterator[Part]:
    """One model: what it is, the result of each compute mode, and the curves."""
    parameters = next((cell.parameters for cell in cells if cell.parameters is not None), None)
    flops = next((cell.flops_per_sample for cell in cells if cell.flops_per_sample is not None), None)
    facts = [
        known(parameters, lambda count: f"{si_text(count, '')} parameters", ""),
        known(flops, lambda count: f"{si_text(count, 'FLOP')} a sample, forward and backward", ""),
    ]
    if any(facts):
        yield Paragraph(text="; ".join(fact for fact in facts if fact) + ".")
    yield Facts(rows=tuple((cell.compute_mode, " ".join(_sentences(cell))) for cell in cells))
    yield from charts_of(name, cells, slots)
    phases = _phases(cells)
    if phases is not None:
        yield phases


def _sentences(cell: Cell) -> Iterator[str]:
    """The sentences about one cell."""
    found, profiled = cell.max_batch, cell.throughput
    if found is None or profiled is None:
        yield f"Failed: {cell.message or 'no reason is known'}"
        return
    proved = ", and the next larger size failed" if found["proved"] else ""
    limited = limit_sentence(found["limited_by"], f"{found['batch_size']:,}", found["limit_bytes"])
    yield f"{capitalized(limited)}{proved}."
    yield capitalized(profiled["knee"]) + "."
    if profiled.get("recommended"):
        yield capitalized(profiled["recommended"]).removesuffix(".") + "."
    residual = (profiled.get("fit") or {}).get("largest_residual")
    if residual is not None:
        yield (
            "Each size between the smallest and the largest, left out in turn, is predicted from the others within "
            f"{percent_text(residual)} of its undisturbed time."
        )
    if cell.loss_difference is not None:
        yield f"Its loss {loss_differs(cell.loss_difference, 'fp32')}."
    yield from (capitalized(f"{clause}.") for clause in loss_clauses(cell.losses))
    for sentence in (profiled["starvation"], profiled.get("remedy")):
        if sentence:
            yield capitalized(sentence)
    remarks = ((point["batch_size"], remark) for point in profiled["measurements"] for remark in point["remarks"])
    for sizes, remark in grouped(remarks):
        yield f"In doubt at batch {', '.join(map(str, sizes))}: {remark}."
    if profiled["skipped"]:
        yield f"Not timed, for lack of time: {', '.join(map(str, profiled['skipped']))}."
    yield from (f"Assumed: {sentence}." for sentence in found["assumed"])


def _phases(cells: Sequence[Cell]) -> Table | None:
    """The step time at the recommended batch, and the share of each phase; None if nothing measured it."""
    at_best = {cell.compute_mode: recommended_point(cell.throughput) for cell in cells if cell.throughput is not None}
    timed = {compute_mode: point for compute_mode, point in at_best.items() if point is not None and point["phases_s"]}
    phases = list(dict.fromkeys(phase for point in timed.values() for phase in point["phases_s"]))
    if not timed:
        return None
    rows = []
    for compute_mode, point in timed.items():
        whole_s = sum(point["phases_s"].values())
        shares = [point["phases_s"].get(phase, 0.0) / whole_s if whole_s > 0 else None for phase in phases]
        step = known(point["step_s"], format_duration, "-")
        rows.append(
            (compute_mode, str(point["batch_size"]), step, *(known(share, share_text, "-") for share in shares))
        )
    columns = [Column(title="computed in")]
    columns += [Column(title=title, is_number=True) for title in ("batch", "step", *phases)]
    return Table(
        columns=tuple(columns), rows=tuple(rows), caption="Where the time of a step goes, at the recommended batch size"
    )


def _speed(cell: Cell) -> float | None:
    """Samples per second at the recommended batch size."""
    best = None if cell.throughput is None else recommended_point(cell.throughput)
    return None if best is None else best["samples_per_s"]


def _half_width(point: Json | None) -> float | None:
    """Half of the interval of the step time as a share of the time."""
    if point is None or not point.get("interval_s") or not point["step_s"]:
        return None
    low, high = point["interval_s"]
    share: float = (high - low) / 2 / point["step_s"]
    return share


def _share(cell: Cell) -> float | None:
    """Achieved FLOP/s over those of a plain matrix product."""
    if cell.flops_per_s is None or not cell.matmul_flops_per_s:
        return None
    return cell.flops_per_s / cell.matmul_flops_per_s


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
