"""What the stages before the race found, as one frozen value that a resumed run reads instead of finding it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..core.codec import (
    limit_from_json,
    limit_to_json,
    measurement_from_json,
    measurement_to_json,
    sweep_from_json,
    sweep_to_json,
)
from ..core.json_reader import NUMBER, Reader
from ..errors import AutobatchError, ReportError
from ..measuring.learning_rate import LrCurve
from ..measuring.memory import LimitedBy, MaxBatch
from ..measuring.taken import EVERY_SIZE, Rule
from ..measuring.throughput import ThroughputCurve


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known before the race; None for a stage that has not ended.

    Attributes:
        largest, micro_batch: the largest batch, and the largest beside gradients that are kept.
        curve: the throughput profile.
        is_swept: the range test has ended, be it without a result.
        sweep: what it found.
        eval_s: seconds of an evaluation.
        horizon_s: T.
        rungs: of a trial, as shares of T; None in runs of before this was kept, which had the usual ones.
    """

    largest: MaxBatch | None = None
    micro_batch: int | None = None
    curve: ThroughputCurve | None = None
    is_swept: bool = False
    sweep: LrCurve | None = None
    eval_s: float | None = None
    horizon_s: float | None = None
    rungs: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """It as plain JSON values, from which every number comes back to the last bit."""
        return {
            "largest": None if self.largest is None else _largest_to_json(self.largest),
            "micro_batch": self.micro_batch,
            "curve": None if self.curve is None else _curve_to_json(self.curve),
            "is_swept": self.is_swept,
            "sweep": None if self.sweep is None else _sweep_to_json(self.sweep),
            "eval_s": self.eval_s,
            "horizon_s": self.horizon_s,
            "rungs": None if self.rungs is None else list(self.rungs),
        }

    @classmethod
    def from_json(cls, found: Reader) -> Found:
        """What `to_json` made it of.

        Raises:
            ReportError: it is something else.
        """

        def inside(key: str) -> Reader | None:
            return None if found.get(key, dict, or_null=True) is None else found.inside(key)

        largest, curve, sweep = inside("largest"), inside("curve"), inside("sweep")
        try:
            return cls(
                largest=None if largest is None else _largest(largest),
                micro_batch=found.get("micro_batch", int, or_null=True),
                curve=None if curve is None else _curve(curve),
                is_swept=found.get("is_swept", bool),
                sweep=None if sweep is None else _sweep(sweep),
                eval_s=found.number_or_none("eval_s"),
                horizon_s=found.number_or_none("horizon_s"),
                rungs=None if found.get_or_none("rungs", [NUMBER]) is None else found.list_of("rungs", NUMBER),
            )
        except AutobatchError as error:
            raise error if isinstance(error, ReportError) else ReportError(str(error)) from None
        except ValueError as error:  # the values check themselves
            raise ReportError(f"what a run found before its race does not hold together: {error}") from None


def _largest_to_json(largest: MaxBatch) -> dict[str, Any]:
    probes = list(largest.probes)
    return {
        "batch_size": int(largest),
        "probes": [measurement_to_json(probe) for probe in probes],
        "verdict": probes.index(largest.verdict),
        "limit": limit_to_json(largest.limit),
        "limited_by": largest.limited_by,
        "assumed": list(largest.assumed),
        "rule": asdict(largest.rule),
    }


def _largest(found: Reader) -> MaxBatch:
    probes = [measurement_from_json(Reader(probe, "a probe")) for probe in found.list_of("probes", dict)]
    verdict = found.get("verdict", int)
    if not 0 <= verdict < len(probes):
        raise ReportError(f"the run of the largest batch is one of its {len(probes)} probes; found number {verdict}")
    has_rule = found.get_or_none("rule", dict) is not None  # runs of before have none
    return MaxBatch(
        found.get("batch_size", int),
        verdict=probes[verdict],
        probes=probes,
        limit=limit_from_json(found.inside("limit")),
        limited_by=found.one_of("limited_by", LimitedBy),
        assumed=found.list_of("assumed", str),
        rule=_rule(found.inside("rule")) if has_rule else EVERY_SIZE,
    )


def _rule(found: Reader) -> Rule:
    return Rule(
        multiple_of=found.get("multiple_of", int),
        power_of_two=found.get("power_of_two", bool),
        least=found.get("least", int),
        most=found.get("most", int, or_null=True),
    )


def _curve_to_json(curve: ThroughputCurve) -> dict[str, Any]:
    return {
        "measurements": [measurement_to_json(measured) for measured in curve.measurements],
        "skipped": list(curve.skipped),
        "assumed": curve.assumed,
    }


def _curve(found: Reader) -> ThroughputCurve:
    measured = [measurement_from_json(Reader(one, "a timing")) for one in found.list_of("measurements", dict)]
    assumed = found.get_or_none("assumed", str)  # runs of before have none
    return ThroughputCurve(measurements=tuple(measured), skipped=found.list_of("skipped", int), assumed=assumed)


def _sweep_to_json(curve: LrCurve) -> dict[str, Any]:
    return sweep_to_json(curve.sweep) | {"rule": curve.rule}


def _sweep(found: Reader) -> LrCurve:
    return LrCurve(sweep=sweep_from_json(found), rule=found.get("rule", str))
