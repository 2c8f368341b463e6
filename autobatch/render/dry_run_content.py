"""What `tune --dry-run` says: what would run, how long each stage gets, and what that buys."""

from __future__ import annotations

from ..core.json_reader import Json
from ..core.units import format_duration
from .document import Bullets, Column, Document, Facts, Paragraph, Part, Section, Table
from .numbers import count_text, known, lr_text, share_text


def dry_run_document(found: Json) -> Document:
    """The plan of a run; `found` as `DryRun.to_json` gives it."""
    sections = [_what(found), _stages(found), Section(title="What that buys", parts=tuple(_buys(found)))]
    if found["warnings"]:
        sections.append(Section(title="Warnings", parts=(Bullets(items=tuple(found["warnings"])),)))
    return Document(
        title=found["task"], subtitle="A dry run: no search, no training, nothing written.", sections=tuple(sections)
    )


def _what(found: Json) -> Section:
    baseline, device = found["baseline"], found["device"]
    plan = f"batch_size {baseline['batch_size']}, accumulation_steps {baseline['accumulation_steps']}"
    at_once = "" if found["workers"] == 1 else f", {found['workers']} trials at the same time"
    most = "" if found["max_trials"] is None else f", at most {count_text(found['max_trials'], 'configuration')}"
    rows = (
        ("device", f"{device['name']} ({device['kind']}){at_once}"),
        ("baseline", f"{plan}, lr {lr_text(baseline['lr'], 6)}, {baseline['precision']}"),
        ("search", f"{found['search']}, seed {found['seed']}{most}"),
    )
    return Section(title="What would run", parts=(Facts(rows=rows),))


def _stages(found: Json) -> Section:
    columns = (
        Column(title="stage"),
        Column(title="gets", is_number=True),
        Column(title="share", is_number=True, optional=True),
        Column(title="does"),
    )
    rows = tuple(
        (
            stage["stage"],
            ("up to " if stage["is_most"] else "") + format_duration(stage["seconds"]),
            share_text(stage["seconds"] / found["budget_s"]),
            stage["does"],
        )
        for stage in found["stages"]
    )
    text = f"Of a budget of {format_duration(found['budget_s'])}; what a stage does not need, the race gets."
    return Section(title="How long each stage gets", parts=(Paragraph(text=text), Table(columns=columns, rows=rows)))


def _buys(found: Json) -> list[Part]:
    parts: list[Part] = []
    horizon_s, step_s = found["horizon_s"], found["step_s"]
    if horizon_s is not None:
        took, about = "How long a step takes is not known", ""
        if step_s is not None:
            took = f"A step of the baseline took {format_duration(step_s)} just now"
            took += known(found["eval_s"], lambda seconds: f", an evaluation {format_duration(seconds)}", "")
            about = f", about {int(horizon_s / step_s):,} steps of the baseline"
        trials = f"{found['full_trials']:.0f} full trainings"
        text = (
            f"{took}. Configurations would be compared at T = {format_duration(horizon_s)} of training{about}. "
            f"There is time for some {trials} of that length, "
            f"{count_text(found['fresh_seeds'], 'of them on a fresh seed').removesuffix('s')}"
        )
        text += " each" if found["fresh_seeds"] != 1 else ""
        parts.append(Paragraph(text=f"{text}. Most trials are stopped at an eighth or a half, so more are tried."))
        if found["train_time_s"] is not None and horizon_s < 0.99 * found["train_time_s"]:
            train = format_duration(found["train_time_s"])
            parts.append(Paragraph(text=f"That is shorter than your training of {train}: the report extrapolates."))
    if found["notes"]:
        parts.append(Bullets(items=tuple(found["notes"])))
    return parts
