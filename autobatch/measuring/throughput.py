"""Samples per second over batch sizes: where speed saturates, the cost of a step, and whether the data keeps up.

The `Objective` decides which size is recommended: the most samples a second, the fewest joules a sample, or the least
product of seconds and joules a sample. Under the last one, a change that saves a share of one may cost the same share
of the other (the energy-delay product of Horowitz et al. 1994, "Low-power digital design").
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any, Literal

from ..core.measurement import Measurement
from ..core.medians import likely_range, median_interval
from ..core.plan import Plan, Precision
from ..errors import NoValidResult
from .taken import EVERY_SIZE, Rule

KNEE_SHARE = (
    0.8  # cited: the best batch under equal time lay within [knee / 4, 2 knee] in 8 of 8 tables, knee so defined
)
LOADER_BOUND_SHARE = (
    0.25  # assumed: if waiting takes a quarter of the step, faster loading gains more than any batch size
)
Objective = Literal["throughput", "energy", "balanced"]

# The smallest size that comes this near to the best one is recommended: it saves memory, and no measurement
# distinguishes them. Assumed: half of the accuracy of a settled median.
_AS_GOOD = 0.99
_OF_THE_WAIT = 0.5  # assumed: steps wait for the loader if it alone takes at least this share of their waiting time


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """DataLoader arguments that measurably make the same steps faster.

    Attributes:
        batch_size: the batch size of the measurement.
        loader: the arguments to change.
        before: their present values.
        samples_per_s: with the change.
        samples_per_s_before: without the change.
    """

    batch_size: int
    loader: Mapping[str, Any]
    before: Mapping[str, Any]
    samples_per_s: float
    samples_per_s_before: float

    def describe(self) -> str:
        """The remedy as one sentence."""
        changes = " and ".join(f"{name}={value} (now {self.before.get(name)})" for name, value in self.loader.items())
        return (
            f"With {changes} in `loader`, {self.samples_per_s:.3g} samples/s were measured at batch size "
            f"{self.batch_size} instead of {self.samples_per_s_before:.3g}."
        )


# Not slotted: the fit is cached on first use.
@dataclass(frozen=True, kw_only=True)
class ThroughputCurve:
    """Step times over batch sizes, one optimizer step of one micro-batch each.

    Attributes:
        measurements: one for each size that was tried, by batch size. Those that are not "ok" are kept as evidence.
        skipped: sizes for which there was no time.
        objective: what the recommended size is best in.
        remedy: a change of the loader that was measured to help; None where none was, or none was tried.
        warnings: what the check of the task found that does not stop it.
        rule: the sizes that the task is sure to take; plans have no others.
        assumed: why no speed could be measured, so that the times are only a unit to count in; None where they are
            times. See `assumed_curve`.

    Raises:
        ValueError: no measurement is "ok" and timed, or a size comes twice.
    """

    measurements: tuple[Measurement, ...]
    skipped: tuple[int, ...] = ()
    objective: Objective = "throughput"
    remedy: Remedy | None = None
    warnings: tuple[str, ...] = ()
    rule: Rule = EVERY_SIZE
    assumed: str | None = None

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.measurements, key=lambda m: m.plan.batch_size))
        object.__setattr__(self, "measurements", ordered)
        sizes = [m.plan.batch_size for m in ordered]
        if not self.timed or len(set(sizes)) != len(sizes):
            outcomes = ", ".join(f"{m.plan.batch_size}: {m.outcome}" for m in ordered) or "none"
            raise ValueError(f"a curve has one measurement for each size, at least one of them timed; got {outcomes}")

    @property
    def timed(self) -> tuple[Measurement, ...]:
        """The measurements that ran and have times."""
        return tuple(m for m in self.measurements if m.outcome == "ok" and m.step_s)

    @property
    def ranks(self) -> int:
        """Ranks that take each step together. Batch sizes are those of one rank, and samples/s are those of all."""
        return self.timed[0].plan.ranks

    @cached_property
    def _fit(self) -> tuple[tuple[int, float], ...]:
        """(batch size, step seconds), never falling: the nearest such curve to the undisturbed times, by least squares.

        Isotonic regression by pooling adjacent violators (Barlow et al. 1972), with each time weighted by its repeats:
        only noise lets a larger batch take less time per step. A running maximum would not fall either, but would carry
        one slow hiccup at a small batch over to all larger ones.
        """
        pools: list[tuple[float, int, int]] = []  # mean seconds, weight, number of sizes
        for measurement in self.timed:
            pool = (measurement.undisturbed_step_s, len(measurement.step_s), 1)
            while pools and pools[-1][0] > pool[0]:
                seconds, weight, count = pools.pop()
                total = weight + pool[1]
                pool = ((seconds * weight + pool[0] * pool[1]) / total, total, count + pool[2])
            pools.append(pool)
        levels = [seconds for seconds, _, count in pools for _ in range(count)]
        return tuple((m.plan.batch_size, level) for m, level in zip(self.timed, levels, strict=True))

    def residuals(self) -> dict[int, float]:
        """How far the step time predicted from the other sizes is from the measured one, relative to that.

        By batch size, for the sizes between the smallest and the largest: beyond them nothing is interpolated.
        """
        shares = {}
        for left_out in self.timed[1:-1]:
            others = replace(self, measurements=tuple(m for m in self.timed if m is not left_out))
            size = left_out.plan.batch_size
            shares[size] = others._undisturbed_step_s(size) / left_out.undisturbed_step_s - 1
        return shares

    @cached_property
    def _mean_over_undisturbed(self) -> float:
        """The mean cost of steps over their undisturbed time, over all sizes together.

        Undisturbed times compare sizes: a stall says nothing about the size at which it happened. But a training pays
        for its stalls, so a number of steps takes that number times the mean. Measured on a crowded machine: median 2.1
        ms, mean 21 ms, and a trial of 9.1 s by the medians took 93 s.
        """
        undisturbed_s = sum(len(m.step_s) * m.undisturbed_step_s for m in self.timed)
        return sum(sum(m.step_s) for m in self.timed) / undisturbed_s

    def step_s(self, batch_size: int) -> float:
        """Mean seconds of one optimizer step of one micro-batch: the cost in training, with stalls.

        It is linear between the measured sizes, and never falls.
        """
        return self._mean_over_undisturbed * self._undisturbed_step_s(batch_size)

    def _undisturbed_step_s(self, batch_size: int) -> float:
        """The fitted curve, extended beyond the measured sizes.

        Above the largest size it follows the last rising segment. Below the smallest it follows the first one, but
        never falls below proportion to the batch. With a single level, both are estimates on the slow side: in
        proportion above, constant below.
        """
        sizes, seconds = zip(*self._fit, strict=True)
        place = bisect_left(sizes, batch_size)
        if place < len(sizes) and sizes[place] == batch_size:
            return float(seconds[place])
        if place == 0:
            if len(sizes) == 1:
                return float(seconds[0])
            line = seconds[0] - (sizes[0] - batch_size) * (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
            return float(max(line, seconds[0] * batch_size / sizes[0]))
        if place < len(sizes):
            share = (batch_size - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
            return float(seconds[place - 1] + share * (seconds[place] - seconds[place - 1]))
        rising = [
            (seconds[i] - seconds[i - 1]) / (sizes[i] - sizes[i - 1])
            for i in range(1, len(sizes))
            if seconds[i] > seconds[i - 1]
        ]
        slope = rising[-1] if rising else seconds[-1] / sizes[-1]
        return float(seconds[-1] + slope * (batch_size - sizes[-1]))

    def samples_per_s(self, batch_size: int) -> float:
        """Samples per second at that batch size, without accumulation."""
        return self.ranks * batch_size / self.step_s(batch_size)

    @property
    def fastest(self) -> int:
        """The measured batch size with the most samples per second; the smaller of equals."""
        return max((size for size, _ in self._fit), key=lambda size: (self.samples_per_s(size), -size))

    @property
    def knee_batch_size(self) -> int:
        """The smallest measured batch size with `KNEE_SHARE` of the most samples per second."""
        enough = KNEE_SHARE * self.samples_per_s(self.fastest)
        return next(size for size, _ in self._fit if self.samples_per_s(size) >= enough)

    @property
    def recommended(self) -> int:
        """The smallest measured batch size that is within 1 % of the best in the objective.

        Raises:
            NoValidResult: the objective needs energy, and none could be measured.
        """
        merits = {size: merit for size, _ in self._fit if (merit := self._merit(size)) is not None}
        if not merits:
            raise NoValidResult(
                f"the objective {self.objective!r} needs the energy of a step, and this device tells of none in the "
                "time there was (`autobatch doctor` says why): take the objective throughput, or a larger budget"
            )
        enough = _AS_GOOD * max(merits.values())
        return min(size for size, merit in merits.items() if merit >= enough)

    def _merit(self, size: int) -> float | None:
        """The value that the objective maximises."""
        if self.objective == "throughput":
            return self.samples_per_s(size)
        joules = next(m.joules for m in self.timed if m.plan.batch_size == size)
        if not joules:
            return None
        per_joule = self.ranks * size / joules
        return per_joule if self.objective == "energy" else per_joule * self.samples_per_s(size)

    def describe_recommended(self) -> str:
        """A clause that says why this size is recommended."""
        reasons = {
            "throughput": "the most samples a second",
            "energy": "the fewest joules a sample",
            "balanced": "the least product of seconds and joules a sample",
        }
        reason = f"batch {self.recommended} is the smallest within 1 % of {reasons[self.objective]}"
        if self.objective != "throughput" and (without := [m for m in self.timed if not m.joules]):
            reason += f", of {len(self.timed) - len(without)} sizes whose energy there was time to measure"
        return reason

    @property
    def saturates(self) -> bool:
        """Whether the knee is known. It is not if there was no time for sizes above those that were timed.

        It says little if the largest of those is not the fastest: the two nearest sizes may be in this order by chance.
        """
        largest = self.timed[-1].plan.batch_size
        return all(size < largest for size in self.skipped)

    def describe_knee(self) -> str:
        """A clause on where more samples a batch stop to bring more samples a second."""
        if self.assumed is not None:
            return f"no speed was measured ({self.assumed}): batch sizes were tried around {self.knee_batch_size}"
        if not self.saturates:
            largest = self.timed[-1].plan.batch_size
            return f"samples/s may still rise beyond batch {largest}, the largest that there was time to measure"
        return f"speed saturates at batch {self.knee_batch_size}: the smallest with 80 % of the highest samples/s"

    def plan_for(
        self, effective_batch: int, max_batch: int, precision: Precision, max_micro_batch: int | None = None
    ) -> Plan | None:
        """The fastest plan whose step averages over `effective_batch` samples; None if there is none.

        It accumulates only beyond memory, since accumulation gives no throughput: a batch that fits is taken whole.
        Otherwise the micro-batch is the divisor up to `max_micro_batch` with the least total time, the larger of
        equals.

        Args:
            effective_batch: samples that a step averages over, on all ranks together.
            max_batch: the largest batch that fits on one rank.
            precision: of the plan.
            max_micro_batch: the largest micro-batch when gradients are kept from one pass to the next; 0 if a batch
                must not be split, None for `max_batch`.
        """
        share, rest = divmod(effective_batch, self.ranks)
        if rest or not share:
            return None
        if share <= max_batch:
            is_taken = self.rule.takes(share)
            return Plan(batch_size=share, precision=precision, ranks=self.ranks) if is_taken else None
        most = max_batch if max_micro_batch is None else min(max_batch, max_micro_batch)
        if most < 1:
            return None
        divisors = {
            d for low in range(1, math.isqrt(share) + 1) if share % low == 0 for d in (low, share // low) if d <= most
        }
        divisors = set(filter(self.rule.takes, divisors))
        if not divisors:
            return None
        batch = min(divisors, key=lambda d: (self.step_s(d) * (share // d), -d))
        return Plan(batch_size=batch, accumulation_steps=share // batch, precision=precision, ranks=self.ranks)

    @property
    def _at_knee(self) -> Measurement:
        return next(m for m in self.timed if m.plan.batch_size == self.knee_batch_size)

    @property
    def wait_share(self) -> float | None:
        """The share of a step at the knee that is not compute, in [0, 1]; None if compute alone was not timed."""
        knee = self._at_knee
        if not knee.compute_s:
            return None
        return max(0.0, 1 - median(knee.compute_s) / knee.step_beside_parts_s)

    @property
    def loader_bound(self) -> bool:
        """Whether data loading, rather than the device, sets the speed at the knee.

        It does if steps wait, and the loader alone takes long enough to be the cause. The second condition is needed
        because a machine that was slower while whole steps were timed makes them look as if they waited.
        """
        knee = self._at_knee
        if (self.wait_share or 0.0) < LOADER_BOUND_SHARE:
            return False
        waited_s = knee.step_beside_parts_s - median(knee.compute_s)
        return not knee.loader_s or median(knee.loader_s) >= _OF_THE_WAIT * waited_s

    def describe_starvation(self) -> str | None:
        """A sentence if the loader is the bottleneck; None if it is not."""
        knee, share = self._at_knee, self.wait_share
        if share is None or not self.loader_bound:
            return None
        samples = knee.plan.effective_batch_size
        loader = f", and the loader alone {samples / median(knee.loader_s):.3g}" if knee.loader_s else ""
        return (
            f"At batch size {knee.plan.batch_size} the device waits for data {share:.0%} of the time: "
            f"{knee.samples_per_s:.3g} samples/s, where the model alone would do "
            f"{samples / median(knee.compute_s):.3g}{loader}; faster loading gains more than any batch size."
        )

    def _repr_html_(self) -> str:
        """What the command prints, as a notebook shows it."""
        # Imported here: results are made without anything that draws them.
        from ..render.evidence import throughput_section
        from ..render.notebook import section_frame

        return section_frame(throughput_section(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """The curve and the values read from it as plain JSON values, with times in seconds and sizes in bytes."""
        residuals = self.residuals()
        return {
            "ranks": self.ranks,
            "knee_batch_size": self.knee_batch_size,
            "knee": self.describe_knee(),
            "saturates": self.saturates,
            "objective": self.objective,
            "recommended_batch_size": self.recommended,
            "recommended": self.describe_recommended(),
            "fit": {
                "residuals": {str(size): value for size, value in residuals.items()},
                "largest_residual": max(map(abs, residuals.values()), default=None),
            },
            "fastest_batch_size": self.fastest,
            "samples_per_s": self.samples_per_s(self.fastest),
            "loader_bound": self.loader_bound,
            "wait_share": self.wait_share,
            "starvation": self.describe_starvation(),
            "remedy": self.remedy.describe() if self.remedy else None,
            "measurements": [self._point(m) for m in self.measurements],
            "skipped": list(self.skipped),
            "warnings": list(self.warnings),
            "assumed": self.assumed,
        }

    def _point(self, measurement: Measurement) -> dict[str, Any]:
        size, samples = measurement.plan.batch_size, measurement.plan.effective_batch_size
        timed = measurement in self.timed

        def rate(seconds: tuple[float, ...]) -> float | None:
            return samples / median(seconds) if seconds else None

        return {
            "batch_size": size,
            "outcome": measurement.outcome,
            "step_s": measurement.median_step_s if timed else None,
            "fitted_step_s": self.step_s(size) if timed else None,
            "undisturbed_step_s": self._undisturbed_step_s(size) if timed else None,
            "undisturbed_samples_per_s": self.ranks * size / self._undisturbed_step_s(size) if timed else None,
            "spread_s": max(measurement.step_s) - min(measurement.step_s) if timed else None,
            "repeats": len(measurement.step_s),
            "samples_per_s": rate(measurement.step_s),
            "compute_samples_per_s": rate(measurement.compute_s),
            "loader_samples_per_s": rate(measurement.loader_s),
            "peak_bytes": measurement.peak_bytes,
            "interval_s": list(likely_range(measurement.step_s, measurement.visits_s))
            if median_interval(measurement.step_s)
            else None,
            "visits": len(measurement.visits_s) or 1,
            "phases_s": dict(measurement.phases_s),
            "joules": measurement.joules,
            "joules_per_sample": None if measurement.joules is None else measurement.joules / samples,
            "watts": measurement.watts,
            "remarks": list(measurement.remarks),
            "seconds": measurement.seconds,
            "message": measurement.message,
        }


# A step where nobody knows what one takes. Assumed: so short that no batch size is left out for taking too few of them.
_UNIT_STEP_S = 1e-3


def assumed_curve(plan: Plan, why: str) -> ThroughputCurve:
    """The curve of a task that does not tell its speed: a step in proportion to its batch, and the knee at `plan`'s.

    Args:
        plan: what the user trains with.
        why: it cannot be measured.
    """
    steps = Measurement(plan=replace(plan, accumulation_steps=1), outcome="ok", step_s=(_UNIT_STEP_S,))
    return ThroughputCurve(measurements=(steps,), assumed=why)
