"""Steps of one rank without the others: what they allocate is real, what they communicate is not.

A probe may run out of memory between two collectives, and no other rank would ever know. So in a probe no collective
reaches another rank, whoever calls it: DDP, FSDP, a synchronised batch norm, the user's own loss. There are two ways:

- In a worker process, `stand_in` makes a default process group of the real size and rank, whose collectives return at
  once. A task whose `model()` wraps DDP or calls `fully_shard` builds everything it would build, with buckets and
  shards.
- In the user's process, `without_others` takes the backends out of the existing process groups for a while.

A collective does not leave what the others would have sent: each rank gets its own part back. The purpose is memory,
which does not depend on the values. Not included is the memory of the communication library itself (NCCL's buffers,
outside of torch's allocator). A group that is already connected has allocated it before, and otherwise the headroom is
there for it.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed import fake_pg  # noqa: F401  # registers torch's backend "fake"

from ...core.facts import MemoryLimit, TaskFacts
from ...core.measurement import Measurement
from ...core.plan import Plan
from ...core.runner import Prober
from ...devices.backend import NAMED
from ...errors import SettingError

Wrapping = Literal["ddp", "fsdp2"]

_BACKEND = "autobatch_alone"
_TYPES = tuple(name for name, backend in NAMED.items() if backend.collective is not None)  # whose tensors can be sent
_FSDP_RESET = "2.13"  # the torch version in which FSDPModule.reset_iter_state appeared


# -- a separate process group, in a worker ----------------------------------------------------------------------------


class _StandIn(dist.ProcessGroup):
    """A process group without the others: its collectives return this rank's own part, at once.

    torch's "fake" backend does that already, but its work has no value: DDP, and hooks on its gradients, wait for the
    reduced tensors.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # the stubs know one of its two constructors
        backend = _fake(rank, size)
        for kind in _TYPES:
            self._register_backend(torch.device(kind), dist.ProcessGroup.BackendType.CUSTOM, backend)
        self._set_default_backend(dist.ProcessGroup.BackendType.CUSTOM)

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]  # as C++ calls it
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result(tensors if isinstance(tensors, list) else [tensors])
        return torch._C._distributed_c10d._create_work_from_future(future)  # type: ignore[attr-defined]

    def getBackendName(self) -> str:
        return _BACKEND


def _fake(rank: int, size: int) -> Any:
    """One of torch's backends that communicate nothing, made with the signature of this torch."""
    plugin = dist.Backend._plugins["FAKE"]
    if plugin.extended_api:
        return plugin.creator_fn(SimpleNamespace(group_rank=rank, group_size=size), None)
    return plugin.creator_fn(None, rank, size, None)


def stand_in(rank: int, size: int) -> None:
    """Make this process the only member of a default process group of `size` ranks, as number `rank`.

    The process is a worker's and will be ended as one, so changes in torch.distributed stay. A task file may call
    `init_process_group` and name backends as it does in training; there is one group, and it is this one.
    """
    if _BACKEND.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(_BACKEND, lambda _, rank, size, __: _StandIn(rank, size), devices=[*_TYPES])
    dist.init_process_group(_BACKEND, rank=rank, world_size=size, store=dist.HashStore())  # type: ignore[attr-defined]
    _replace("init_process_group", lambda *args, **kwargs: None)
    _replace("new_group", functools.partial(_new_group, dist.new_group))
    for name in ("broadcast_object_list", "scatter_object_list", "recv_object_list"):
        _replace(name, functools.partial(_nobody_sends, name))


def _replace(name: str, function: Callable[..., Any]) -> None:
    for module in (dist, distributed_c10d):
        setattr(module, name, function)


def _new_group(original: Callable[..., Any], ranks: Any = None, timeout: Any = None, *_: Any, **kwargs: Any) -> Any:
    """A group like the stand-in's, for any backend: a real one would wait for the others."""
    known = {name: kwargs[name] for name in ("use_local_synchronization", "group_desc") if name in kwargs}
    return original(kwargs.pop("ranks", ranks), timeout, **known)


def _nobody_sends(name: str, objects: list[Any], *args: Any, **kwargs: Any) -> None:
    # The sizes come first, from the sender. Without this check they would be whatever was in memory.
    source = kwargs.get("src", args[0] if args and isinstance(args[0], int) else 0)
    if name != "broadcast_object_list" or source != dist.get_rank():
        raise RuntimeError(
            f"{name} waits for an object from another rank, and a probe runs without the others: let each rank make "
            "the object itself, or call it outside of the functions of the task"
        )


# -- the user's process groups, without the others for a while --------------------------------------------------------

