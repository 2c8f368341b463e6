"""Bench reports side by side: ratios of speed, size and energy, and how certain they are.

The other reports are compared with the first. Only what both ran is compared, and only for models of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..core.codec import device_to_json
from ..core.json_reader import Json
from ..core.units import format_size
from ..errors import ReportError
from .bench_report import BenchReport, Cell

KIND = "bench comparison"
# Increased by one whenever a key changes its meaning or goes away; new keys alone do not increase it.
SCHEMA = 1

Verdict = Literal["more", "less", "no difference", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One value over another.

    Attributes:
        value: above zero.
        low, high: ends of its 95 % interval, each None if it is unknown; both equal to `value` if there are no errors,
            as for a count.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether it is above or below 1, for which one end is enough; "no difference" if 1 is inside both."""
        if self.low is not None and self.low > 1:
            return "more"
        if self.high is not None and self.high < 1:
            return "less"
        return "unknown" if self.low is None or self.high is None else "no difference"

    def to_json(self) -> dict[str, Any]:
        """The ratio as plain JSON values."""
        return {"ratio": self.value, "low": self.low, "high": self.high, "verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value above zero and the ends of its 95 % interval, which contains it; None if they are unknown."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A model in one compute mode: one report against the first.

    Attributes:
        model, compute_mode: of both.
        batch_sizes: those recommended by the first report and by this one.
        at_recommended: samples per second, each at its own recommended batch size; None if one was not timed.
        at_common: samples per second at each batch size that both timed.
        over_common: their geometric mean; None if there is no such size.
        largest: the largest batches. They are counted and have no error. But if memory was not the limit in one report,
            its largest may be larger, and the ratio has at most one end.
        energy: joules per sample at the recommended batch sizes; None if one was not measured. The error of an energy
            counter is unknown, so there is no interval and no verdict.
    """

    model: str
    compute_mode: str
    batch_sizes: tuple[int, int]
    at_recommended: Ratio | None
    at_common: Mapping[int, Ratio]
    over_common: Ratio | None
    largest: Ratio
    energy: Ratio | None

    def to_json(self) -> dict[str, Any]:
        """The pair as plain JSON values."""
        return {
            "model": self.model,
            "arm": self.compute_mode,
            "recommended_batch_sizes": list(self.batch_sizes),
            "samples_per_s_at_recommended": _json(self.at_recommended),
            "samples_per_s_at": [{"batch_size": size} | ratio.to_json() for size, ratio in self.at_common.items()],
            "samples_per_s_over_common": _json(self.over_common),
            "largest_batch": self.largest.to_json(),
            "joules_per_sample": _json(self.energy),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """One report against the first.

    Attributes:
        name: that of the report.
        report: the report.
        pairs: what both ran, in the order of the first.
        left_out: a sentence for each thing that one of them lacks.
        remarks: a sentence for each difference beside the device.
    """

    name: str
    report: BenchReport
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Reports against the first of them."""

    name: str
    report: BenchReport
    against: tuple[Against, ...]

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain JSON values; `kind` and `schema` say how to read it."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "size": self.report.size,
            "first": _named(self.name, self.report),
            "against": [
                _named(other.name, other.report)
                | {
                    "pairs": [pair.to_json() for pair in other.pairs],
                    "left_out": list(other.left_out),
                    "remarks": list(other.remarks),
                }
                for other in self.against
            ],
        }


def compare(reports: Sequence[tuple[str, BenchReport]]) -> Comparison:
    """Every report against the first.

    Args:
        reports: at least two, each with a distinct name, such as that of its file.

    Raises:
        ReportError: their models have different sizes, or one has nothing in common with the first.
    """
    (name, first), *others = reports
    sizes = {report.size for _, report in reports}
    if len(sizes) > 1:
        found = ", ".join(f"{one} has {report.size} ones" for one, report in reports)
        raise ReportError(f"only models of one size are compared: {found}")
    return Comparison(name=name, report=first, against=tuple(_against(name, first, *other) for other in others))


