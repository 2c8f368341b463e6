"""Workers on a virtual clock: a race of many, trained by one simulated runner."""

from __future__ import annotations

import heapq
from concurrent.futures import Future

from autobatch.core.runner import Runner
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.searching.crew import Alone, Crew
from autobatch.simulated.sim import VirtualClock


class SimCrew(Crew):
    """Workers that train at once on a virtual clock, each as `runner` would alone.

    Args:
        runner: its answers are functions of the rung, whichever worker is asked.
        clock: the runner's own.
        size: workers.
    """

    def __init__(self, runner: Runner, clock: VirtualClock, size: int) -> None:
        self._runner, self._clock, self._size = runner, clock, size
        self._ends: list[tuple[float, int, TrainSegment, Future[SegmentResult]]] = []
        self._count = 0
        self.busy_s = 0.0  # seconds that workers have trained, all of them together

    @property
    def size(self) -> int:
        return self._size

    @property
    def busy(self) -> int:
        return len(self._ends)

    def submit(self, segment: TrainSegment) -> None:
        began_s, alone = self._clock.now_s, Alone(self._runner)
        alone.submit(segment)
        _, done = alone.next()
        self.busy_s += self._clock.now_s - began_s
        heapq.heappush(self._ends, (self._clock.now_s, self._count, segment, done))
        self._count += 1
        self._clock.now_s = began_s  # it has only begun

    def next(self) -> tuple[TrainSegment, Future[SegmentResult]]:
        ends_s, _, segment, done = heapq.heappop(self._ends)
        self._clock.now_s = max(ends_s, self._clock.now_s)
        return segment, done
