"""Commands that torchrun starts on every rank: which rank answers, and which commands refuse."""

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
    """Whether this process answers: outside torchrun it does, and under torchrun only rank 0 does.

    The ranks are connected inside the block. Rank 0 reports an error that all ranks raise; if a rank is lost, every
    remaining rank reports it.
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
            # torchrun ends the other ranks when the first fails; each still prints its message and exits with its code.
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
            f"{command} starts its own processes (tune, profile: --nproc N), but torchrun started it as one of "
            f"{os.environ['WORLD_SIZE']}. Start it without torchrun; only max-batch runs under torchrun"
        )
