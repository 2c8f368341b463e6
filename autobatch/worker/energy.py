"""Energy of repeated work, from a counter that moves in ticks or from sampled power.

A counter stands still between its ticks: NVML's moves every 20 to 100 ms, depending on the card. Read at any two
moments, it is off by up to a tick at both. So the work runs until the counter moves, is counted from there, and runs to
a later tick: only whole ticks are read, and all work between them is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Protocol

from ..core.measurement import Energy

# A counter that has not moved for this long does not work. Assumed: five times the slowest tick known.
_STANDS_STILL_S = 0.5
# The most seconds from the first tick to the last; less if the budget is less, but at least this many ticks, so that
# one call more or less in a tick matters little. Assumed. It also compensates for sensors that measure only a part of
# the time: those of an A100 or H100 a quarter of it (Yang et al. 2023, arXiv:2312.02741).
_WINDOW_S = 2.0
_FEWEST_TICKS = 10
_LEAST_BUDGET_S = 0.5  # assumed: in less, not even the quickest counter makes this many ticks
_SAMPLE_S = 0.02  # between two readings of the power. Assumed: no slower than it changes


class PowerSource(Protocol):
    """What a device reports about its energy."""

    def joules(self) -> float | None:
        """Energy used since some fixed moment; None if nothing counts it."""

    def watts(self) -> float | None:
        """The present power; None if it cannot be read."""

    def synchronize(self) -> None:
        """Wait until all queued work has run."""


def energy_of(
    work: Callable[[], object],
    source: PowerSource,
    *,
    call_s: float,
    budget_s: float,
    clock: Callable[[], float] = perf_counter,
) -> Energy | None:
    """The energy of one call of `work`, which is repeated for at most two seconds; None if it cannot be measured.

    Args:
        work: does the same each time.
        source: the device on which it runs.
        call_s: seconds of one call, roughly.
        budget_s: about how many seconds to spend. If they are too few for ten ticks, the answer is None.
        clock: returns seconds.
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
    # Few ticks mean that a step is longer than a tick. It is then as exact as the counter.
    if joules <= 0 or (ticks < _FEWEST_TICKS and calls > ticks):
        return None
    return Energy(joules=joules / calls, watts=joules / (end.at - begin.at))


@dataclass(frozen=True, slots=True)
class _Tick:
    """One movement of the counter."""

    at: float
    joules: float
    calls: int


def _next_tick(work: Callable[[], object], source: PowerSource, clock: Callable[[], float]) -> _Tick | None:
    """Work until the counter moves; None if it stands still."""
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
    """The energy from the average power, which is read while the work runs."""
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
