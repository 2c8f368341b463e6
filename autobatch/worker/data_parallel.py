"""The ranks that train one model together, as one of them sees the others: what DDP needs, and what it leaves open.

Gradients are averaged by DistributedDataParallel. The rest of a trial has to be the same on all ranks too, or one of
them waits for a collective that no other joins: how many steps are timed, when a loss is beyond hope. For that there
are `lead` and `mean`. Every rank calls them equally often.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

from ..devices.backend import CARDS, PROCESSOR, Backend, is_processor
from ..devices.oom import is_out_of_memory
from ..errors import DeviceError, RankLost, TaskError, first_line, text_of
from ..tasks.task import Task

T = TypeVar("T", bool, int)

# What gloo says in a plain RuntimeError when another rank has gone or does not come (torch 2.6 to 2.13; NCCL's errors
# are torch.distributed.DistError). Its messages begin with the place in its own source.
_GLOO_WORDS = ("gloo/transport", "gloo/rendezvous", "Connection closed by peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallel:
    """This process among those that train together.

    Attributes:
        rank: of this process, from 0.
        size: processes in all.
        find_unused: whether DDP looks for parameters that a step leaves out, which costs a walk through its graph.
    """

    rank: int
    size: int
    find_unused: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which evaluates and writes."""
        return self.rank == 0

    def seed_of_rank(self, seed: int) -> int:
        """The seed of what each rank draws for itself; rank 0's is that of one process."""
        return seed if self.is_first else (seed * 1_000_003 + self.rank) % 2**63

    def check(self, model: nn.Module) -> None:
        """Nothing where `model` can be wrapped.

        Raises:
            TaskError: the model is data-parallel already.
        """
        fsdp = sys.modules.get("torch.distributed.fsdp")  # it takes seconds to import, and maybe nobody has
        kinds: tuple[Any, ...] = (DistributedDataParallel, nn.DataParallel)
        if fsdp is not None:
            kinds += (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
        for inside in model.modules():
            if isinstance(inside, kinds):
                raise TaskError(
                    f"with several processes the model is put into DistributedDataParallel for you; found a "
                    f"{type(inside).__name__} in what model() returned: return the plain module"
                )

    def wrapped(self, module: nn.Module) -> nn.Module:
        """`module`, whose backward passes average the gradients over all ranks. All ranks call it.

        On a CPU a resumed trial equals an uninterrupted one bit for bit, for which sums must not depend on how DDP cuts
        the gradients into buckets: it does so anew after the first step. Two numbers have one sum; of more, gloo's ring
        adds them in an order that depends on where in a bucket they are.
        """
        wrapper = DistributedDataParallel(module, find_unused_parameters=self.find_unused)
        if self.size > 2 and all(is_processor(parameter.device) for parameter in module.parameters()):
            # As a lambda: DDP looks at a hook's annotations, and takes none that are text.
            wrapper.register_comm_hook(self.size, lambda size, bucket: _mean_in_order(size, bucket))
        return wrapper

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the backward passes of what `wrapped` made keep their gradients to themselves."""
        assert isinstance(module, DistributedDataParallel)
        return module.no_sync()

    def mean(self, value: float) -> float:
        """The mean of what the ranks pass, the same to the last bit on all of them."""
        mine = torch.tensor([value], dtype=torch.float64)
        values = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(values, mine)
        return fmean(float(one) for one in values)

    def lead(self, value: T) -> T:
        """What rank 0 passes."""
        told = torch.tensor([int(value)])
        dist.broadcast(told, src=0)
        return type(value)(told.item())

    def gather(self, value: object) -> list[Any]:
        """On rank 0 what each rank passes, in their order; an empty list on the others."""
        values: list[Any] = [None] * self.size if self.is_first else []
        dist.gather_object(value, values if self.is_first else None, dst=0)
        return values

    def warnings(self, task: Task) -> tuple[str, ...]:
        """What `task` may mean otherwise in one process."""
        found = []
        if not task.accumulation:
            found.append(
                f"accumulation = False says that the loss couples the samples of a batch; each of the {self.size} "
                "processes sees its own batch alone, unless loss(model, batch) gathers those of the others"
            )
        if task.train_loader is not None:
            found.append(
                f"train_loader(batch_size, seed) makes the batches of each of the {self.size} processes: it must give "
                "each its own share, by RANK and WORLD_SIZE in the environment"
            )
        return tuple(found)


def _mean_in_order(size: int, bucket: Any) -> torch.futures.Future[Any]:
    """The mean of a bucket of gradients over all ranks, added in their order."""
    mine: torch.Tensor = bucket.buffer()
    parts = [torch.empty_like(mine) for _ in range(size)]
    work = dist.all_gather(parts, mine, async_op=True)
    assert work is not None

    def mean(_: object) -> torch.Tensor:
        torch.sum(torch.stack(parts), dim=0, out=mine)
        return mine.div_(size)

    future: torch.futures.Future[Any] = work.get_future()
    return future.then(mean)


def is_rank_lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank did not join it, and not because this one has no memory."""
    if is_out_of_memory(error):  # NCCL's buffers are allocated when they are first used
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text_of(error) for word in _GLOO_WORDS)
    )


