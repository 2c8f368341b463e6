"""The scout: a process that looks for the largest samples while the fork server imports what steps need.

Only used if nothing is timed or trained: otherwise one more process that reads the data gains too little.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future

from ..core.facts import WorstCase
from ..errors import WorkerDied
from ..tasks.libraries import Libraries
from .processes.fork_server import ForkServer
from .processes.local import LocalWorker
from .served import TO_STEP, RunnerSpec, open_runner, worst_cases


def is_worth_a_scout(spec: RunnerSpec) -> bool:
    """Whether a scout helps: one process alone opens the task, to find the largest batch."""
    return not spec.is_timed and spec.rank_info is None and spec.nproc == 1 and sys.platform.startswith("linux")


def send_scout(spec: RunnerSpec, server: ForkServer) -> tuple[LocalWorker | None, Future[dict[str, WorstCase]] | None]:
    """The scout process and its future result; None for both if the server has ended."""
    scout = LocalWorker(server=server)
    try:
        looking = scout.submit(worst_cases, spec)
    except WorkerDied:  # its server has just ended
        return None, None
    server.load(Libraries(TO_STEP, ()))
    return scout, looking


def opening_after(
    looking: Future[dict[str, WorstCase]],
    process: LocalWorker,
    spec_with: Callable[[dict[str, WorstCase] | None], RunnerSpec],
) -> Future[None]:
    """The opening in `process`, never at the same time as another of the same task, which may write files on loading.

    Args:
        looking: the scout's future result.
        process: the process that opens the task afterwards.
        spec_with: makes the spec to open from the scout's result, or from None if the scout failed.
    """
    opening: Future[None] = Future()

    def opened(done: Future[None]) -> None:
        if (error := done.exception()) is not None:
            opening.set_exception(error)
        else:
            opening.set_result(None)

    def looked(scanned: Future[dict[str, WorstCase]]) -> None:
        # The check, which comes next, reports what is wrong with the task or its data.
        spec = spec_with(None if scanned.exception() is not None else scanned.result())
        try:
            process.submit(open_runner, spec, exact=False).add_done_callback(opened)
        except WorkerDied as death:
            opening.set_exception(death)

    looking.add_done_callback(looked)
    return opening
