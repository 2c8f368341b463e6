"""Measured over modelled training time: of all segments, of the latest ones, and of each batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ...core.json_reader import NUMBER, Reader
from ...core.plan import Plan, Precision
from ...errors import ReportError
from ..trials import StepTimes

# The number of segments that show the machine's present pace. Assumed: fewer are one hiccup, more are history.
LATEST_SEGMENTS = 3

# A batch size gets its own step time if its steps are off, compared with the baseline's, by more than this share and by
# more than six standard errors over at least five pairs of neighbouring segments. The share is the accuracy that a
# fitted step time should have. The other numbers are tuned on simulated races of 32 segments over four sizes. Where
# segments take up to twice their time by chance, 5 of 100 races correct a size that is not off, if they look after each
# segment (22 with four errors and four pairs). Where one size takes 1.5 times its time, and all take up to 1.3 times by
# chance, 47 of 50 races correct it, at the 17th segment in the median.
OFF_BY = 0.05
OFF_ERRORS = 6.0
LEAST_PAIRS = 5

# Shorter segments say nothing about a batch size: the start of the loader is a large part of them. Assumed, in seconds.
LEAST_TRAIN_S = 1.0

Pace = tuple[float, float]  # modelled and measured seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Paces:
    """The measured over the modelled time of finished segments.

    Attributes:
        first: of the very first segment, which includes a worker's warm-up. It counts only while it is the only one.
            None before it has ended.
        total: of all later segments together, without those that include the warm-up of another process.
        latest: of the last `LATEST_SEGMENTS` of the later ones.
        steps: for each segment that is long enough, its batch size and the measured over the profiled seconds of its
            steps alone, in the order in which they ended.
    """

    first: Pace | None = None
    total: Pace = (0.0, 0.0)
    latest: tuple[Pace, ...] = ()
    steps: tuple[tuple[int, float], ...] = ()

    def with_segment(self, modelled_s: float, measured_s: float) -> Paces:
        """The paces with one more segment."""
        if self.first is None:
            return replace(self, first=(modelled_s, measured_s))
        total = (self.total[0] + modelled_s, self.total[1] + measured_s)
        return replace(self, total=total, latest=(*self.latest, (modelled_s, measured_s))[-LATEST_SEGMENTS:])

    def with_steps(self, batch_size: int, profiled_s: float, measured_s: float) -> Paces:
        """The paces with the training steps of one more segment. A short segment changes nothing."""
        if measured_s < LEAST_TRAIN_S or profiled_s <= 0:
            return self
        return replace(self, steps=(*self.steps, (batch_size, measured_s / profiled_s)))

    @property
    def correction(self) -> float:
        """Measured over modelled seconds; 1 before the first segment."""
        return _ratio(self.total if self.latest else self.first or (0.0, 0.0))

    @property
    def slowest_correction(self) -> float:
        """The correction, or that of the latest segments if they were slower.

        A machine that throttles or is shared may stay slow. A plan by the mean would then leave no time for the fresh
        seeds (benchmarks/NOTES.md).
        """
        return max(self.correction, _ratio((sum(m for m, _ in self.latest), sum(s for _, s in self.latest))))

    def off_by(self, reference: int) -> dict[int, float]:
        """By batch size: by which factor a step is off its profiled time, compared with a step at the size `reference`.

        A machine that is slower for all sizes alike, or has become so, does not count: it changes no comparison at
        equal time. So only segments that followed one another are compared, log ratio with log ratio. The effects of
        the sizes are those that explain the differences best (least squares). Their errors are still right if one
        segment was disturbed and the others were not (White 1980). Sizes that are not clearly off are left out.
        """
        pairs = [(one, other) for one, other in pairwise(self.steps) if one[0] != other[0]]
        sizes = sorted({batch for pair in pairs for batch, _ in pair})
        free = len(pairs) - (len(sizes) - 1)
        design = np.zeros((len(pairs), len(sizes)))
        for row, ((one, _), (other, _)) in zip(design, pairs, strict=True):
            row[sizes.index(one)], row[sizes.index(other)] = -1.0, 1.0
        is_known = np.abs(design).sum(axis=0) >= LEAST_PAIRS
        if free < LEAST_PAIRS or reference not in sizes or not is_known[sizes.index(reference)]:
            return {}
        differences = np.array([math.log(after / before) for (_, before), (_, after) in pairs])
        solve = np.linalg.pinv(design)
        beside = np.eye(len(sizes))  # each row: one size minus the reference
        beside[:, sizes.index(reference)] -= 1.0
        offs = beside @ solve @ differences
        residuals = differences - design @ (solve @ differences)
        errors = np.sqrt(((beside @ solve * residuals) ** 2).sum(axis=1) * len(pairs) / free)
        is_off = is_known & (np.abs(offs) > np.maximum(math.log1p(OFF_BY), OFF_ERRORS * errors))
        return {size: math.exp(off) for size, off, told in zip(sizes, offs, is_off, strict=True) if told}

    def to_json(self) -> dict[str, Any]:
        """The paces as plain data; every number survives to the last bit."""
        return {
            "first": None if self.first is None else list(self.first),
            "total": list(self.total),
            "latest": [list(pace) for pace in self.latest],
            "steps": [list(step) for step in self.steps],
        }

    @classmethod
    def from_json(cls, reader: Reader) -> Paces:
        """The paces that `to_json` made.

        Raises:
            ReportError: the data is something else.
        """
        first, steps = reader.get("first", [NUMBER], or_null=True), reader.list_of("steps", [NUMBER])
        if not all(len(step) == 2 and isinstance(step[0], int) and min(step) > 0 for step in steps):
            raise ReportError(f"a segment's pace is a batch size and a ratio, both above 0; found {steps!r:.80}")
        return cls(
            first=None if first is None else _pace(first),
            total=_pace(reader.get("total", [NUMBER])),
            latest=tuple(_pace(pace) for pace in reader.get("latest", [[NUMBER]])),
            steps=tuple((batch, float(ratio)) for batch, ratio in steps),
        )


@dataclass(frozen=True, slots=True)
class CorrectedTimes:
    """The step times of a profile, corrected for batch sizes that training has shown to be off.

    Attributes:
        profile: gives the knee and the plans, which stay as they are.
        off_by: see `Paces.off_by`.
    """

    profile: StepTimes
    off_by: Mapping[int, float]

    @property
    def knee_batch_size(self) -> int:
        """That of the profile."""
        return self.profile.knee_batch_size

    def step_s(self, batch_size: int) -> float:
        """Seconds of one forward, backward and optimizer step at `batch_size`."""
        return self.profile.step_s(batch_size) * self.off_by.get(batch_size, 1.0)

    def plan_for(self, effective_batch: int, max_batch: int, precision: Precision, max_micro_batch: int) -> Plan | None:
        """That of the profile."""
        return self.profile.plan_for(effective_batch, max_batch, precision, max_micro_batch)


def _ratio(pace: Pace) -> float:
    modelled_s, measured_s = pace
    return measured_s / modelled_s if measured_s > 0 else 1.0


def _pace(seconds: list[float]) -> Pace:
    if len(seconds) != 2:
        raise ReportError(f"a pace is modelled and measured seconds; found {seconds!r:.80}")
    return float(seconds[0]), float(seconds[1])
