"""The largest batch on every rank of a process group: what each rank opens, and how they agree on one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...core.plan import Plan
from ...core.runner import Prober, Runner
from ...devices import host_memory, open_device
from ...devices.backend import CARDS, PROCESSOR, is_processor
from ...errors import SettingError
from .agreement import RankInfo, Ranks, gathered
from .exchange import GlooExchange
from .stand_in import AloneProber, wrapping

Opened = tuple[Runner, Plan, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    """How this rank opens its runner, as arguments of `api`."""

    device: str
    memory_limit: str | int | None
    isolate: bool | None
    rank_info: RankInfo
    assumed: tuple[str, ...]


@contextmanager
def opened_on_all_ranks(
    opened: Callable[..., AbstractContextManager[Opened]],
    model: Any,
    settings: str,
    *,
    device: str,
    memory_limit: str | int | None,
    isolate: bool | None,
) -> Iterator[tuple[Ranks, Plan, tuple[str, ...]]]:
    """A prober of all ranks, the plan to vary, and the assumptions of this rank. Every rank calls this.

    Args:
        opened: gives this rank's runner, the plan and the assumptions, for `device`, `memory_limit`, `isolate` and
            `rank_info`.
        model: a live module in this process, or a task.
        settings: the settings that must be the same on every rank.
        device, memory_limit, isolate: those of this rank, as in `api.find_max_batch`.

    Raises:
        AutobatchError: any error of a rank, raised on all of them and naming it.
        SettingError: the ranks have different settings, or the model is wrapped in a way that cannot be probed.
        RankLost: a rank ended, failed or did not arrive.
    """
    module = model if isinstance(model, nn.Module) else None
    with closing(GlooExchange()) as exchange, ExitStack() as stack:
        kept: list[tuple[Ranks, tuple[str, ...]]] = []

        def open_here() -> Plan:
            here = _settled(exchange.rank_info, module, device, memory_limit, isolate)
            runner, plan, assumed = stack.enter_context(
                opened(
                    device=here.device, memory_limit=here.memory_limit, isolate=here.isolate, rank_info=here.rank_info
                )
            )
            in_process = module is not None and not here.isolate
            prober: Prober = AloneProber(runner, module) if module is not None and in_process else runner
            kept.append((Ranks(exchange, prober, assumed=here.assumed), assumed))
            return plan

        plan = gathered(exchange, f"the largest batch, {settings}", open_here)[exchange.rank_info.rank]
        ((ranks, assumed),) = kept
        yield ranks, plan, assumed


def _settled(
    rank_info: RankInfo, model: nn.Module | None, device: str, memory_limit: str | int | None, isolate: bool | None
) -> _Here:
    """The settings of this rank, with a decision for each that was left open."""
    name = _device_name(rank_info, model, device)
    on_cpu = open_device(name).backend.is_processor
    assumed: list[str] = []
    if model is not None:
        isolate = _isolated(model, isolate, on_cpu=on_cpu, assumed=assumed)
    if on_cpu and memory_limit is None and rank_info.local_size > 1:
        free = host_memory.available()
        if free is not None:
            memory_limit = free.free_bytes // rank_info.local_size
            assumed.append(
                f"each of the {rank_info.local_size} ranks of a machine may use an equal share of what is free"
            )
    return _Here(device=name, memory_limit=memory_limit, isolate=isolate, rank_info=rank_info, assumed=tuple(assumed))


def _device_name(rank_info: RankInfo, model: nn.Module | None, device: str) -> str:
    """The device for "auto": a live model's own unless that is the CPU, otherwise the GPU with this rank's number."""
    if device.strip().lower() != "auto":
        return device
    on = next((parameter.device for parameter in model.parameters()), None) if model is not None else None
    if on is not None and not is_processor(on):
        return str(on)
    if model is not None and wrapping(model) is not None:
        return PROCESSOR.torch_name  # a wrapped model cannot be moved
    # A single visible GPU is this rank's own: the launcher has hidden the others.
    several = next((kind for kind, backend in CARDS.items() if backend.count() > 1), None)
    return "auto" if several is None else f"{several}:{rank_info.local_rank}"


def _isolated(model: nn.Module, isolate: bool | None, *, on_cpu: bool, assumed: list[str]) -> bool:
    """Whether a copy of the model goes to worker processes.

    Raises:
        SettingError: `isolate` is True and cannot be done.
    """
    how = wrapping(model)
    travels = how is None or (how == "ddp" and on_cpu)
    if isolate and not travels:
        raise SettingError(
            f"isolate=True copies the model to another process; this one is "
            f"{'sharded by fully_shard' if how == 'fsdp2' else 'in DistributedDataParallel on a GPU'}, which cannot be "
            "copied: leave isolate out, or put the model into a task file and run `torchrun ... -m autobatch max-batch`"
        )
    isolated = travels and (on_cpu if isolate is None else isolate)
    if how == "ddp" and not isolated and _has_bucket_views(model):
        assumed.append(
            "gradients take their own memory beside DDP's buckets (gradient_as_bucket_view counts only with "
            "isolate=True): somewhat more may fit"
        )
    return isolated


def _has_bucket_views(model: nn.Module) -> bool:
    wrappers = (module for module in model.modules() if isinstance(module, nn.parallel.DistributedDataParallel))
    return any(wrapper.gradient_as_bucket_view for wrapper in wrappers)
