"""`GroupRunner`: a runner whose every step is taken by several processes together, with DistributedDataParallel.

What a step needs is measured on each rank without the others, as under torchrun (`ranks/agreement.py`), so that a probe
that runs out of memory leaves no rank waiting. All training runs on all ranks at once, in a team of processes that has
run nothing before. A team that has lost a rank, or in which a rank has failed, is ended, and the next call gets a new
one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..core.checkpoints import forget_checkpoints
from ..core.facts import DeviceInfo, MemoryLimit, TaskFacts
from ..core.measurement import LrSweep, Measurement
from ..core.plan import Plan
from ..core.runner import Runner
from ..core.segment import SegmentResult, TrainSegment
from ..devices.backend import BACKENDS, CARDS
from ..devices.environment import available_cores, worker_environment
from ..errors import AutobatchError, NoValidResult, RankLost, SettingError, WorkerDied, WorkerTimeout
from ..measuring.profiling import FEWEST_STEPS_WITH_PARTS
from .commands.runner import CommandRunner
from .pool import Pool, check_workers
from .processes.fork_server import ForkServer
from .processes.leaks import LeakWatch
from .processes.timeouts import Patience, limit
from .ranks.agreement import RankInfo, agreed, agreed_limit, same_error
from .ranks.answers import Answer, cause, joined_segment, joined_sweep, joined_times
from .remote import GRACE_S, RemoteRunner
from .served import TO_STEP, RunnerSpec
from .team import Team, answer_of

T = TypeVar("T")

# The limit for a collective, and for all ranks to open the task. Cited: torch's default for NCCL's collectives
# (torch/distributed/constants.py). It is the last resort: a rank that fails reports it, and a segment has its own
# limit.
COLLECTIVE_S = 600.0
# The limit for the answers of the other ranks, once one rank has failed or rank 0 is done. Assumed: ranks in lockstep
# are this far apart on a crowded machine. A rank that another one's failure has left in a collective never answers.
STRAGGLER_S = 10.0


def open_workers(
    spec: RunnerSpec, *, log: Path | None = None, remaining_s: Callable[[], float] | None = None
) -> Runner:
    """The runner of `spec` in worker processes: one, several that train trials at once, or several that train together.

    Raises:
        SettingError: the spec has both several workers and several ranks.
    """
    if spec.command is not None:
        if spec.workers not in (None, 1):
            raise SettingError(
                f"a command is run once at a time, as nobody knows which device it takes; found --workers "
                f"{spec.workers}: leave it out"
            )
        return CommandRunner(
            spec.command,
            memory_limit_bytes=spec.memory_limit_bytes,
            headroom=spec.headroom,
            checkpoints=spec.checkpoints,
            log=log,
            remaining_s=remaining_s,
            is_checked=spec.is_timed,
        )
    if spec.nproc > 1:
        if spec.workers not in (None, 1):
            raise SettingError(
                f"several workers train a trial each, and the ranks of --nproc one trial together; got --workers "
                f"{spec.workers} and --nproc {spec.nproc}: leave one of them out"
            )
        return GroupRunner(spec, log=log, remaining_s=remaining_s)
    may_have_more = spec.device.strip().lower() in ("auto", *CARDS)
    if spec.workers == 1 or (spec.workers is None and not may_have_more):
        return RemoteRunner(spec, log=log, remaining_s=remaining_s)
    spec = replace(spec, threads=max(1, spec.threads // (spec.workers or 1)))

    def open_on(device: str, threads: int) -> RemoteRunner:
        return RemoteRunner(replace(spec, device=device, threads=threads), log=log, remaining_s=remaining_s)

    def open_others(_: Runner) -> list[RemoteRunner]:
        devices = other_devices(first, spec)
        threads = spec.threads if spec.workers is not None else max(1, spec.threads // (1 + len(devices)))
        return [open_on(device, threads) for device in devices]

    first = open_on(spec.device, spec.threads)
    return Pool([first], open_others, most=spec.workers)


def other_devices(first: RemoteRunner, spec: RunnerSpec) -> list[str]:
    """The devices, as a user would name them, that workers may train on beside the first one's.

    Raises:
        SettingError: there are fewer than `spec` requires.
    """
    info, name = first.device(), spec.device.strip().lower()
    backend = BACKENDS[info.kind]
    if backend.is_processor:
        check_workers(spec.workers or 1, available_cores(), unit="core", where="this machine")
        return [backend.torch_name] * ((spec.workers or 1) - 1)
    if name not in ("auto", backend.torch_name) or info.index is None:
        check_workers(spec.workers or 1, 1, unit="device", where=f"--device {spec.device}")
        return []
    present = [name for name in first.device_names() if name.startswith(f"{backend.torch_name}:")]
    wanted = len(present) if spec.workers is None else spec.workers
    check_workers(wanted, len(present), unit="GPU", where="this machine")
    return [name for name in present if name != f"{backend.torch_name}:{info.index}"] if wanted > 1 else []


class GroupRunner(Runner):
    """The runner that `spec` describes, in `spec.nproc` processes that take every step together.

    A plan's batch size is that of each rank. Memory is that of the rank with the least, and peaks and times are those
    of the rank that needs the most. Rank 0 alone evaluates. So a score is that of one process, whatever the task's
    `evaluate` does, and no rank waits in a collective for as long as an evaluation takes.

    Args:
        spec: what to open. On a CPU the ranks share its threads and, unless the user sets a limit, its free memory.
        log: file for all output of the workers; None for this process's stderr.
        remaining_s: seconds that a call may still take; None for no limit.
        environment: variables for the workers, added to our own.
        collective_s: seconds that a collective may take before it fails.
        straggler_s: seconds for the others' answers when one rank has failed or rank 0 is done.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        *,
        log: Path | None = None,
        remaining_s: Callable[[], float] | None = None,
        environment: Mapping[str, str] | None = None,
        collective_s: float = COLLECTIVE_S,
        straggler_s: float = STRAGGLER_S,
    ) -> None:
        size = spec.nproc
        self._spec = spec = replace(spec, threads=max(1, spec.threads // size))
        self._log, self._remaining_s = log, remaining_s
        self._collective_s, self._straggler_s = collective_s, straggler_s
        self._probers = [
            RemoteRunner(
                replace(spec, rank_info=RankInfo.on_one_machine(rank, size)),
                log=log,
                remaining_s=remaining_s,
                environment=environment,
            )
            for rank in range(size)
        ]
        self._environment = worker_environment(spec.threads, is_timed=spec.is_timed) | dict(environment or {})
        self._server: ForkServer | None = None
        self._team: Team | None = None
        self._facts: TaskFacts | None = None
        self._limits: list[MemoryLimit] | None = None
        self._patience, self._leaks = Patience(), LeakWatch(log)
        self._is_own_limit = False  # whether the latest deadline came before the end of the whole time
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="autobatch-rank")

    # -- each rank without the others ---------------------------------------------------------------------------------

    def facts(self) -> TaskFacts:
        if self._facts is None:
            self._facts = self._probers[0].facts()
            for other in self._probers[1:]:
                other.learn(self._facts)
        return self._facts

    def device(self) -> DeviceInfo:
        return self._probers[0].device()

    def memory(self) -> MemoryLimit:
        if self._limits is None:
            self.facts()
            self._ready_server()  # it imports while the ranks are probed
            self._limits = self._each(lambda prober: prober.memory())
        return agreed_limit(self._limits)

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self.memory()
        assert self._limits is not None
        self._end_team()  # two processes never hold one device
        measured = agreed(self._each(lambda prober: prober.probe(plan, final=final)), self._limits)
        self._patience.learn_probe(plan, measured.seconds)
        return measured

    def _each(self, ask: Callable[[RemoteRunner], T]) -> list[T]:
        """What each rank's prober answers. All are called at once."""
        calls = [self._threads.submit(ask, prober) for prober in self._probers]
        wait(calls)
        answers = [answer_of(future) for future in calls]
        self._raise_for(answers)
        return [answer.value for answer in answers]

    @staticmethod
    def _raise_for(answers: Sequence[Answer]) -> None:
        errors = {rank: answer.error for rank, answer in enumerate(answers) if answer.error is not None}
        for error in errors.values():
            if isinstance(error, WorkerTimeout):  # the whole time was over
                raise error
        if errors:
            named = [(type(error).__name__, str(error)) for error in errors.values()]
            raise same_error(named, list(errors), len(answers))

    # -- all ranks together -------------------------------------------------------------------------------------------

    def _deadline(self, timeout_s: float | None) -> float | None:
        remaining_s = self._remaining_s() if self._remaining_s is not None else None
        limit_s, self._is_own_limit = limit(timeout_s, remaining_s)
        return None if limit_s is None else time.monotonic() + limit_s

    def _ready_team(self) -> tuple[Team, list[Answer]]:
        """A whole team, and if it could not be opened, the answers of its ranks."""
        if self._team is not None and not self._team.is_whole:
            self._end_team()
        if self._team is None:
            facts, limit = self.facts(), self.memory()
            spec = replace(self._spec, worst_cases=facts.worst_cases, find_unused=facts.leaves_out)
            on_cpu = BACKENDS[self.device().kind].is_processor
            if on_cpu:  # the free memory differs between processes
                spec = replace(spec, memory_limit_bytes=limit.budget_bytes, headroom=0.0)
            for prober in self._probers:
                prober.close()  # two processes never hold one device; a later probe restarts it
            exact = on_cpu and self._spec.memory_limit_bytes is not None
            self._team = Team(
                spec,
                self._ready_server(),
                self._environment,
                self._log,
                exact=exact,
                collective_s=self._collective_s,
            )
        opened = self._team.opened(self._deadline(self._collective_s), self._straggler_s)
        if all(answer.is_good for answer in opened):
            # With the rest of the whole time: loading says nothing about the later steps, and their limit does not
            # apply to it.
            opened = self._team.prepared(self._deadline(None), self._collective_s)
        if all(answer.is_good for answer in opened):
            return self._team, []
        not_opened = Answer(error=RankLost("the others could not be opened"))
        return self._team, [not_opened if answer.is_good else answer for answer in opened]

    def _ready_server(self) -> ForkServer | None:
        if not sys.platform.startswith("linux"):
            return None
        if self._server is None or not self._server.alive:
            self._server = ForkServer(TO_STEP, environment=self._environment, log=self._log)
        return self._server

    def _end_team(self) -> None:
        if self._team is not None:
            self._team.close()
            self._team = None

    def _ask(
        self, method: str, *args: Any, ranks: int | None = None, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Answer]:
        """What each rank answers, or the first `ranks` of them. A team that cannot go on is ended."""
        answers: list[Answer] = []
        try:
            team, answers = self._ready_team()
            if not answers:
                called = self._spec.nproc if ranks is None else ranks
                answers = team.ask(called, method, args, kwargs, self._deadline(timeout_s), self._straggler_s)
        finally:  # after Ctrl-C too: the ranks may be anywhere in a step
            if not answers or not all(answer.is_good for answer in answers):
                self._end_team()
        return answers

    def _has_run_out(self, error: AutobatchError) -> bool:
        """Whether the last call ended because the whole time was over, and not because it hung."""
        return isinstance(error, WorkerTimeout) and not self._is_own_limit

    def _ask_first(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """What rank 0 answers. The others take no part."""
        answers = self._ask(method, *args, ranks=1, timeout_s=timeout_s)
        error = cause(answers)
        if error is not None:
            raise error
        return answers[0].value

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        limit_s = self._patience.steps_s(plan, FEWEST_STEPS_WITH_PARTS, budget_s)
        answers = self._ask("time", plan, timeout_s=limit_s, budget_s=budget_s, loader=loader, parts=parts)
        timed = joined_times(answers)
        if timed is not None:
            self._patience.learn_time(timed)
            return timed
        error = cause(answers)
        assert error is not None
        if self._has_run_out(error) or not isinstance(error, WorkerDied):
            raise error
        return Measurement(plan=plan, outcome="crashed", message=str(error))

    def see_evaluation_end(self, limit_s: float) -> None:
        self._ask_first("see_evaluation_end", limit_s, timeout_s=2 * limit_s + self._patience.probe_timeout_s)

    def time_evaluation(self, batch_size: int) -> float:
        limit_s = self._patience.probe_timeout_s
        try:
            return float(self._ask_first("time_evaluation", batch_size, timeout_s=limit_s))
        except WorkerTimeout as hang:
            hang.is_hang = not self._has_run_out(hang)
            raise

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        limit_s = self._patience.steps_s(plan, steps)
        settings: dict[str, Any] = {"lowest": lowest, "highest": highest, "steps": steps, "seed": seed}
        answers = self._ask("sweep_lr", plan, timeout_s=limit_s, **settings)
        sweep = joined_sweep(answers)
        if sweep is not None:
            return sweep
        error = cause(answers)
        assert error is not None
        if isinstance(error, WorkerTimeout) and not self._has_run_out(error):
            raise NoValidResult(f"the range test at batch {plan.effective_batch_size} hung: {error}")
        raise error

    def advance(self, segment: TrainSegment) -> SegmentResult:
        limit_s = None if segment.limit_s is None else segment.limit_s + GRACE_S
        if segment.fresh or (self._team is not None and not self._team.is_whole):
            self._end_team()
        is_fresh = self._team is None
        result = joined_segment(segment, self._ask("advance", segment, timeout_s=limit_s))
        if self._team is not None and self._team.is_whole and self._leaks.is_leaking(self._team.pids):
            self._end_team()  # the next call starts another
        return replace(result, fresh=is_fresh)

    def test_score(self, segment: TrainSegment) -> float | None:
        try:
            score: float | None = self._ask_first("test_score", segment)
        except WorkerDied:  # also if time runs out: the result is valid without it
            return None
        return score

    def forget(self, trial: int, before: int | None = None) -> None:
        if self._spec.checkpoints is not None:
            forget_checkpoints(self._spec.checkpoints, trial, before)
        elif self._team is not None and self._team.is_whole:
            with suppress(WorkerDied):
                self._ask_first("forget", trial, before)

    def close(self) -> None:
        self._end_team()
        if self._server is not None:
            self._server.close()
            self._server = None
        for prober in self._probers:
            prober.close()
        self._threads.shutdown(wait=False)
