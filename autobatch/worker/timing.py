"""How long an optimizer step takes on a device of this process, and where the time goes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import Any, Protocol, TypeVar

from ..core.measurement import Energy
from ..core.medians import drift, is_settled
from ..core.units import format_size
from ..devices import Device
from ..tasks.data import Batch, to_device
from .energy import energy_of
from .training import Trainer

_WARM_UP_STEPS = 2  # assumed: lazily made state and library handles; a compiled model compiles in the first
_STEADY = 0.05  # assumed: warm when a block is within 5 % of the fastest one so far
_BLOCK_S = 0.02  # assumed: long enough that reading the clock (about 0.1 us) and one scheduling hiccup are small in it
_SMALL_PART = 0.02  # a part of a step below this share of the longest one need not settle. Assumed.
# Shares of the time: for steps as in training, for the same on loaded batches, for the loader alone, and for the parts
# of a step one by one. Warming up takes what it needs from the first. Assumed: the first is what is compared.
_STEP_SHARE, _COMPUTE_SHARE, _LOADER_SHARE, _PHASES_SHARE = 0.5, 0.2, 0.15, 0.15
_WARM_UP_SHARE = 0.15
_FEWEST_BLOCKS = 3  # as `Runner.time` promises for whole steps; for parts, one is enough if a step is long
# The share of the time spent waiting for a processor that others use, from which it is remarked. Assumed: a median over
# 95 % of undisturbed steps still hides it.
_WAITED = 0.05


T = TypeVar("T", bool, int)
Clock = Callable[[], float]  # seconds


class Lead(Protocol):
    """Chooses the value that counts: for one process its own, for ranks that of rank 0."""

    def __call__(self, value: T, /) -> T:
        """That value. All ranks call this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The measurements of one plan; the fields are those of `Measurement`."""

    step_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    loader_s: tuple[float, ...]
    phases_s: dict[str, float]
    remarks: tuple[str, ...]


def _own(value: T) -> T:
    return value


def time_step(
    bench: Trainer,
    device: Device,
    batches: Iterator[Batch],
    budget_s: float,
    lead: Lead = _own,
    *,
    parts: bool = True,
    clock: Clock = perf_counter,
) -> Timing:
    """Times of whole optimizer steps of `bench`, of their parts, of the loader alone and of the compute alone.

    Args:
        bench: takes the steps, of its plan.
        device: where it trains.
        batches: from the loader, endlessly.
        budget_s: about how many seconds to spend.
        lead: rank 0's value, if ranks take the steps together: all follow its clock, and so take equally many steps.
        parts: False to time whole steps alone.
        clock: times everything.
    """
    steps = bench.config.plan.accumulation_steps
    host = list(islice(batches, steps))
    held = [to_device(batch, device.torch_device) for batch in host]
    for _ in range(_WARM_UP_STEPS):
        bench.step(cycle(held))
    next(batches)  # the loader's workers have started

    def train() -> None:
        bench.step(batches)

    _warm_up(train, device, _WARM_UP_SHARE * budget_s, lead, clock)
    waited, begun = device.waited_s(), clock()
    share = _STEP_SHARE if parts else 1 - _WARM_UP_SHARE
    step_s = repeat(train, device, share * budget_s, lead=lead, clock=clock)
    slowed_by = _slowed_by(train, median(step_s), device, lead)
    still, elapsed = device.waited_s(), clock() - begun
    compute_s, loader_s, phases_s = list[float](), list[float](), dict[str, float]()
    if parts:
        share_s = _COMPUTE_SHARE * budget_s
        compute_s = repeat(lambda: bench.step(cycle(held)), device, share_s, fewest=1, lead=lead, clock=clock)
        loader_s = _loading(
            lambda: [to_device(batch, device.torch_device) for batch in islice(batches, steps)],
            device,
            _LOADER_SHARE * budget_s,
            lead,
            clock,
        )
        phases_s = _phases(bench, device, host, _PHASES_SHARE * budget_s, lead, clock)
    remarks = [f"the clocks were held back by {why}" for why in sorted(slowed_by)]
    if others := device.others_bytes():
        remarks.append(f"other processes held {format_size(others)} of the device")
    if waited is not None and still is not None and still - waited > _WAITED * elapsed:
        remarks.append(f"other processes had the processor {(still - waited) / elapsed:.0%} of the time")
    if change := drift(step_s):
        remarks.append(f"steps became {abs(change):.0%} {'slower' if change > 0 else 'faster'} while they were timed")
    return Timing(
        step_s=tuple(step_s),
        compute_s=tuple(compute_s),
        loader_s=tuple(loader_s),
        phases_s=phases_s,
        remarks=tuple(remarks),
    )


def measure_energy(bench: Trainer, device: Device, batches: Iterator[Batch], budget_s: float) -> Energy | None:
    """The energy of one step of `bench` as in training; None if the device does not measure it.

    Args:
        bench: takes the steps, of its plan. Only for one process: each rank's counter has its own ticks, so ranks would
            not take equally many steps.
        device, batches: as in `time_step`.
        budget_s: seconds from the first counted tick to the last.
    """

    def train() -> None:
        bench.step(batches)

    begun = perf_counter()
    for _ in range(_WARM_UP_STEPS):
        train()
    energy = energy_of(train, device, call_s=_block(train, 1, device, perf_counter), budget_s=budget_s)
    return None if energy is None else replace(energy, seconds=perf_counter() - begun)


def _slowed_by(train: Callable[[], object], step_s: float, device: Device, lead: Lead) -> set[str]:
    """Why the clocks are held back, read while the device works: an idle one has other reasons."""
    if lead(device.slowed_by() is None):
        return set()
    for _ in range(lead(_calls_a_block(step_s))):
        train()
    reasons = set(device.slowed_by() or ())
    device.synchronize()
    return reasons


def _loading(load: Callable[[], object], device: Device, budget_s: float, lead: Lead, clock: Clock) -> list[float]:
    """Seconds per call of `load`, one value for as many calls as fill a block's time.

    The first block includes what the loader's workers had ready, which would make loading look free. So it is left out
    if there is another one.
    """
    begun, times = clock(), list[float]()
    while lead(not times or (clock() - begun < budget_s and not is_settled(times[1:]))):
        started, calls = clock(), 0
        while calls == 0 or clock() - started < _BLOCK_S:
            load()
            calls += 1
        device.synchronize()
        times.append((clock() - started) / calls)
    return times[1:] or times


def repeat(
    work: Callable[[], object],
    device: Device,
    budget_s: float,
    *,
    fewest: int = _FEWEST_BLOCKS,
    lead: Lead = _own,
    clock: Clock = perf_counter,
) -> list[float]:
    """Seconds per call of `work`, one value per block, until the median is settled or the time is spent.

    Settled means a 95 % interval of the median within 2 % of it. There are at least `fewest` values.
    """
    begun = clock()
    first_s = _block(work, 1, device, clock)
    calls = lead(_calls_a_block(first_s))
    times = [first_s] if calls == 1 else []
    while lead(len(times) < fewest or (clock() - begun < budget_s and not is_settled(times))):
        times.append(_block(work, calls, device, clock))
    return times


def _calls_a_block(call_s: float) -> int:
    return max(1, math.ceil(_BLOCK_S / max(call_s, 1e-9)))


def _block(work: Callable[[], object], calls: int, device: Device, clock: Clock) -> float:
    """Seconds per call, with the device synchronised before and after."""
    device.synchronize()
    begun = clock()
    for _ in range(calls):
        work()
    device.synchronize()
    return (clock() - begun) / calls


def _warm_up(work: Callable[[], object], device: Device, budget_s: float, lead: Lead, clock: Clock) -> None:
    """Work until a block is about as fast as the fastest so far: caches are filled, and clocks are up."""
    begun = clock()
    fastest = _block(work, 1, device, clock)
    calls = lead(_calls_a_block(fastest))
    while lead(clock() - begun < budget_s):
        now = _block(work, calls, device, clock)
        if lead(fastest / (1 + _STEADY) <= now <= fastest * (1 + _STEADY)):
            return
        fastest = min(fastest, now)


class _Laps:
    """Called at the end of each part of a step, it records the part's time."""

    def __init__(self, device: Device, clock: Clock) -> None:
        self._device, self._clock, self._at = device, clock, 0.0
        self.seconds: dict[str, float] = defaultdict(float)

    def begin(self) -> None:
        self.seconds.clear()
        self._device.synchronize()
        self._at = self._clock()

    def __call__(self, part: str) -> None:
        self._device.synchronize()
        now = self._clock()
        self.seconds[part] += now - self._at
        self._at = now


def _phases(
    bench: Trainer, device: Device, host: list[Any], budget_s: float, lead: Lead, clock: Clock
) -> dict[str, float]:
    """Median seconds of each part of a step on loaded batches."""
    laps = _Laps(device, clock)
    times: dict[str, list[float]] = defaultdict(list)
    begun, done = clock(), 0
    bench.on_part = laps
    try:
        while lead(done < 1 or (clock() - begun < budget_s and _unsettled(times))):
            laps.begin()
            bench.step(cycle(host))
            for part, seconds in laps.seconds.items():
                times[part].append(seconds)
            done += 1
    finally:
        bench.on_part = None
    return {part: median(seconds) for part, seconds in times.items()}


def _unsettled(times: dict[str, list[float]]) -> bool:
    """Whether a part that matters is not settled. Small parts are reported in microseconds anyway."""
    longest = max(median(seconds) for seconds in times.values())
    return any(not is_settled(s) for s in times.values() if median(s) > _SMALL_PART * longest)
