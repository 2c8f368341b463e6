"""A command that torchrun started on every rank: which one answers, and which commands refuse."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AutobatchError, RankLost, SettingError
from .exits import exit_code


@contextmanager
def on_each_rank() -> Iterator[bool]:
    """Whether this process is the one that answers: rank 0 of those that torchrun started, connected meanwhile.

    What all of them raise is told by rank 0; where a rank is lost, by each that is left.
    """
    from ..engines.ranks.agreement import started_by_torchrun

    if not started_by_torchrun(os.environ):
        yield True
        return
    from ..engines.ranks.exchange import ranks_of_torchrun, wait_for_all

    with ranks_of_torchrun() as rank:
        try:
            yield rank == 0
        except AutobatchError as error:
            # When the first rank fails, torchrun ends the others: each gives its message and exit code all the same.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if isinstance(error, RankLost):
                raise
            wait_for_all()
            if rank == 0:
                raise
            sys.exit(exit_code(error))


def refuse_torchrun(command: str) -> None:
    from ..engines.ranks.agreement import started_by_torchrun

    if started_by_torchrun(os.environ):
        raise SettingError(
            f"{command} starts its own processes (tune, profile: --nproc N); it was started by torchrun as one of "
            f"{os.environ['WORLD_SIZE']}. Start it without torchrun; max-batch is what runs under it"
        )
