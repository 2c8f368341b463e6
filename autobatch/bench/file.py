"""The file of a bench report, and what is kept in it from earlier commands.

A result is kept if it would be measured in the same way: with the same software on the same device under the same
settings, which hold for the whole report, and from a task file with the same contents, which is checked for each model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ..core.facts import DeviceInfo
from ..core.files import load_json
from ..core.units import format_size
from ..devices.backend import BACKENDS
from ..errors import ReportError
from ..reports.bench_report import BenchReport, is_bench


def folder_for(device: DeviceInfo, cores: int, results: Path) -> Path:
    """The folder of a device's reports: `<results>/<device>`."""
    name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") or device.kind
    if BACKENDS[device.kind].is_processor:
        name += f"-{cores}-core" + ("s" if cores > 1 else "")
    return results / name


def file_for(report: BenchReport, folder: Path) -> Path:
    """The newest file in the folder that the same command left unfinished, otherwise today's, `<date>.json`.

    Args:
        report: the new report, without a cell.
        folder: from `folder_for`.
    """
    begun = [(earlier.created, path) for path, earlier in _stored(folder) if _left_unfinished(earlier, report)]
    return max(begun)[1] if begun else folder / f"{datetime.now(UTC):%Y-%m-%d}.json"


def _stored(folder: Path) -> Iterator[tuple[Path, BenchReport]]:
    for path in folder.glob("*.json"):
        try:
            data = load_json(path)
            if is_bench(data):
                yield path, BenchReport.from_json(data)
        except ReportError:  # it cannot be continued; today's is refused when it is read
            continue


def _left_unfinished(earlier: BenchReport, now: BenchReport) -> bool:
    is_same = set(earlier.requested) == set(now.requested) and earlier.settings is not None
    return is_same and bool(earlier.missing) and not _changes(earlier, now)


def with_earlier(report: BenchReport, path: Path, sources: Mapping[str, str]) -> tuple[BenchReport, tuple[str, ...]]:
    """The report with the cells that an earlier command left in its file.

    Requested cells that failed are not kept, so that they are run again. Nor are cells of a model whose task file has
    changed.

    Args:
        report: the new report, without a cell.
        path: its file.
        sources: the digest of each requested model's task file (`task_sources.source_digest`).

    Returns:
        The report, and the models whose cells were not kept because their task files have changed.

    Raises:
        ReportError: the file has another report, or one with other settings.
    """
    if not path.exists():
        return report, ()
    earlier = BenchReport.load(path)
    ways_out = "name another --output, or delete it"
    if earlier.settings is None:
        raise ReportError(f"{path} holds a report that does not say under which settings it was made: {ways_out}")
    changes = _changes(earlier, report)
    if changes:
        raise ReportError(f"{path} holds a report to go on with, but {' and '.join(changes)} changed since: {ways_out}")
    other = {cell.model for cell in earlier.cells if cell.source != sources.get(cell.model, cell.source)}
    kept = tuple(
        cell
        for cell in earlier.cells
        if cell.model not in other and (cell.outcome == "ok" or (cell.model, cell.compute_mode) not in report.requested)
    )
    beside = sum((cell.model, cell.compute_mode) not in report.requested for cell in kept)
    kept_report = replace(report, created=earlier.created, cells=kept, planned=report.planned + beside)
    return kept_report, tuple(sorted(other))


def _changes(earlier: BenchReport, now: BenchReport) -> list[str]:
    """A name for each thing that must be the same for two cells of one report, and is not.

    If the user may have set it, its value follows.
    """
    then, here = earlier.device, now.device
    same = {
        "autobatch": (earlier.version, now.version),
        "the device": ((then.name, then.uuid), (here.name, here.uuid)),
        "the driver": (then.driver, here.driver),
        "the runtime": (then.runtime, here.runtime),
        "torch": (then.torch, here.torch),
        "Python": (then.python, here.python),
        "the size of the models": (earlier.size, now.size),
        "--quick": (earlier.quick, now.quick),
        "--objective": (earlier.objective, now.objective),
    }
    found = [what for what, (before, after) in same.items() if before != after]
    values: dict[str, tuple[object, object]] = {"the power limit": (then.power_limit_w, here.power_limit_w)}
    for key, name in _SETTINGS.items():
        values[name] = ((earlier.settings or {}).get(key), (now.settings or {}).get(key))
    for name, (before, after) in values.items():
        if before != after:
            found.append(f"{name} ({_value_text(name, before)} then, {_value_text(name, after)} now)")
    return found


_MEMORY = "the memory limit"
_SETTINGS = {
    "memory_limit_bytes": _MEMORY,
    "headroom": "--headroom",
    "max_batch_size": "--max-batch-size",
    "threads": "the number of threads",
}
_UNITS: Mapping[str, Callable[[float], str]] = {_MEMORY: format_size, "the power limit": lambda watts: f"{watts:g} W"}


def _value_text(name: str, value: object) -> str:
    if not isinstance(value, int | float):
        return "none"
    return _UNITS[name](value) if name in _UNITS else str(value)
