"""The processes of one team of ranks: they start together, are called together, and end together."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import AutobatchError, RankLost, WorkerDied, WorkerTimeout
from .processes.fork_server import ForkServer
from .processes.local import LocalWorker
from .ranks.agreement import RankInfo, Rendezvous
from .ranks.answers import Answer
from .served import RunnerSpec, call, open_runner


class Team:
    """The worker processes of a team, each a rank in the process group that they make.

    Args:
        spec: what each rank opens. The team adds the rank and the rendezvous.
        server: forks them; None to start a new Python for each.
        environment, log: of new Pythons; a server has its own.
        exact: whether they count memory to the page.
        collective_s: seconds that a collective may take.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        server: ForkServer | None,
        environment: Mapping[str, str],
        log: Path | None,
        *,
        exact: bool,
        collective_s: float,
    ) -> None:
        size = spec.nproc
        self._folder = Path(tempfile.mkdtemp(prefix="autobatch-"))
        rendezvous = Rendezvous(file=self._folder / "ranks", port=_free_port(), limit_s=collective_s)
        self._is_prepared = False
        self._workers = [LocalWorker(server=server, environment=environment, log=log) for _ in range(size)]
        self._opening: list[Future[Any]] | None = [
            self._submit(
                rank,
                open_runner,
                replace(
                    spec,
                    rank_info=RankInfo.on_one_machine(rank, size),
                    rendezvous=rendezvous,
                ),
                exact=exact,
            )
            for rank in range(size)
        ]

    def _submit(self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return self._workers[rank].submit(function, *args, **kwargs)
        except WorkerDied as death:
            failed: Future[Any] = Future()
            failed.set_exception(death)
            return failed

    @property
    def pids(self) -> list[int]:
        """The process numbers of the ranks, in their order."""
        return [worker.pid for worker in self._workers]

    @property
    def is_whole(self) -> bool:
        """Whether every rank can still take a call."""
        return all(worker.alive for worker in self._workers)

    def opened(self, deadline: float | None, straggler_s: float) -> list[Answer]:
        """The results of opening the task on each rank, waited for once."""
        if self._opening is None:
            return []
        opening, self._opening = self._opening, None
        return _answers(opening, deadline, straggler_s)

    def prepared(self, deadline: float | None, wait_s: float) -> list[Answer]:
        """The results of loading the data on each rank, waited for once."""
        if self._is_prepared:
            return []
        self._is_prepared = True
        return self.ask(len(self._workers), "prepare", (), {}, deadline, wait_s)

    def ask(
        self,
        ranks: int,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        deadline: float | None,
        wait_s: float,
    ) -> list[Answer]:
        """The answers of the first `ranks` ranks, one for each, in their order."""
        calls = [self._submit(rank, call, method, tuple(args), dict(kwargs)) for rank in range(ranks)]
        return _answers(calls, deadline, wait_s)

    def close(self) -> None:
        """End all of its processes."""
        for worker in self._workers:
            worker.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(calls: Sequence[Future[Any]], deadline: float | None, straggler_s: float) -> list[Answer]:
    """The answer of each call, or an error for one that did not answer in time."""
    limit, is_straggling = deadline, False
    waiting = set(calls)
    while waiting:
        left_s = None if limit is None else max(0.0, limit - time.monotonic())
        done, waiting = wait(waiting, timeout=left_s, return_when=FIRST_COMPLETED)
        if not done:
            break
        failed = any(not answer_of(future).is_good for future in done)
        if not is_straggling and (failed or calls[0] in done):
            is_straggling = True
            soon = time.monotonic() + straggler_s
            limit = soon if limit is None else min(limit, soon)
    late = (
        RankLost(f"no answer within {straggler_s:.0f} s of another rank's; its process was ended")
        if is_straggling
        else WorkerTimeout("no answer in the time there was; its process was ended")
    )
    return [Answer(error=late, is_late=True) if future in waiting else answer_of(future) for future in calls]


def answer_of(future: Future[Any]) -> Answer:
    """The answer of a call that is done."""
    error = future.exception()
    if error is None:
        return Answer(value=future.result())
    if isinstance(error, AutobatchError):
        return Answer(error=error)
    raise error
