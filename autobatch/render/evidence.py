"""The content of each piece of evidence: the largest batch, the throughput, the range test, the device.

All are read from the JSON of `memory`, `throughput` and `learning_rate`, so that a stored report is drawn like a fresh
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from ..core.facts import DeviceInfo
from ..core.json_reader import Json
from ..core.units import format_duration, format_lr, format_size
from ..core.words import limit_sentence, outcome_text
from .document import Bullets, Column, Facts, Paragraph, Part, Section, Table
from .numbers import (
    capitalized,
    count_text,
    grouped,
    known,
    lr_text,
    percent_text,
    score_decimals,
    score_text,
    share_text,
    speed_text,
)

# The number of rows of a range test that are shown. Assumed: its shape shows, and it fits on a screen.
_LR_ROWS = 16


def max_batch_summary(found: Json) -> tuple[Part, ...]:
    """The largest batch, its peak, and its limit."""
    peak, limit = found["peak_bytes"], found["limit_bytes"]
    used = f"a peak of {format_size(peak)}" if peak is not None else "an unknown peak"
    share = f" ({share_text(peak / limit)})" if peak is not None and limit else ""
    allocated = found.get("allocated_bytes")
    in_tensors = "" if allocated is None else f"; {format_size(allocated)} of the peak were in tensors"
    proof = ""
    if found["proved"]:
        proof = " The next larger size was run too, and failed."
    elif found.get("why_not_proved") is not None:  # a proof was requested
        proof = f" No proof: {found['why_not_proved']}."
    limited = capitalized(limit_sentence(found["limited_by"], str(found["batch_size"]), limit))
    text = (
        f"{count_text(found['batch_size'], 'sample')} ran, with {used} of the {known(limit, format_size)} "
        f"that may be used{share}{in_tensors}. {limited}.{proof}"
    )
    assumed = tuple(f"assumed: {sentence}" for sentence in found["assumed"])
    return (Paragraph(text=text), Bullets(items=assumed)) if assumed else (Paragraph(text=text),)


def max_batch_section(found: Json) -> Section:
    """The largest batch and every probe."""
    probes = found["probes"]
    columns = (
        Column(title="batch", is_number=True),
        Column(title="outcome"),
        Column(title="peak", is_number=True),
        Column(title="time", is_number=True, optional=True),
        Column(title="process", optional=True),
    )
    rows = tuple(
        (
            str(probe["batch_size"]),
            outcome_text(probe["outcome"]),
            known(probe["peak_bytes"], format_size, "-"),
            known(probe["seconds"], format_duration, "-"),
            "fresh" if probe["fresh"] else "shared",
        )
        for probe in probes
    )
    table = Table(columns=columns, rows=rows, bars=_shares([probe["peak_bytes"] for probe in probes]))
    return Section(title="Largest batch", parts=(*max_batch_summary(found), *_warnings(found), table))


def _warnings(found: Json) -> Iterator[Part]:
    """The warnings of the task's check, for a result that has no other section for them."""
    if found.get("warnings"):
        yield Bullets(items=tuple(f"warning: {sentence}" for sentence in found["warnings"]))


def or_more(found: Json) -> str:
    """ " or more" after a largest batch if memory was not the limit; otherwise nothing."""
    return "" if found["limited_by"] == "memory" else " or more"


def throughput_summary(found: Json, marks: Mapping[int, str]) -> tuple[Part, ...]:
    """Samples per second over batch sizes.

    Args:
        found: `ThroughputCurve.to_json`.
        marks: a word for a batch size, such as "chosen". The knee is always marked.
    """
    if found.get("assumed") is not None:
        return (Paragraph(text=f"{capitalized(found['knee'])}."),)
    points = found["measurements"]
    columns = (
        Column(title="batch", is_number=True),
        Column(title="samples/s", is_number=True),
        Column(title="", optional=True),
    )
    rows = tuple((str(p["batch_size"]), _speed_or_outcome(p), _marks_of(p, found, marks)) for p in points)
    return (Table(columns=columns, rows=rows, bars=_shares([_speed(p) for p in points])), *_remarks(found))


