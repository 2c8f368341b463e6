"""A process that looks for the largest samples while the fork server imports what steps need.

Only where nothing is timed or trained: elsewhere one more process that reads the data is no gain to speak of.
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
    """Whether one process alone opens the task, in order to look for sizes that fit."""
    return not spec.is_timed and spec.rank_info is None and spec.nproc == 1 and sys.platform.startswith("linux")


def send_scout(spec: RunnerSpec, server: ForkServer) -> tuple[LocalWorker | None, Future[dict[str, WorstCase]] | None]:
    """The process that looks, and what it will say; None for both where the server has ended."""
    scout = LocalWorker(server=server)
    try:
        looking = scout.submit(worst_cases, spec)
    except WorkerDied:  # with its server, just now
        return None, None
    server.load(Libraries(TO_STEP, ()))
    return scout, looking


def opening_after(
    looking: Future[dict[str, WorstCase]],
    process: LocalWorker,
    spec_with: Callable[[dict[str, WorstCase] | None], RunnerSpec],
) -> Future[None]:
    """The opening in `process`, never beside another of the same task, which may write files when it is loaded.

    Args:
        looking: what the scout will say.
        process: where the task is opened then.
        spec_with: what to open then, given what the scout said, or None where it failed.
    """
    opening: Future[None] = Future()

    def opened(done: Future[None]) -> None:
        if (error := done.exception()) is not None:
            opening.set_exception(error)
        else:
            opening.set_result(None)

    def looked(found: Future[dict[str, WorstCase]]) -> None:
        # What is wrong with the task or its data is for the check to tell, which comes next.
        spec = spec_with(None if found.exception() is not None else found.result())
        try:
            process.submit(open_runner, spec, exact=False).add_done_callback(opened)
        except WorkerDied as death:
            opening.set_exception(death)

    looking.add_done_callback(looked)
    return opening
