"""How the ranks of torch.distributed exchange values."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, final

import torch.distributed as dist
from torch.distributed import distributed_c10d

from ...core.units import format_duration
from ...errors import RankLost, first_line
from .agreement import Exchange, RankInfo

# The limit for all ranks to arrive. Cited: torch's default for NCCL's collectives, torch/distributed/constants.py.
# Ranks that load data or weights first may be minutes apart.
_JOIN_S = 600.0
# The limit for the slowest rank's answer, from the moment the first one has its own. All probe the same size, so only
# the difference counts. Cited: torch's default for all other collectives, in the same file.
_ANSWER_S = 1800.0
_LEAVE_S = 10.0  # assumed: how far apart ranks end their workers when all have failed with the same error


@final
class GlooExchange(Exchange):
    """The exchange of all ranks of the default process group, over a separate group on the CPU.

    A rank whose process ends closes its connections, which the others notice at once. One that hangs is waited for at
    most `answer_s`.
    """

    def __init__(self, *, join_s: float | None = None, answer_s: float | None = None) -> None:
        self._join_s = _JOIN_S if join_s is None else join_s
        self._answer_s = _ANSWER_S if answer_s is None else answer_s
        rank, size = dist.get_rank(), dist.get_world_size()
        self.rank_info = RankInfo.on_one_machine(rank, size)
        self._limit_s = self._join_s
        self._group: Any = None
        try:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self._join_s))
            hosts = self.gather(socket.gethostname())
        except RankLost:
            self.close()
            raise
        except RuntimeError as error:
            raise self._lost(error) from None
        here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
        self.rank_info = RankInfo(rank=rank, size=size, local_rank=here.index(rank), local_size=len(here))
        distributed_c10d._set_pg_timeout(timedelta(seconds=self._answer_s), self._group)
        self._limit_s = self._answer_s

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.rank_info.size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:  # torch.distributed raises this class
            raise self._lost(error) from None
        return values

    def _lost(self, error: RuntimeError) -> RankLost:
        return RankLost(
            f"all {self.rank_info.size} ranks must call this and get through it; rank {self.rank_info.rank} waited "
            f"for the others for at most {format_duration(self._limit_s)}, and one had ended, failed or not come: "
            f"{first_line(error)}"
        )

    def close(self) -> None:
        """Leave. Ranks that still wait for this one notice the closed connections."""
        if self._group is not None:
            group, self._group = self._group, None
            dist.destroy_process_group(group)


def wait_for_all() -> None:
    """Return when every rank of the default group has called it, or after a few seconds."""
    with suppress(RuntimeError):  # a rank has ended or does not come, so there is nothing to wait for
        dist.monitored_barrier(timeout=timedelta(seconds=_LEAVE_S))


@contextmanager
def ranks_of_torchrun() -> Iterator[int]:
    """This process's rank in the default group that torchrun's variables describe, over gloo.

    Only for our own processes, which have no other group.

    Raises:
        RankLost: the others did not arrive.
    """
    limit = timedelta(seconds=_JOIN_S)
    try:
        dist.init_process_group("gloo", timeout=limit)
    except RuntimeError as error:
        why = first_line(error)
        raise RankLost(
            f"all ranks that torchrun starts must come within {format_duration(_JOIN_S)}; one did not: {why}"
        ) from None
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
