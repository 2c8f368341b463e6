"""The ranks of torch.distributed, telling each other what they found."""

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

# For all ranks to arrive. Cited: what torch gives NCCL's collectives, torch/distributed/constants.py; ranks that load
# data or weights before they come may be minutes apart.
_JOIN_S = 600.0
# For the answer of the slowest rank, from when the first one had its own; all are probing the same size meanwhile, so
# it is the difference that counts. Cited: torch's default for all other collectives, in the same file.
_ANSWER_S = 1800.0
_LEAVE_S = 10.0  # assumed: what the ranks may be apart in ending their workers when all have failed with the same error


@final
class GlooExchange(Exchange):
    """The exchange of all ranks of the default process group, on a group of its own over the CPU.

    A rank whose process ends closes its connections, and the others know at once. One that hangs is waited for no
    longer than `answer_s`.
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
        except RuntimeError as error:  # torch.distributed's errors are of this class
            raise self._lost(error) from None
        return values

    def _lost(self, error: RuntimeError) -> RankLost:
        return RankLost(
            f"all {self.rank_info.size} ranks must call this and get through it; rank {self.rank_info.rank} waited "
            f"for the others for at most {format_duration(self._limit_s)}, and one had ended, failed or not come: "
            f"{first_line(error)}"
        )

    def close(self) -> None:
        """Leave; whoever still waits for this rank is told so by the closed connections."""
        if self._group is not None:
            group, self._group = self._group, None
            dist.destroy_process_group(group)


def wait_for_all() -> None:
    """Returns when every rank of the default group has called it, or after a few seconds."""
    with suppress(RuntimeError):  # one has ended, or does not come: there is nothing left to wait for
        dist.monitored_barrier(timeout=timedelta(seconds=_LEAVE_S))


@contextmanager
def ranks_of_torchrun() -> Iterator[int]:
    """This process's rank in the default group that torchrun's variables describe, over gloo.

    For a process of ours, which has no other group.

    Raises:
        RankLost: the others did not come.
    """
    limit = timedelta(seconds=_JOIN_S)
    try:
        dist.init_process_group("gloo", timeout=limit)
    except RuntimeError as error:
        told = first_line(error)
        raise RankLost(
            f"all ranks that torchrun starts must come within {format_duration(_JOIN_S)}; one did not: {told}"
        ) from None
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
