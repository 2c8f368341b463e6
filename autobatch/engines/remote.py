"""`RemoteRunner`: a runner whose torch is in a worker process. The coordinator does not import torch.

A final probe, and on a CPU every probe, runs in a process that ran nothing before. On Linux that is a fork of one that
has only imported (`processes/fork_server.py`): as fresh as a new Python, without the seconds that importing torch
takes. On an accelerator the fresh process replaces the worker, so that two processes never hold the device. On a CPU it
runs one probe beside the worker: it makes memory countable to the page, which slows it down. The worker itself does not
do that unless the user sets a memory limit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.checkpoints import forget_checkpoints
from ..core.facts import DeviceInfo, MemoryLimit, TaskFacts, WorstCase
from ..core.measurement import Energy, LrSweep, Measurement, Outcome, Workload
from ..core.plan import Plan
from ..core.runner import Runner
from ..core.segment import SegmentOutcome, SegmentResult, TrainSegment
from ..devices import host_memory
from ..devices.backend import BACKENDS
from ..devices.environment import worker_environment
from ..errors import DeviceLost, NoValidResult, TaskError, WorkerDied, WorkerTimeout
from ..measuring.profiling import FEWEST_STEPS_WITH_PARTS
from ..tasks.libraries import NO_LIBRARIES, Libraries
from .processes.fork_server import ForkServer
from .processes.leaks import LeakWatch
from .processes.local import LocalWorker
from .processes.timeouts import PROBE_TIMEOUT_S, Patience, limit
from .scout import is_worth_a_scout, opening_after, send_scout
from .served import TO_READ, TO_STEP, RunnerSpec, call, imported_libraries, names_of_devices, open_runner

OPENING_S = 600.0  # to open the task, where the call that waits for that has a limit; assumed, as for a probe
GRACE_S = 2.0  # assumed: what a segment may need past its own limit to notice it, before its worker is killed


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process, and the opening of its runner, which goes on while the coordinator does something else."""

    process: LocalWorker
    opening: Future[None]