def throughput_section(found: Json) -> Section:
    """The whole profile."""
    points = found["measurements"]
    fastest = found["fastest_batch_size"]
    speed = next((_speed(point) for point in points if point["batch_size"] == fastest), None)
    at_fastest = "" if speed is None else f": {speed_text(speed)} samples/s"
    summary = f"Fastest at batch {fastest}{at_fastest}. {capitalized(found['knee'])}."
    if found.get("ranks", 1) > 1:
        summary += f" Batch sizes are per process, of {found['ranks']} processes; samples/s are those of all."
    if "recommended" in found:  # older reports have no recommendation
        summary += f" Recommended: {found['recommended']}."
    has_energy = any(point.get("joules_per_sample") is not None for point in points)
    columns = (
        Column(title="batch", is_number=True),
        Column(title="samples/s", is_number=True),
        Column(title="J/sample" if has_energy else "", is_number=True),
        Column(title=""),
        Column(title="step", is_number=True),
        Column(title="spread", is_number=True, optional=True),
        Column(title="compute alone", is_number=True, optional=True),
        Column(title="loader alone", is_number=True, optional=True),
    )
    rows = tuple(
        (
            str(point["batch_size"]),
            _speed_or_outcome(point),
            known(point.get("joules_per_sample"), lambda joules: f"{joules:.3g}", "-" if has_energy else ""),
            _marks_of(point, found, {}),
            known(_step_s(point), format_duration, "-"),
            known(point["spread_s"], format_duration, "-"),
            known(point["compute_samples_per_s"], speed_text, "-"),
            known(point["loader_samples_per_s"], speed_text, "-"),
        )
        for point in points
    )
    table = Table(columns=columns, rows=rows, bars=_shares([_speed(point) for point in points]))
    parts = (Paragraph(text=summary), *_warnings(found), table, *_phases(found), *_remarks(found))
    return Section(title="Throughput", parts=parts)


def _phases(found: Json) -> Iterator[Part]:
    """Where the time of a step goes at the recommended size."""
    best = found.get("recommended_batch_size")
    for point in found["measurements"]:
        phases = point.get("phases_s")
        total = sum(phases.values()) if phases else 0.0
        if point["batch_size"] == best and phases and total:
            shares = ", ".join(f"{part} {share_text(seconds / total)}" for part, seconds in phases.items())
            yield Paragraph(
                text=f"Where a step of {best} goes, with the device synchronised after each part: {shares}; "
                f"{format_duration(total)} in all."
            )


def lr_sentence(found: Json) -> str:
    """What the range test suggests, where it blew up, and what it left out of the task."""
    batch = found["batch_size"] * found["accumulation_steps"] * found.get("ranks", 1)
    suggestion = known(found["suggestion"], format_lr, "nothing: the loss never fell by more than its noise")
    blew_up = known(found["diverged_at"], lambda lr: f"blew up at {format_lr(lr)}", "never blew up")
    left_out = " The task's schedule was left out: the test sets the rate of each step itself."
    return (
        f"The rule {found['rule']} suggests {suggestion}, at batch {batch}; the loss {blew_up}."
        f"{left_out if found.get('without_schedule') else ''}"
    )


