"""Samples per second over batch sizes: where speed saturates, what a step will cost, and whether data keeps up."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

from .errors import NoValidResult
from .plan import Measurement, Plan, Precision, Runner

KNEE_SHARE = (
    0.8  # cited: the best batch under equal time lay within [knee / 4, 2 knee] in 8 of 8 tables, knee so defined
)
LOADER_BOUND_SHARE = 0.25  # assumed: from a quarter of the step on, waiting for data is worth more than any batch size
_SMALLEST_SIZE = 8  # assumed: below it an accelerator is idle and a step costs about the same


# Not slotted: the fit is computed once, on first use.
@dataclass(frozen=True, kw_only=True)
class ThroughputCurve:
    """Step times over batch sizes, one optimizer step of one micro-batch each.

    Attributes:
        measurements: one for each size that was tried, by batch size; those that are not ok are kept as evidence.
        skipped: sizes that the time budget left no room for.

    Raises:
        ValueError: no measurement is ok and timed, or a size comes twice.
    """

    measurements: tuple[Measurement, ...]
    skipped: tuple[int, ...] = ()

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

    @cached_property
    def _fit(self) -> tuple[tuple[int, float], ...]:
        """(batch size, step seconds), never falling: the nearest such curve to the medians, by least squares.

        Isotonic regression by pooling adjacent violators (Barlow et al. 1972), each median weighted by its repeats: a
        larger batch cannot take less time per step but for noise. A running maximum would do that too, but carries one
        slow hiccup at a small batch over to all larger ones.
        """
        pools: list[tuple[float, int, int]] = []  # mean seconds, weight, number of sizes
        for measurement in self.timed:
            pool = (measurement.median_step_s, len(measurement.step_s), 1)
            while pools and pools[-1][0] > pool[0]:
                seconds, weight, count = pools.pop()
                total = weight + pool[1]
                pool = ((seconds * weight + pool[0] * pool[1]) / total, total, count + pool[2])
            pools.append(pool)
        levels = [seconds for seconds, _, count in pools for _ in range(count)]
        return tuple((m.plan.batch_size, level) for m, level in zip(self.timed, levels, strict=True))

    @cached_property
    def _mean_over_median(self) -> float:
        """What steps cost over what the medians say, over all sizes together.

        Medians compare sizes: one stall says nothing about the size it fell into. But a training pays for its stalls,
        so what a number of steps takes is their number times the mean. Measured on a crowded machine: median 2.1 ms,
        mean 21 ms, and a trial of 9.1 s by the medians took 93 s.
        """
        at_median_s = sum(len(m.step_s) * m.median_step_s for m in self.timed)
        return sum(sum(m.step_s) for m in self.timed) / at_median_s

    def step_s(self, batch_size: int) -> float:
        """Mean seconds of one optimizer step of one micro-batch: what training costs, stalls included.

        Linear between the measured sizes, and never falling.
        """
        return self._mean_over_median * self._typical_step_s(batch_size)

    def _typical_step_s(self, batch_size: int) -> float:
        """The curve through the medians.

        Beyond the largest, along the last rising segment; below the smallest, along the first one, but never less than
        in proportion to the batch. With a single level, both err on the slow side: in proportion above, the same below.
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
        """Samples per second at that batch size, accumulation aside."""
        return batch_size / self.step_s(batch_size)

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
    def saturates(self) -> bool:
        """Whether the knee is known: not where the fastest size is the largest that there was time for."""
        largest = self.timed[-1].plan.batch_size
        return self.fastest < largest or all(size < largest for size in self.skipped)

    def describe_knee(self) -> str:
        """A clause on where more samples a batch stop to bring more samples a second."""
        if not self.saturates:
            return f"samples/s may still rise beyond batch {self.fastest}, the largest that there was time to measure"
        return f"speed saturates at batch {self.knee_batch_size}: the smallest with 80 % of the highest samples/s"

    def plan_for(
        self, effective_batch: int, max_batch: int, precision: Precision, max_micro_batch: int | None = None
    ) -> Plan | None:
        """The fastest plan whose step averages over `effective_batch` samples; None where there is none.

        Accumulation starts only past memory, since it gives no throughput: a batch that fits is taken whole. Otherwise
        the batch is the divisor up to `max_micro_batch` with the least total time, the larger of equals.

        Args:
            effective_batch: samples that a step averages over.
            max_batch: the largest batch that fits.
            precision: of the plan.
            max_micro_batch: the largest that fits beside gradients that are kept; 0 where a batch must not be split,
                None for `max_batch`.
        """
        if effective_batch <= max_batch:
            return Plan(batch_size=effective_batch, precision=precision)
        most = max_batch if max_micro_batch is None else min(max_batch, max_micro_batch)
        if most < 1:
            return None
        divisors = [
            d
            for low in range(1, math.isqrt(effective_batch) + 1)
            if effective_batch % low == 0
            for d in (low, effective_batch // low)
            if d <= most
        ]
        batch = min(divisors, key=lambda d: (self.step_s(d) * (effective_batch // d), -d))
        return Plan(batch_size=batch, accumulation_steps=effective_batch // batch, precision=precision)

    @property
    def _at_knee(self) -> Measurement:
        return next(m for m in self.timed if m.plan.batch_size == self.knee_batch_size)

    @property
    def wait_share(self) -> float | None:
        """The share of a step at the knee that is not compute, in [0, 1]; None where compute alone was not timed."""
        knee = self._at_knee
        if not knee.compute_s:
            return None
        return max(0.0, 1 - median(knee.compute_s) / knee.median_step_s)

    @property
    def loader_bound(self) -> bool:
        """Whether data loading, rather than the device, sets the speed at the knee."""
        return (self.wait_share or 0.0) >= LOADER_BOUND_SHARE

    def describe_starvation(self) -> str | None:
        """One plain sentence where the loader is the bottleneck; None where it is not."""
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

    def to_json(self) -> dict[str, Any]:
        """The curve and what is read from it as plain JSON values; times in seconds, sizes in bytes."""
        return {
            "knee_batch_size": self.knee_batch_size,
            "knee": self.describe_knee(),
            "fastest_batch_size": self.fastest,
            "samples_per_s": self.samples_per_s(self.fastest),
            "loader_bound": self.loader_bound,
            "wait_share": self.wait_share,
            "starvation": self.describe_starvation(),
            "measurements": [self._point(m) for m in self.measurements],
            "skipped": list(self.skipped),
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
            "spread_s": max(measurement.step_s) - min(measurement.step_s) if timed else None,
            "repeats": len(measurement.step_s),
            "samples_per_s": rate(measurement.step_s),
            "compute_samples_per_s": rate(measurement.compute_s),
            "loader_samples_per_s": rate(measurement.loader_s),
            "peak_bytes": measurement.peak_bytes,
            "joules": measurement.joules,
            "seconds": measurement.seconds,
            "message": measurement.message,
        }


def profile(
    runner: Runner,
    plan: Plan,
    *,
    max_batch: int,
    budget_s: float,
    include: Iterable[int] = (),
    on_measurement: Callable[[Measurement], None] | None = None,
) -> ThroughputCurve:
    """The throughput curve over the powers of two up to `max_batch`, `max_batch` itself and `include`.

    Time is shared evenly among the sizes still to come, so that what a quick one leaves goes to the slow ones. The
    sizes of `include` come first, then the smallest; when the budget is spent, the rest is skipped and said so.

    Args:
        plan: precision of every measurement; always one micro-batch a step, whatever its accumulation steps.
        max_batch: the largest size that is known to run.
        budget_s: wall seconds for all of it; one size at least is measured.
        include: further sizes, such as the user's own; those above `max_batch` are left out.
        on_measurement: called with each measurement as it comes.

    Raises:
        NoValidResult: not one size could be timed.
    """
    first = sorted({size for size in include if 1 <= size <= max_batch})
    smallest = _SMALLEST_SIZE if max_batch >= _SMALLEST_SIZE else 1
    powers = [1 << power for power in range(max_batch.bit_length()) if smallest <= 1 << power <= max_batch]
    sizes = first + sorted({*powers, max_batch} - {*first})
    measurements: list[Measurement] = []
    left_s = budget_s
    for done, size in enumerate(sizes):
        if left_s <= 0 and any(m.outcome == "ok" for m in measurements):
            break
        share_s = max(0.0, left_s) / (len(sizes) - done)
        measurement = runner.time(replace(plan, batch_size=size, accumulation_steps=1), budget_s=share_s)
        left_s -= measurement.seconds
        measurements.append(measurement)
        if on_measurement is not None:
            on_measurement(measurement)
    if not any(m.outcome == "ok" and m.step_s for m in measurements):
        found = "; ".join(f"{m.plan.batch_size}: {m.outcome} {m.message or ''}".strip() for m in measurements)
        raise NoValidResult(f"one batch size at least must run when it is timed; found {found}: see the messages")
    return ThroughputCurve(measurements=tuple(measurements), skipped=tuple(sorted(sizes[len(measurements) :])))