def ratio(over: Estimate, under: Estimate) -> Ratio:
    """`over / under` with its 95 % interval, with the two errors taken as independent.

    On a logarithmic scale a ratio is a difference, and the half-widths of independent intervals add in squares. Each
    side of the interval takes the half-widths in its direction, as an interval of a median need not be symmetric. This
    is the method of variance estimates recovery (Zou and Donner, Statistics in Medicine 27, 2008, equations 7 and 8);
    for symmetric intervals it is the law of propagation of uncertainty for a quotient (JCGM 100:2008, 5.1.6).
    """
    value = math.log(over.value) - math.log(under.value)
    below, above = _half_widths(over), _half_widths(under)
    if below is None or above is None:
        return Ratio(value=math.exp(value))
    return Ratio(
        value=math.exp(value),
        low=math.exp(value - math.hypot(below[0], above[1])),
        high=math.exp(value + math.hypot(below[1], above[0])),
    )


def geometric_mean(ratios: Sequence[Ratio]) -> Ratio | None:
    """The geometric mean of independent ratios: half-widths add in squares and are divided by the number; None for
    none.
    """
    if not ratios:
        return None
    value = sum(math.log(one.value) for one in ratios) / len(ratios)
    sides = [_half_widths(Estimate(value=one.value, low=one.low, high=one.high)) for one in ratios]
    known = [side for side in sides if side is not None]
    if len(known) < len(ratios):
        return Ratio(value=math.exp(value))
    low, high = (math.hypot(*(side[end] for side in known)) / len(ratios) for end in (0, 1))
    return Ratio(value=math.exp(value), low=math.exp(value - low), high=math.exp(value + high))


def _half_widths(estimate: Estimate) -> tuple[float, float] | None:
    """Below and above the value, on a logarithmic scale."""
    if estimate.low is None or estimate.high is None:
        return None
    value = math.log(estimate.value)
    return max(0.0, value - math.log(estimate.low)), max(0.0, math.log(estimate.high) - value)


def _against(first_name: str, first: BenchReport, name: str, report: BenchReport) -> Against:
    ours, theirs = _ran(first), _ran(report)
    common = [key for key in ours if key in theirs]
    if not common:
        raise ReportError(
            "reports are compared where they ran the same model in the same precision, and these have none in common: "
            f"{first_name} has {_listed(ours)}; {name} has {_listed(theirs)}"
        )
    return Against(
        name=name,
        report=report,
        pairs=tuple(_pair(ours[key], theirs[key]) for key in common),
        left_out=tuple(_left_out((first_name, ours), (name, theirs))),
        remarks=tuple(_remarks((first_name, first), (name, report))),
    )


def _ran(report: BenchReport) -> dict[tuple[str, str], Cell]:
    return {(cell.model, cell.compute_mode): cell for cell in report.cells if cell.outcome == "ok"}


def _pair(ours: Cell, theirs: Cell) -> Pair:
    our_points, their_points = _points(ours), _points(theirs)
    our_best, their_best = _recommended(ours), _recommended(theirs)
    common = {
        size: ratio(_speed(their_points[size]), _speed(our_points[size]))
        for size in sorted(our_points.keys() & their_points.keys())
    }
    both = our_best in our_points and their_best in their_points
    at_best = (their_points[their_best], our_points[our_best]) if both else None
    energies = None if at_best is None else tuple(map(_joules, at_best))
    return Pair(
        model=ours.model,
        compute_mode=ours.compute_mode,
        batch_sizes=(our_best, their_best),
        at_recommended=None if at_best is None else ratio(*map(_speed, at_best)),
        at_common=common,
        over_common=geometric_mean(list(common.values())),
        largest=_largest(theirs, ours),
        energy=None if energies is None or None in energies else ratio(*(e for e in energies if e is not None)),
    )


def _points(cell: Cell) -> dict[int, Json]:
    """The measurements of the sizes that were timed."""
    assert cell.throughput is not None, "a cell that is ok has a profile"
    points = cell.throughput["measurements"]
    return {point["batch_size"]: point for point in points if point["samples_per_s"] is not None}


def _recommended(cell: Cell) -> int:
    assert cell.throughput is not None, "a cell that is ok has a profile"
    size: int = cell.throughput["recommended_batch_size"]
    return size


