"""The ranks that train one model together, as seen by one of them: what DDP needs, and what it does not do.

DistributedDataParallel averages the gradients. The rest of a trial has to be the same on all ranks too, or one of them
waits for a collective that no other joins: how many steps are timed, when a loss is beyond hope. `lead` and `mean` are
for that. Every rank calls them equally often.
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

# gloo's plain RuntimeErrors when another rank is gone or does not come (torch 2.6 to 2.13; NCCL's errors are
# torch.distributed.DistError). Its messages begin with a place in its own source.
_GLOO_WORDS = ("gloo/transport", "gloo/rendezvous", "Connection closed by peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallel:
    """This process among the ranks that train together.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of ranks.
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
        """The seed for what each rank draws for itself. Rank 0's is that of a single process."""
        return seed if self.is_first else (seed * 1_000_003 + self.rank) % 2**63

    def check(self, model: nn.Module) -> None:
        """Check that `model` can be wrapped.

        Raises:
            TaskError: the model is data-parallel already.
        """
        fsdp = sys.modules.get("torch.distributed.fsdp")  # its import takes seconds, and may not have been needed
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
        """`module`, with backward passes that average the gradients over all ranks. All ranks call this.

        On a CPU a resumed trial equals an uninterrupted one bit for bit. So sums must not depend on how DDP divides the
        gradients into buckets, which changes after the first step. Two numbers have one sum; with more, gloo's ring
        adds them in an order that depends on their place in a bucket.
        """
        wrapper = DistributedDataParallel(module, find_unused_parameters=self.find_unused)
        if self.size > 2 and all(is_processor(parameter.device) for parameter in module.parameters()):
            # As a lambda: DDP checks a hook's annotations, and accepts none that are strings.
            wrapper.register_comm_hook(self.size, lambda size, bucket: _mean_in_order(size, bucket))
        return wrapper

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the backward passes of the wrapped module do not exchange gradients."""
        assert isinstance(module, DistributedDataParallel)
        return module.no_sync()

    def mean(self, value: float) -> float:
        """The mean of the values that the ranks pass, the same to the last bit on all of them."""
        mine = torch.tensor([value], dtype=torch.float64)
        values = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(values, mine)
        return fmean(float(one) for one in values)

    def lead(self, value: T) -> T:
        """The value that rank 0 passes."""
        sent = torch.tensor([int(value)])
        dist.broadcast(sent, src=0)
        return type(value)(sent.item())

    def gather(self, value: object) -> list[Any]:
        """On rank 0, the values that the ranks pass, in their order; an empty list on the others."""
        values: list[Any] = [None] * self.size if self.is_first else []
        dist.gather_object(value, values if self.is_first else None, dst=0)
        return values

    def warnings(self, task: Task) -> tuple[str, ...]:
        """Warnings about parts of `task` that may mean something else with several ranks."""
        warnings = []
        if not task.accumulation:
            warnings.append(
                f"accumulation = False says that the loss couples the samples of a batch; each of the {self.size} "
                "ranks sees only its own batch, unless loss(model, batch) gathers those of the others"
            )
        if task.train_loader is not None:
            warnings.append(
                f"train_loader(batch_size, seed) makes the batches of each of the {self.size} ranks: it must give "
                "each its own share, by RANK and WORLD_SIZE in the environment"
            )
        return tuple(warnings)


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
    """Whether a collective failed because another rank did not join it, rather than because memory ran out here."""
    if is_out_of_memory(error):  # NCCL allocates its buffers on first use
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text_of(error) for word in _GLOO_WORDS)
    )


def device_of_rank(name: str, local_rank: int, local_size: int) -> str:
    """The device of a rank: the GPU with its number, or the CPU, which all share.

    Raises:
        DeviceError: there are fewer GPUs than ranks, or ranks cannot share the device.
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
    """Set the variables that torchrun sets, for task files that read them. All ranks are on this machine."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def meet(rank: int, size: int, file: Path, limit_s: float, backend: Backend) -> None:
    """Make the default process group of this process, together with the others on this machine.

    Args:
        rank, size: the number of this process, and the number of processes.
        file: where they find each other; a new file for each group.
        limit_s: seconds after which a collective fails.
        backend: that of the device whose tensors are exchanged, beside those on the processor.

    Raises:
        RankLost: the others did not arrive.
    """
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # its default looks up the host's name, which may not resolve
    try:
        dist.init_process_group(
            _collectives(backend),
            store=dist.FileStore(str(file), size),  # type: ignore[attr-defined]  # missing in the stubs
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=limit_s),
        )
    except RuntimeError as error:  # torch.distributed raises this class
        raise RankLost(f"rank {rank} did not find the others: {first_line(error)}") from None
    # A task file may do this too, as it does in training; there is one group, and it is this one.
    for module in (dist, distributed_c10d):
        vars(module)["init_process_group"] = lambda *args, **kwargs: None


def _collectives(backend: Backend) -> str:
    """The collective backends for tensors of these devices and of the processor, in torch.distributed's notation."""
    if backend.is_processor or backend.collective is None:
        return f"{PROCESSOR.collective}"
    return f"{PROCESSOR.torch_name}:{PROCESSOR.collective},{backend.torch_name}:{backend.collective}"
