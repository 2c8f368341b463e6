"""Energy of repeated work, by a counter that moves in ticks or by power that is sampled.

A counter stands still between its ticks: NVML's moves every 20 to 100 ms, by the card. Read at any two moments, it is
off by up to a tick at both. So the work runs on until the counter moves, is counted from there, and runs on to a later
tick: only whole ticks are read, and all that was done between them is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Protocol

from ..core.measurement import Energy

# A counter that has not moved for so long is taken not to work. Assumed: five times the slowest tick known.
_STANDS_STILL_S = 0.5
# Between the first tick and the last, at most; less where the budget is less, but never fewer than so many ticks: what
# one call more or less in a tick is worth is small then. Assumed. It is also what makes up for sensors that look only a
# part of the time: those of an A100 or H100 a quarter of it (Yang et al. 2023, arXiv:2312.02741).
_WINDOW_S = 2.0
_FEWEST_TICKS = 10
_LEAST_BUDGET_S = 0.5  # assumed: below, not even the quickest counter makes so many ticks
_SAMPLE_S = 0.02  # between two readings of the power. Assumed: no slower than it changes


class PowerSource(Protocol):
    """What a device tells of its energy."""

    def joules(self) -> float | None:
        """Energy used since some fixed moment; None where nothing counts it."""

    def watts(self) -> float | None:
        """Power at the moment; None where it cannot be read."""

    def synchronize(self) -> None:
        """Wait until what was queued has run."""


def energy_of(
    work: Callable[[], object],
    source: PowerSource,
    *,
    call_s: float,
    budget_s: float,
    clock: Callable[[], float] = perf_counter,
) -> Energy | None:
    """The energy of one call of `work`, which is repeated for two seconds at most; None where it cannot be known.

    Args:
        work: does the same each time.
        source: the device it runs on.
        call_s: seconds of one call, about.
        budget_s: seconds for it, about; where they are too few for ten ticks, nothing is told.
        clock: seconds.
    """
    if budget_s < _LEAST_BUDGET_S:
        return None
    window_s = min(budget_s, _WINDOW_S)
    if source.joules() is not None:
        return _counted(work, source, window_s, clock)
    if source.watts() is not None:
        return _sampled(work, source, max(1, round(window_s / call_s)), clock)
    return None


def _counted(
    work: Callable[[], object], source: PowerSource, window_s: float, clock: Callable[[], float]
) -> Energy | None:
    begin = _next_tick(work, source, clock)
    if begin is None:
        return None
    calls, ticks, end = 0, 0, begin
    while end.at - begin.at < window_s or (ticks < _FEWEST_TICKS and end.at - begin.at < _WINDOW_S):
        tick = _next_tick(work, source, clock)
        if tick is None:
            return None
        calls, ticks, end = calls + tick.calls, ticks + 1, tick
    joules = end.joules - begin.joules
    # Few ticks are a step that is longer than a tick, which is then as exact as the counter is.
    if joules <= 0 or (ticks < _FEWEST_TICKS and calls > ticks):
        return None
    return Energy(joules=joules / calls, watts=joules / (end.at - begin.at))


@dataclass(frozen=True, slots=True)
class _Tick:
    """The counter has moved."""

    at: float
    joules: float
    calls: int


def _next_tick(work: Callable[[], object], source: PowerSource, clock: Callable[[], float]) -> _Tick | None:
    """Work until the counter moves; None where it stands still."""
    before, begun, calls = source.joules(), clock(), 0
    while True:
        work()
        source.synchronize()
        calls += 1
        now, at = source.joules(), clock()
        if now is None or before is None:
            return None
        if now != before:
            return _Tick(at, now, calls)
        if at - begun > _STANDS_STILL_S and calls > 1:
            return None


def _sampled(work: Callable[[], object], source: PowerSource, calls: int, clock: Callable[[], float]) -> Energy | None:
    """By the average of the power, read beside the work."""
    readings: list[float] = []
    done = threading.Event()

    def read() -> None:
        while not done.wait(_SAMPLE_S):
            watts = source.watts()
            if watts is not None:
                readings.append(watts)

    reader = threading.Thread(target=read, daemon=True)
    begun = clock()
    reader.start()
    try:
        for _ in range(calls):
            work()
        source.synchronize()
    finally:
        seconds = clock() - begun
        done.set()
        reader.join()
    if not readings:
        return None
    return Energy(joules=fmean(readings) * seconds / calls, watts=fmean(readings))