def _largest(over: Cell, under: Cell) -> Ratio:
    assert over.max_batch is not None, "a cell that is ok has a largest batch"
    assert under.max_batch is not None, "a cell that is ok has a largest batch"
    value = over.max_batch["batch_size"] / under.max_batch["batch_size"]
    above, below = (found["limited_by"] == "memory" for found in (over.max_batch, under.max_batch))
    return Ratio(value=value, low=value if below else None, high=value if above else None)


def _speed(point: Json) -> Estimate:
    """Samples per second. The ends of the step time's interval are swapped."""
    low_s, high_s = point.get("interval_s") or (None, None)
    size = point["batch_size"]
    return Estimate(
        value=point["samples_per_s"],
        low=None if high_s is None else size / high_s,
        high=None if low_s is None else size / low_s,
    )


def _joules(point: Json) -> Estimate | None:
    """Joules per sample; None if unknown. It has no interval: that of the time is not that of the counter."""
    joules = point["joules_per_sample"]
    return Estimate(value=joules) if joules is not None and joules > 0 else None


def _left_out(
    ours: tuple[str, Mapping[tuple[str, str], Cell]], theirs: tuple[str, Mapping[tuple[str, str], Cell]]
) -> Iterator[str]:
    for (name, cells), (_, others) in ((ours, theirs), (theirs, ours)):
        alone = [key for key in cells if key not in others]
        if alone:
            yield f"only {name} ran {_listed(alone)}"


def _remarks(ours: tuple[str, BenchReport], theirs: tuple[str, BenchReport]) -> Iterator[str]:
    """Differences beside the device, which may be the reason for a difference."""
    (our_name, first), (their_name, second) = ours, theirs
    facts: dict[str, tuple[object, ...]] = {
        "torch": (first.device.torch, second.device.torch),
        "Python": (first.device.python, second.device.python),
        "the driver": (first.device.driver, second.device.driver),
        "the runtime": (first.device.runtime, second.device.runtime),
        "autobatch": (first.version, second.version),
        "the objective": (first.objective, second.objective),
        "the power limit in watts": (first.device.power_limit_w, second.device.power_limit_w),
        "the number of threads": (first.device.threads, second.device.threads),
        "the memory that a batch may use": (_usable(first), _usable(second)),
    }
    if first.settings is not None and second.settings is not None:
        ceilings = (report.settings["max_batch_size"] for report in (first, second) if report.settings is not None)
        facts["--max-batch-size"] = tuple("not set" if size is None else size for size in ceilings)
    for what, (our, their) in facts.items():
        if our != their:
            yield f"{what} is {_known(our)} in {our_name} and {_known(their)} in {their_name}"
    our_sources, their_sources = _sources(first), _sources(second)
    for model in sorted(our_sources.keys() & their_sources.keys()):
        if our_sources[model] != their_sources[model]:
            yield f"{model} is of task files with different contents"
    for name, report in (ours, theirs):
        if report.quick:
            yield f"{name} is of a quick run"


def _sources(report: BenchReport) -> dict[str, set[str]]:
    """The digests of each model's task file, where the report has them."""
    found: dict[str, set[str]] = {}
    for (model, _), cell in _ran(report).items():
        if cell.source is not None:
            found.setdefault(model, set()).add(cell.source)
    return found


def _usable(report: BenchReport) -> str | None:
    """The limit less the headroom, which older reports have too. Free memory may differ a little between cells."""
    limits = [cell.max_batch["limit_bytes"] for cell in report.cells if cell.max_batch is not None]
    known = [limit for limit in limits if limit is not None]
    return format_size(max(known)) if known else None


def _known(value: object) -> str:
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _listed(keys: Mapping[tuple[str, str], Cell] | Sequence[tuple[str, str]]) -> str:
    """Models with their compute modes: "resnet50 (fp32, bf16), vit (fp32)"."""
    compute_modes: dict[str, list[str]] = {}
    for model, compute_mode in keys:
        compute_modes.setdefault(model, []).append(compute_mode)
    return ", ".join(f"{model} ({', '.join(names)})" for model, names in compute_modes.items()) or "none that ran"


def _json(value: Ratio | None) -> dict[str, Any] | None:
    return None if value is None else value.to_json()


def _named(name: str, report: BenchReport) -> dict[str, Any]:
    return {"name": name, "created": report.created, "device": device_to_json(report.device)}