class RemoteRunner(Runner):
    """The runner that `spec` describes, in worker processes.

    Args:
        spec: what to open.
        log: file for all output of the workers; None for this process's stderr.
        remaining_s: seconds that a call may still take. A call that exceeds them loses its worker. None for no limit.
        environment: variables for the workers, added to our own.
        probe_timeout_s: seconds after which a probe counts as hanging, and its worker is ended; see `Patience`.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        *,
        log: Path | None = None,
        remaining_s: Callable[[], float] | None = None,
        environment: Mapping[str, str] | None = None,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self._spec, self._log, self._remaining_s = spec, log, remaining_s
        self._patience, self._leaks = Patience(probe_timeout_s), LeakWatch(log)
        self._environment = worker_environment(spec.threads, is_timed=spec.is_timed) | dict(environment or {})
        self._is_limited = spec.memory_limit_bytes is not None
        self._server: ForkServer | None = None
        self._is_closed = False  # until it is asked again
        # The latest that the server was told to load; None: never again.
        self._libraries: Libraries | None = NO_LIBRARIES
        self._is_exact = False  # whether the worker counts memory to the page
        self._looking: Future[dict[str, WorstCase]] | None = None  # the scout's result, while it is awaited
        self._scout = self._send_scout()
        self._worker = self._start(exact=False)
        self._used: LocalWorker | None = None  # the latest process that has taken steps of the task
        self._prepared: LocalWorker | None = None  # the process that has loaded the data
        self._facts: TaskFacts | None = None
        self._device: DeviceInfo | None = None
        self._memory: MemoryLimit | None = None

    def _send_scout(self) -> LocalWorker | None:
        if not is_worth_a_scout(self._spec):
            return None
        self._server = ForkServer(TO_READ, environment=self._environment, log=self._log)
        self._load_known()
        scout, self._looking = send_scout(self._spec, self._server)
        return scout

    def _end_scout(self) -> None:
        """End the scout, so that its data is gone before the worker loads the data again."""
        if self._scout is not None:
            with suppress(ProcessLookupError):
                _ = self._worker.process.pid  # wait for its start: before, the server imports and reads no orders
            self._scout.kill()
            self._scout = None

    def _start(self, *, exact: bool) -> _Worker:
        """A process that has run nothing."""
        self._is_closed = False
        if sys.platform.startswith("linux"):
            if self._server is not None and not self._server.alive:
                self._died_of_libraries()
                self._server.close()
                self._server = None
            if self._server is None:
                self._server = ForkServer(TO_STEP, environment=self._environment, log=self._log)
                self._load_known()
        process = LocalWorker(server=self._server, environment=self._environment, log=self._log)
        if self._looking is not None:
            looking, self._looking = self._looking, None
            return _Worker(process, opening_after(looking, process, self._spec_with))
        # The task itself is sent once.
        try:
            opening = process.submit(open_runner, self._spec, exact=exact)
        except WorkerDied as death:  # its server has just ended
            opening = Future()
            opening.set_exception(death)
        return _Worker(process, opening)

    def _spec_with(self, worst_cases: dict[str, WorstCase] | None) -> RunnerSpec:
        if worst_cases is not None:
            self._spec = replace(self._spec, worst_cases=worst_cases)
        return self._spec

    def _call(
        self,
        method: str,
        *args: Any,
        worker: _Worker | None = None,
        timeout_s: float | None = None,
        **kwargs: Any,
    ) -> Any:
        called = worker or self._worker
        if worker is None and not called.process.alive:
            called = self._worker = self._start(exact=self._is_exact)
        what, limit_s, is_hang = "opening the task", *self._limit(None if timeout_s is None else OPENING_S)
        try:
            # Opening has its own limit: that of a segment does not include the start of a worker. And if opening
            # failed, its error counts, rather than that a call had no runner.
            called.opening.result(timeout=limit_s)
            what, limit_s, is_hang = method, *self._limit(timeout_s)
            return called.process.submit(call, method, args, kwargs).result(timeout=limit_s)
        except TimeoutError:
            called.process.kill()
            hang = WorkerTimeout(f"{what} took longer than the {limit_s:.1f} s it had; its worker was ended")
            hang.is_hang = is_hang
            raise hang from None
        except DeviceLost:
            called.process.kill()
            raise
        except WorkerDied as death:
            death.was_killed = called.process.killed
            # If another thread has closed the runner meanwhile, the worker must not be started again.
            if worker is not None or self._is_closed or not self._died_of_libraries():
                raise
        return self._call(method, *args, timeout_s=timeout_s, **kwargs)

    def _limit(self, timeout_s: float | None) -> tuple[float | None, bool]:
        return limit(timeout_s, max(0.0, self._remaining_s()) if self._remaining_s else None)

    def _ask(self, method: str, *args: Any, work: bool = False, **kwargs: Any) -> Any:
        """A call that is repeated if its worker was killed or lost its device, since the call may not be the cause.

        If the device is gone, the replacement worker cannot open it and raises that.
        """
        call = self._work if work else self._call
        try:
            return call(method, *args, **kwargs)
        except WorkerTimeout:
            raise
        except WorkerDied as death:
            if self._is_closed or not (death.was_killed or isinstance(death, DeviceLost)):
                raise
        return call(method, *args, **kwargs)

    def _died_of_libraries(self) -> bool:
        """Whether the server, and every worker with it, has ended while it had libraries to share: true once.

        The libraries may be the cause, if one crashes when it is imported or memory runs out. From then on none are
        shared.
        """
        if self._server is None or self._server.alive or self._libraries in (None, NO_LIBRARIES):
            return False
        self._libraries = None
        return True

    def _load_known(self) -> None:
        """Have a new server import what is known beforehand that the task does."""
        if self._libraries is not None and self._spec.libraries != NO_LIBRARIES:
            assert self._server is not None
            self._server.load(self._spec.libraries)
            self._libraries = self._spec.libraries

    def _share_libraries(self) -> None:
        """Import the task's libraries in the fork server, so that the fresh processes of a CPU's probes have them.

        Not on an accelerator, which needs few fresh processes: a library may start the driver when it is imported, and
        that does not survive a fork.
        """
        if self._server is None or self._libraries is None or not self._on_cpu or not self._worker.process.alive:
            return
        with suppress(WorkerDied):
            libraries = self._worker.process.submit(imported_libraries).result()
            if libraries != self._libraries:
                self._server.load(libraries)
                self._libraries = libraries

    def facts(self) -> TaskFacts:
        if self._facts is None:
            self.device()
            self._end_scout()
            self._share_libraries()  # the server loads them while the worker checks the task
            try:
                facts: TaskFacts = self._ask("facts")
            except DeviceLost as lost:  # twice, on a device that could be opened in between: the task is the cause
                raise TaskError(str(lost)) from None
            self._used = self._worker.process  # the check takes steps
            self._facts = facts
            self._spec = replace(self._spec, worst_cases=facts.worst_cases)  # scanned once, not in every fresh process
        return self._facts

    def learn(self, facts: TaskFacts) -> None:
        self._facts = facts
        self._spec = replace(self._spec, worst_cases=facts.worst_cases)

    def device(self) -> DeviceInfo:
        if self._device is None:
            device: DeviceInfo = self._ask("device")
            self._device = device
        return self._device

    def device_names(self) -> list[str]:
        """The devices that the worker sees, as a user would name them."""
        self.device()  # opens it
        names: list[str] = self._worker.process.submit(names_of_devices).result()
        return names

    def memory(self) -> MemoryLimit:
        if self._memory is None:
            memory: MemoryLimit = self._ask("memory")
            self._memory = memory
            if self._on_cpu and not self._is_limited:
                # The free memory differs between processes. Every later process gets the first one's limit.
                self._spec = replace(self._spec, memory_limit_bytes=memory.budget_bytes, headroom=0.0)
        return self._memory

    @property
    def _is_fresh(self) -> bool:
        """Whether the worker, or the one that a call would start in its place, has taken no step of the task."""
        return not self._worker.process.alive or self._worker.process is not self._used

    @property
    def _on_cpu(self) -> bool:
        return BACKENDS[self.device().kind].is_processor

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        """A probe. If the worker dies, it is run once more, since the batch may not be the cause.

        The batch is clearly the cause if the kernel counts one more process that it killed when memory ran out.
        """
        kills, is_first = host_memory.kills(), True
        while True:
            try:
                return self._probe(plan, final)
            except WorkerTimeout:
                raise
            except WorkerDied as death:
                if self._is_closed:  # another thread has closed it meanwhile
                    raise
                if self._died_of_libraries():  # the libraries, and not the batch, may be the cause
                    continue
                if is_first and (kills is None or host_memory.kills() == kills):
                    is_first = False
                    continue
                outcome: Outcome = "oom" if death.was_killed else "crashed"
                return Measurement(plan=plan, outcome=outcome, fresh=True, message=str(death))

    def _probe(self, plan: Plan, final: bool) -> Measurement:
        """The probe, in a suitable worker."""
        self.memory()
        self._share_libraries()
        if self._on_cpu:
            worker = self._start(exact=True)
        elif (final and not self._is_fresh) or not self._worker.process.alive:
            self._worker.process.kill()
            worker = self._worker = self._start(exact=False)
        else:
            worker = self._worker
        is_fresh = worker is not self._worker or self._is_fresh
        if worker is self._worker:
            self._used = worker.process
        begun, patience_s = time.monotonic(), self._patience.probe_s(plan, self._spec.soak_steps if final else 0)
        try:
            measurement: Measurement = self._call("probe", plan, worker=worker, timeout_s=patience_s, final=final)
        except WorkerTimeout as hang:
            if not hang.is_hang:
                raise
            return Measurement(plan=plan, outcome="crashed", fresh=is_fresh, message=str(hang))
        finally:
            if worker is not self._worker:
                worker.process.kill()
        self._patience.learn_probe(plan, time.monotonic() - begun)
        return replace(measurement, fresh=is_fresh)

    def prepare(self, *, fresh: bool = False) -> None:
        """Have a worker ready with the data loaded, so that the next call's time does not include that.

        It may take the rest of the whole time: a worker that replaces another one during a race has to open the task
        and load the data again, which may take longer than a segment may.

        Args:
            fresh: whether the worker must not have taken a step yet.
        """
        if self._is_limited and self._on_cpu and not self._is_exact:
            self._worker.process.kill()
            self._is_exact = True
        if fresh and not self._is_fresh:
            self._worker.process.kill()
        if self._worker.process is not self._prepared or not self._worker.process.alive:
            self._call("prepare")
            self._prepared = self._worker.process

    def _work(self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """A call outside of probing."""
        self.prepare()
        try:
            return self._call(method, *args, timeout_s=timeout_s, **kwargs)
        finally:
            self._used = self._worker.process

    def _take_steps(self, method: str, plan: Plan, budget_s: float, **kwargs: Any) -> Any:
        """The result of a call that takes steps of a plan, or the death of its worker."""
        limit_s = self._patience.steps_s(plan, FEWEST_STEPS_WITH_PARTS, budget_s)
        try:
            return self._work(method, plan, timeout_s=limit_s, budget_s=budget_s, **kwargs)
        except WorkerDied as death:
            if isinstance(death, WorkerTimeout) and not death.is_hang:
                raise
            return death

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        measured: Measurement | WorkerDied = self._take_steps("time", plan, budget_s, loader=loader, parts=parts)
        if isinstance(measured, WorkerDied):
            return Measurement(plan=plan, outcome="crashed", message=str(measured))
        self._patience.learn_time(measured)
        return measured

    def energy(self, plan: Plan, *, budget_s: float) -> Energy | None:
        energy: Energy | WorkerDied | None = self._take_steps("energy", plan, budget_s)
        return None if isinstance(energy, WorkerDied) else energy  # the times of the plan are valid without it

    def workload(self) -> Workload | None:
        workload: Workload | None = self._work("workload")
        return workload

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        reached: float | None = self._work("matmul_flops_per_s", budget_s=budget_s)
        return reached

    def see_evaluation_end(self, limit_s: float) -> None:
        timeout_s = 2 * limit_s + self._patience.probe_timeout_s
        self._ask("see_evaluation_end", limit_s, work=True, timeout_s=timeout_s)

    def time_evaluation(self, batch_size: int) -> float:
        return float(self._ask("time_evaluation", batch_size, work=True, timeout_s=self._patience.probe_timeout_s))

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        limit_s = self._patience.steps_s(plan, steps)
        settings = {"lowest": lowest, "highest": highest, "steps": steps, "seed": seed}
        try:
            sweep: LrSweep = self._ask("sweep_lr", plan, work=True, timeout_s=limit_s, **settings)
        except WorkerTimeout as hang:
            if not hang.is_hang:
                raise
            raise NoValidResult(f"the range test at batch {plan.effective_batch_size} hung: {hang}") from None
        return sweep

    def advance(self, segment: TrainSegment) -> SegmentResult:
        limit_s = None if segment.limit_s is None else segment.limit_s + GRACE_S
        begun = time.monotonic()
        try:
            self.prepare(fresh=segment.fresh)
            is_fresh = self._is_fresh
            result: SegmentResult = self._work("advance", segment, timeout_s=limit_s)
        except WorkerDied as death:
            return segment_of_dead(segment, death, time.monotonic() - begun)
        worker = self._worker.process
        # The worker may have run out of memory because of earlier work, so nothing else should run in it.
        if worker.alive and (result.outcome == "oom" or self._leaks.is_leaking([worker.pid])):
            worker.kill()  # the next call starts another one
        return replace(result, fresh=is_fresh)

    def test_score(self, segment: TrainSegment) -> float | None:
        try:
            score: float | None = self._work("test_score", segment)
        except WorkerDied:  # also if time runs out: the result is valid without it
            return None
        return score

    def forget(self, trial: int, before: int | None = None) -> None:
        if self._spec.checkpoints is not None:
            forget_checkpoints(self._spec.checkpoints, trial, before)
        elif self._worker.process.alive:  # a dead worker's own folder is gone with it
            with suppress(WorkerDied):
                self._call("forget", trial, before)

    def close(self) -> None:
        self._is_closed = True
        if self._server is not None:
            self._server.close()  # first: it ends the workers in any state
        self._worker.process.kill()


def segment_of_dead(segment: TrainSegment, death: WorkerDied, spent_s: float) -> SegmentResult:
    """The result of a segment whose worker died in it, or was ended because it took too long."""
    outcome: SegmentOutcome = "timeout" if isinstance(death, WorkerTimeout) else "crashed"
    return SegmentResult(segment=segment, outcome=outcome, message=str(death), train_s=spent_s, seconds=spent_s)