def device_of_rank(name: str, local_rank: int, local_size: int) -> str:
    """The device of a rank: the GPU with its number, or the CPU, which all share.

    Raises:
        DeviceError: there are fewer GPUs than ranks, or the device is one that ranks cannot share.
    """
    wanted = name.strip().lower()
    if wanted == "auto":
        wanted = next((kind for kind, backend in CARDS.items() if backend.count()), PROCESSOR.torch_name)
    if wanted == PROCESSOR.torch_name:
        return wanted
    if wanted not in CARDS:
        raise DeviceError(
            f"{local_size} processes train on a GPU each, --device {' or '.join(CARDS)}, or share the processor, "
            f"--device {PROCESSOR.torch_name}; found {name!r}"
        )
    present = CARDS[wanted].count()
    if present < local_size:
        instead = f"--nproc {present}, or --device cpu" if present else "--device cpu"
        raise DeviceError(
            f"{local_size} processes need {local_size} GPUs, one each; this machine shows {present}: take {instead}"
        )
    return f"{wanted}:{local_rank}"


def tell_environment(rank: int, size: int, port: int) -> None:
    """Set the variables that torchrun sets, for whatever in the task file reads them; all ranks are on this machine."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def meet(rank: int, size: int, file: Path, limit_s: float, backend: Backend) -> None:
    """Make the default process group of this process one with the others; they are on this machine.

    Args:
        rank, size: of this process, and how many there are.
        file: where they find each other; a new one for each group.
        limit_s: seconds for each collective, after which it fails.
        backend: of the device whose tensors are to travel, beside those on the processor.

    Raises:
        RankLost: the others did not come.
    """
    if sys.platform.startswith("linux"):
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # by itself it looks up the host's name, which may lead nowhere
    try:
        dist.init_process_group(
            _collectives(backend),
            store=dist.FileStore(str(file), size),  # type: ignore[attr-defined]  # the stubs leave it out
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=limit_s),
        )
    except RuntimeError as error:  # torch.distributed's errors are of this class
        raise RankLost(f"rank {rank} did not find the others: {first_line(error)}") from None
    # A task file may do this too, as it does in training; there is one group, and it is this one.
    for module in (dist, distributed_c10d):
        vars(module)["init_process_group"] = lambda *args, **kwargs: None


def _collectives(backend: Backend) -> str:
    """What carries tensors of these devices and of the processor, as torch.distributed writes it."""
    if backend.is_processor or backend.collective is None:
        return f"{PROCESSOR.collective}"
    return f"{PROCESSOR.torch_name}:{PROCESSOR.collective},{backend.torch_name}:{backend.collective}"