# One for each group, for good: a group keeps the first fake of a kind, and checks others against it.
_fakes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def wrapping(model: nn.Module) -> Wrapping | None:
    """How `model` is made data-parallel; None if it is not.

    Raises:
        SettingError: it is wrapped in a way in which a live model cannot be probed.
    """
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return "ddp"
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:  # its import takes seconds, and nobody has needed it
        return None
    if any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()):
        raise SettingError(
            "a live model must be plain, in DistributedDataParallel or sharded by fully_shard; found "
            "FullyShardedDataParallel, whose state cannot be put back after an out-of-memory: put the model into a "
            "task file, and run `torchrun ... -m autobatch max-batch model.py`"
        )
    if any(isinstance(module, fsdp.FSDPModule) for module in model.modules()):
        if not hasattr(fsdp.FSDPModule, "reset_iter_state"):
            raise SettingError(
                f"a live model sharded by fully_shard needs torch {_FSDP_RESET}, which can reset it after an "
                f"out-of-memory; found torch {torch.__version__}: put the model into a task file, and run "
                "`torchrun ... -m autobatch max-batch model.py`"
            )
        return "fsdp2"
    return None


@contextmanager
def without_others(model: nn.Module) -> Iterator[None]:
    """Allow any steps of `model` without a collective that another rank would have to join.

    Afterwards its wrapper and the process groups are as before. The caller restores what the steps change in its
    tensors (`state.preserve`), inside this block. FSDP comes back sharded. A gradient accumulation that the user is in
    the middle of is lost.
    """
    with ExitStack() as stack:
        roots = _fsdp_roots(model)
        for module in _fsdp_modules(model):
            module.reshard()  # so that the sharded parameters are restored
        for root in roots:
            stack.callback(_reset, root)
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(_without_sync(module))
        for group in list(distributed_c10d._world.pg_map):
            stack.enter_context(_cut_off(group))
        yield


@contextmanager
def _cut_off(group: Any) -> Iterator[None]:
    """Make the group's collectives return at once: its holders, also in C++, fetch its backend each time."""
    if group not in _fakes:
        _fakes[group] = _fake(group.rank(), group.size())
    kinds = dist.ProcessGroup.BackendType
    backends = [(device, group._get_backend(device)) for device in group._device_types]
    try:
        for device, backend in backends:
            group._register_backend(device, kinds.CUSTOM, _fakes[group])
            if group._get_backend(device).name() != _fakes[group].name():
                raise SettingError(
                    "a live model can be probed where torch's own backends (gloo, nccl, ...) connect the ranks, which "
                    f"can be set aside meanwhile; found {backend.name()}: put the model into a task file, and run "
                    "`torchrun ... -m autobatch max-batch model.py`"
                )
        yield
    finally:
        for device, backend in backends:
            kind = dist.Backend.backend_type_map.get(backend.name(), kinds.CUSTOM)
            group._register_backend(device, kind, backend)


@contextmanager
def _without_sync(module: DistributedDataParallel) -> Iterator[None]:
    """Put DDP in the state between two synchronised steps: it averages nothing, and leaves its buckets in their order.

    Its first synchronised step would reorder them, for good, and the ranks must agree on that order.
    """
    if module.static_graph and not module._static_graph_delay_allreduce_enqueued:
        # Measured: a first step that is not synchronised is taken for the graph, and later steps average nothing.
        raise SettingError(
            "a live model in DistributedDataParallel(static_graph=True) must have taken its first training step, which "
            "DDP records; this one has not: train a step before, or leave static_graph out to find the batch size"
        )
    names = ("require_backward_grad_sync", "require_forward_param_sync")
    before = {name: getattr(module, name) for name in names}
    module.require_backward_grad_sync = False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _fsdp_modules(model: nn.Module) -> list[Any]:
    if wrapping(model) != "fsdp2":
        return []
    from torch.distributed.fsdp import FSDPModule  # late, as in `wrapping`

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _fsdp_roots(model: nn.Module) -> list[Any]:
    """The sharded modules that are in no other sharded module: each runs its own all-gathers."""
    sharded = _fsdp_modules(model)
    inner = {id(below) for module in sharded for below in module.modules() if below is not module}
    return [module for module in sharded if id(module) not in inner]


def _reset(root: Any) -> None:
    if root._get_fsdp_state()._is_root:  # None before the first forward pass, when there is nothing to reset
        root.reset_iter_state()
    for module in _fsdp_modules(root):
        module.reshard()


@final
class AloneProber(Prober):
    """A prober of a live data-parallel model that runs each probe without the others."""

    def __init__(self, prober: Prober, model: nn.Module) -> None:
        self._prober, self._model = prober, model

    def facts(self) -> TaskFacts:
        with without_others(self._model):
            return self._prober.facts()

    def memory(self) -> MemoryLimit:
        return self._prober.memory()

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        with without_others(self._model):
            return self._prober.probe(plan, final=final)
