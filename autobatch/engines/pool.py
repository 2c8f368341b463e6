"""`Pool`: runners of one task, each in its own worker on its own device, as one runner and as a crew for a race.

The facts of the task, the largest batch and the range test are measured once and hold for all. Times are measured on
all runners at once, as in training: workers on one processor slow one another down, and cards of one kind may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

from ..core.facts import DeviceInfo, MemoryLimit, TaskFacts
from ..core.measurement import Energy, LrSweep, Measurement, Workload
from ..core.plan import Plan
from ..core.runner import Runner
from ..core.segment import SegmentResult, TrainSegment
from ..core.units import format_size
from ..devices.backend import BACKENDS
from ..errors import AutobatchError, DeviceError, SettingError, first_line
from ..searching.crew import Alone, Crew, Several

T = TypeVar("T")

_ROOMY = 0.5  # a device needs this share of the emptiest one's free memory. Assumed.
_DIFFER = 0.05  # a larger difference between workers is remarked. Assumed, as for visits to one size.


def check_workers(wanted: int, most: int, *, unit: str, where: str) -> None:
    """Check that each of the wanted workers can have its own unit.

    Raises:
        SettingError: there are fewer units.
    """
    if wanted > most:
        remedy = f"take --workers {most}" if most else "see --device"
        raise SettingError(f"a worker needs its own {unit}, and {where} has {most}; got --workers {wanted}: {remedy}")


class Pool(Runner):
    """Runners of one task on devices of one kind. The first answers for all.

    Args:
        runners: the runners that exist from the start, at least one.
        open_others: called with the first runner once it has opened its device; opens those on the other devices.
        most: the most runners to keep; None for all whose device is like the first one's.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        open_others: Callable[[Runner], Sequence[Runner]] = lambda first: (),
        *,
        most: int | None = None,
    ) -> None:
        self._runners, self._open_others = list(runners), open_others
        self._all = list(runners)  # all to close, including those that were left out
        self._most = most
        self._facts: TaskFacts | None = None
        self._crew: Several | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._is_mustered = False
        self._has_ranked = False
        self._remarks: list[str] = []

    @property
    def size(self) -> int:
        """The number of runners."""
        self._muster()
        return len(self._runners)

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each device that was left out, with the reason."""
        return tuple(self._remarks)

    def crew(self) -> Crew:
        """All runners, for a race."""
        if self.size == 1:
            return Alone(self._runners[0])
        self._crew = Several(self._runners)
        return self._crew

    def _muster(self) -> None:
        """Open a runner on each device, and keep those on devices of one kind: trials are only compared on one kind."""
        if self._is_mustered:
            return
        info = self._runners[0].device()
        others = [*self._runners[1:], *self._open_others(self._runners[0])]
        self._all = [self._runners[0], *others]
        self._threads = ThreadPoolExecutor(len(self._all), thread_name_prefix="autobatch-pool")
        self._is_mustered = True
        self._runners, devices = self._runners[:1], self._each(_device_of, others)
        for runner, device in zip(others, devices, strict=True):
            if isinstance(device, Exception):
                self._remarks.append(f"a device was left out: {first_line(device)}")
            elif _kind(device) != _kind(info):
                self._remarks.append(
                    f"{device.name} was left out: trials are compared on devices of one kind, here {info.name}"
                )
            elif self._most is None or len(self._runners) < self._most:
                self._runners.append(runner)
                continue
            runner.close()

    def _each(self, ask: Callable[[Runner], T], runners: Sequence[Runner]) -> list[T]:
        """What each runner answers. All are called at once."""
        assert self._threads is not None
        calls = [self._threads.submit(ask, runner) for runner in runners]
        wait(calls)
        return [future.result() for future in calls]

    def _all_answers(self, ask: Callable[[Runner], T]) -> list[T]:
        """What all runners answer. A runner whose device is lost is left out from then on."""
        self._muster()

        def answer(runner: Runner) -> T | DeviceError:
            try:
                return ask(runner)
            except DeviceError as error:
                return error

        answers = self._each(answer, self._runners)
        lost = [answer for answer in answers if isinstance(answer, DeviceError)]
        if len(lost) == len(answers):
            raise lost[0]
        self._remarks += [f"a device was left out: {error}" for error in lost]
        pairs = list(zip(self._runners, answers, strict=True))
        self._runners = [runner for runner, answer in pairs if not isinstance(answer, DeviceError)]
        return [answer for _, answer in pairs if not isinstance(answer, DeviceError)]

    def _of_first(self, ask: Callable[[Runner], T]) -> T:
        """What the first runner answers. If its device is lost, the next runner becomes the first."""
        while True:
            runner = self._first
            try:
                return ask(runner)
            except DeviceError as error:
                if len(self._runners) == 1:
                    raise
                self._leave_out(runner, error)

    def _leave_out(self, runner: Runner, error: DeviceError) -> None:
        self._runners = [other for other in self._runners if other is not runner]
        self._remarks.append(f"a device was left out: {error}")

    @property
    def _first(self) -> Runner:
        self._muster()
        return self._runners[0]

    def facts(self) -> TaskFacts:
        if self._facts is None:
            facts = self._of_first(lambda runner: runner.facts())
            self._facts = facts
            for other in self._runners[1:]:
                try:
                    other.learn(facts)
                except DeviceError as error:
                    self._leave_out(other, error)
        return self._facts

    def device(self) -> DeviceInfo:
        return self._first.device()

    def memory(self) -> MemoryLimit:
        """The smallest memory of all: what fits there fits everywhere. Its runner is the first from then on.

        A device is left out if other processes use so much of it that it would make the batch small for all.
        """
        if not self._has_ranked:
            self.facts()
            limits = self._all_answers(lambda runner: runner.memory())
            pairs = list(zip(limits, self._runners, strict=True))
            most = max(limit.budget_bytes for limit in limits)
            roomy = [pair for pair in pairs if pair[0].budget_bytes >= _ROOMY * most]
            self._remarks += [
                f"a device was left out: {format_size(limit.budget_bytes)} are free on it, and {format_size(most)} on "
                "another"
                for limit, _ in pairs
                if limit.budget_bytes < _ROOMY * most
            ]
            self._runners = [runner for _, runner in sorted(roomy, key=lambda pair: pair[0].budget_bytes)]
            self._has_ranked = True
        return self._of_first(lambda runner: runner.memory())

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self.memory()
        return self._of_first(lambda runner: runner.probe(plan, final=final))

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        """The slowest time of all runners, so that plans based on it hold for each."""
        measured = self._all_answers(lambda runner: runner.time(plan, budget_s=budget_s, loader=loader, parts=parts))
        failed = next((one for one in measured if one.outcome != "ok" or not one.step_s), None)
        if failed is not None:
            return failed
        slowest = max(measured, key=lambda one: one.median_step_s)
        fastest_s = min(one.median_step_s for one in measured)
        remarks = slowest.remarks
        if (more := slowest.median_step_s / fastest_s - 1) > _DIFFER:
            remarks += (f"of {len(measured)} workers the slowest took {more:.0%} longer than the fastest",)
        return replace(slowest, remarks=remarks, seconds=max(one.seconds for one in measured))

    def energy(self, plan: Plan, *, budget_s: float) -> Energy | None:
        return self._of_first(lambda runner: runner.energy(plan, budget_s=budget_s))

    def workload(self) -> Workload | None:
        return self._of_first(lambda runner: runner.workload())

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        return self._of_first(lambda runner: runner.matmul_flops_per_s(budget_s=budget_s))

    def see_evaluation_end(self, limit_s: float) -> None:
        self._of_first(lambda runner: runner.see_evaluation_end(limit_s))

    def time_evaluation(self, batch_size: int) -> float:
        return max(self._all_answers(lambda runner: runner.time_evaluation(batch_size)))

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        return self._of_first(
            lambda runner: runner.sweep_lr(plan, lowest=lowest, highest=highest, steps=steps, seed=seed)
        )

    def advance(self, segment: TrainSegment) -> SegmentResult:
        return self._first.advance(segment)

    def test_score(self, segment: TrainSegment) -> float | None:
        """Ask a worker that still takes segments. If it gives no score, which may be its own fault, ask another one."""
        at_work = () if self._crew is None else self._crew.at_work
        self._runners.sort(key=lambda runner: not any(runner is other for other in at_work))
        score = self._of_first(lambda runner: runner.test_score(segment))
        if score is not None or not self.facts().has_test_data:
            return score
        if len(self._runners) > 1:
            self._runners.append(self._runners.pop(0))
            score = self._of_first(lambda runner: runner.test_score(segment))
            other = "another one did" if score is not None else "nor did another one"
        else:
            other = "there is no other"
        why = "it died, or memory or the time ran out"
        self._remarks.append(f"a worker gave trial {segment.trial} no score on the test data ({why}): {other}")
        return score

    def forget(self, trial: int, before: int | None = None) -> None:
        self._first.forget(trial, before)

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
        for runner in self._all:
            runner.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False)


def _device_of(runner: Runner) -> DeviceInfo | Exception:
    """The device, or the error if it cannot be opened."""
    try:
        return runner.device()
    except (AutobatchError, RuntimeError) as error:
        return error


def _kind(device: DeviceInfo) -> tuple[str, str, int | None]:
    """What must be equal for two devices to be alike."""
    return device.kind, device.name, None if BACKENDS[device.kind].is_processor else device.memory_bytes