def lr_section(found: Json) -> Section:
    """The range test, its smoothed losses thinned to a screenful."""
    lrs, smoothed = found["lrs"], found["smoothed"]
    parts: tuple[Part, ...] = (Paragraph(text=lr_sentence(found)), *_warnings(found))
    if smoothed:
        lowest = min(range(len(smoothed)), key=lambda step: smoothed[step])
        decimals = score_decimals(smoothed[:1], [])
        stride = -(-len(smoothed) // _LR_ROWS)
        steps = sorted({*range(0, len(smoothed), stride), lowest})
        columns = (
            Column(title="learning rate", is_number=True),
            Column(title="smoothed loss", is_number=True),
            Column(title=""),
        )
        rows = tuple(
            (lr_text(lrs[step], 2), score_text(smoothed[step], decimals), "lowest" if step == lowest else "")
            for step in steps
        )
        # A loss that has blown up would flatten all others, so the scale ends at twice the first loss.
        scale = 2 * smoothed[0] if smoothed[0] > 0 else max(smoothed)
        parts += (Table(columns=columns, rows=rows, bars=_shares([min(smoothed[s], scale) for s in steps])),)
    return Section(title="Range test", parts=parts)


def loss_differs(difference: Json, reference: str) -> str:
    """A clause on how far a loss is from that of a reference; `difference` is `LossDifference.to_json`."""
    first, largest = percent_text(abs(difference["first"])), percent_text(abs(difference["largest"]))
    steps = count_text(difference["steps"], "step")
    return f"differs from that of {reference} by {first} in the first step and by at most {largest} in {steps}"


def loss_clauses(losses: Json | None) -> Iterator[str]:
    """Clauses on a loss that diverged, or that could not be compared; empty if all went well.

    Args:
        losses: `compute_modes.losses_to_json`; None if unknown, as in older reports.
    """
    if losses is not None and losses["diverged_at"] is not None:
        yield f"the loss diverged at step {losses['diverged_at']}"
    if losses is not None and losses["message"] is not None:
        yield f"the loss is not compared: {losses['message']}"


def device_facts(device: DeviceInfo) -> tuple[tuple[str, str], ...]:
    """Every fact about a device; "unknown" if it could not be read."""
    return (
        ("name", device.name),
        ("kind", device.kind),
        ("index", known(device.index)),
        ("memory", known(device.memory_bytes, format_size)),
        ("free memory", known(device.free_bytes, format_size)),
        ("threads", known(device.threads)),
        ("driver", known(device.driver)),
        ("runtime", known(device.runtime)),
        ("torch", known(device.torch)),
        ("Python", known(device.python)),
        ("power limit", known(device.power_limit_w, lambda watts: f"{watts:.0f} W")),
        ("uuid", known(device.uuid)),
    )


def provenance(device: DeviceInfo, *, version: str, created: str, command: str, seed: int | None = None) -> Section:
    """What makes a run comparable with another: the device, the software, when and how it was called."""
    software = {
        "torch": device.torch,
        "Python": device.python,
        "runtime": device.runtime,
        "driver": device.driver,
        "autobatch": version,
    }
    versions = ", ".join(f"{name} {known(version)}" for name, version in software.items() if version is not None)
    threads = "" if device.threads is None else f", {count_text(device.threads, 'thread')}"
    limit = () if device.power_limit_w is None else (("power limit", f"{device.power_limit_w:.0f} W"),)
    rows = (
        ("device", f"{device.name} ({device.kind}{threads})"),
        ("memory", known(device.memory_bytes, format_size)),
        *limit,
        ("versions", versions),
        ("started", created),
        ("command", command),
        *(() if seed is None else (("seed", str(seed)),)),
    )
    notes = tuple(("note", note) for note in device.notes)
    return Section(title="Measured on", parts=(Facts(rows=rows + notes),))


def device_section(device: DeviceInfo) -> Section:
    """Every fact about a device, and why a fact is missing."""
    facts = Facts(rows=device_facts(device)[1:])
    notes: tuple[Part, ...] = (Bullets(items=device.notes),) if device.notes else ()
    return Section(title=device.name, parts=(facts, *notes))


def _speed_or_outcome(point: Json) -> str:
    outcome: str = point["outcome"]
    return known(_speed(point), speed_text, outcome_text(outcome))


def _speed(point: Json) -> float | None:
    """Samples per second by the fitted curve of undisturbed times, which also determines the knee and the fastest size.

    Older reports have only the median of that size's own steps.
    """
    speed: float | None = point["samples_per_s"]
    return speed if speed is None else point.get("undisturbed_samples_per_s", speed)


def _step_s(point: Json) -> float | None:
    """Seconds of a step by the same curve."""
    seconds: float | None = point["step_s"]
    return seconds if seconds is None else point.get("undisturbed_step_s", seconds)


def _marks_of(point: Json, found: Json, marks: Mapping[int, str]) -> str:
    size = point["batch_size"]
    is_known = found.get("saturates", True)  # missing in older reports
    knee = ("knee",) if is_known and size == found["knee_batch_size"] else ()
    return ", ".join(chain(knee, (marks[size],) if size in marks else ()))


def _remarks(found: Json) -> Iterator[Part]:
    """Remarks on the figures: a starving device, and sizes for which there was no time."""
    if found["starvation"] is not None:
        yield Paragraph(text=found["starvation"])
    if found.get("remedy") is not None:
        yield Paragraph(text=found["remedy"])
    doubts = grouped(
        (point["batch_size"], remark) for point in found["measurements"] for remark in point.get("remarks", ())
    )
    if doubts:
        yield Paragraph(text="What makes times doubtful:")
        yield Bullets(items=tuple(f"at batch {', '.join(map(str, sizes))}: {remark}" for sizes, remark in doubts))
    if found["skipped"]:
        sizes = ", ".join(str(size) for size in found["skipped"])
        yield Paragraph(text=f"Not timed, for lack of time: {sizes}.")


def _shares(values: list[float | None]) -> tuple[float, ...]:
    """Each value as a share of the largest; 0 for an unknown or negative one."""
    largest = max((value for value in values if value is not None), default=0)
    return tuple(max(0.0, value / largest) if value is not None and largest > 0 else 0.0 for value in values)


def runs_section(runs: Sequence[Json]) -> Section:
    """The status of each run."""
    if not runs:
        return Section(title="Runs", parts=(Paragraph(text="There are none here."),))
    columns = (
        Column(title="run"),
        Column(title="state"),
        Column(title="spent", is_number=True),
        Column(title="best so far", is_number=True),
        Column(title="trials", is_number=True, optional=True),
        Column(title="budget", is_number=True, optional=True),
        Column(title="batch", is_number=True, optional=True),
        Column(title="lr", is_number=True, optional=True),
        Column(title="started", optional=True),
    )
    rows = tuple(
        (
            run["path"],
            run["status"],
            known(run["spent_s"], format_duration, "-"),
            known(run["score"], lambda score: f"{score:.4g}", "-"),
            known(run["trials"], str, "-"),
            known(run["budget_s"], format_duration, "-"),
            known(run["plan"], lambda plan: str(plan["effective_batch_size"]), "-"),
            known(run["plan"], lambda plan: lr_text(plan["lr"]), "-"),
            known(run["created"], str, "-"),
        )
        for run in runs
    )
    notes = tuple(f"{run['path']}: {run['note']}" for run in runs if run["note"] is not None)
    table = Table(columns=columns, rows=rows)
    return Section(title="Runs", parts=(table, Bullets(items=notes)) if notes else (table,))
