"""The results of the stages before the race, as one frozen value that a resumed run reads instead of repeating them."""

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
class StageResults:
    """The results before the race; None for a stage that has not ended.

    Attributes:
        largest, micro_batch: the largest batch, and the largest when gradients are kept from one pass to the next.
        curve: the throughput profile.
        is_swept: whether the range test has ended, with or without a result.
        sweep: its result.
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
        """The results as plain JSON values, from which every number is restored to the last bit."""
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
    def from_json(cls, reader: Reader) -> StageResults:
        """The results from `to_json`.

        Raises:
            ReportError: the data is something else.
        """

        def inside(key: str) -> Reader | None:
            return None if reader.get(key, dict, or_null=True) is None else reader.inside(key)

        largest, curve, sweep = inside("largest"), inside("curve"), inside("sweep")
        try:
            return cls(
                largest=None if largest is None else _largest(largest),
                micro_batch=reader.get("micro_batch", int, or_null=True),
                curve=None if curve is None else _curve(curve),
                is_swept=reader.get("is_swept", bool),
                sweep=None if sweep is None else _sweep(sweep),
                eval_s=reader.number_or_none("eval_s"),
                horizon_s=reader.number_or_none("horizon_s"),
                rungs=None if reader.get_or_none("rungs", [NUMBER]) is None else reader.list_of("rungs", NUMBER),
            )
        except AutobatchError as error:
            raise error if isinstance(error, ReportError) else ReportError(str(error)) from None
        except ValueError as error:  # the values check themselves
            raise ReportError(f"the results of a run's stages contradict each other: {error}") from None


def _largest_to_json(largest: MaxBatch) -> dict[str, Any]:
    probes = list(largest.probes)
    return {
        "batch_size": int(largest),
        "probes": [measurement_to_json(probe) for probe in probes],
        "verdict": probes.index(largest.final_probe),
        "limit": limit_to_json(largest.limit),
        "limited_by": largest.limited_by,
        "assumed": list(largest.assumed),
        "rule": asdict(largest.rule),
    }


def _largest(reader: Reader) -> MaxBatch:
    probes = [measurement_from_json(Reader(probe, "a probe")) for probe in reader.list_of("probes", dict)]
    number = reader.get("verdict", int)
    if not 0 <= number < len(probes):
        raise ReportError(f"the run of the largest batch is one of its {len(probes)} probes; found number {number}")
    has_rule = reader.get_or_none("rule", dict) is not None  # older runs have none
    return MaxBatch(
        reader.get("batch_size", int),
        final_probe=probes[number],
        probes=probes,
        limit=limit_from_json(reader.inside("limit")),
        limited_by=reader.one_of("limited_by", LimitedBy),
        assumed=reader.list_of("assumed", str),
        rule=_rule(reader.inside("rule")) if has_rule else EVERY_SIZE,
    )


def _rule(reader: Reader) -> Rule:
    return Rule(
        multiple_of=reader.get("multiple_of", int),
        power_of_two=reader.get("power_of_two", bool),
        least=reader.get("least", int),
        most=reader.get("most", int, or_null=True),
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


def _sweep(reader: Reader) -> LrCurve:
    return LrCurve(sweep=sweep_from_json(reader), rule=reader.get("rule", str))
