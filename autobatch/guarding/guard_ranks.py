"""What the ranks of a DistributedDataParallel model exchange if a batch may run out of memory on any of them.

No rank waits for one that dropped out. While micro-batches run, nothing is exchanged: calls of the wrapper go straight
to the module inside, so it starts none of its own exchanges. Then every rank, after any outcome, reports it in one
small sum. The following steps are done by all ranks or by none; their memory was allocated before, where it may be
refused.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import AutobatchError, SettingError
from ..tasks.data import to_device

# Smaller tensors travel in one buffer per type, and larger ones as they are. Cited: the size from which torch's
# DistributedDataParallel sends its first bucket (`_DEFAULT_FIRST_BUCKET_BYTES`, 1 MiB).
_PACKED_BELOW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Memory ran out with `size` samples at a time. Only the error's text is kept: its traceback holds tensors.

    Attributes:
        size: samples of the micro-batch.
        message: the first line of the error, or which rank it was.
        here: whether it was in this process.
    """

    size: int
    message: str
    here: bool = True


@final
class Alone:
    """A process that shares its gradients with no other."""

    def check(self) -> None:
        """There is nothing to check."""

    def apart(self) -> AbstractContextManager[None]:
        """A context that changes nothing."""
        return nullcontext()

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def agree(self, refused: Refused | None) -> Refused | None:
        """The outcome of this process."""
        return refused

    def tell_failure(self) -> None:
        """There is no rank to tell."""

    def share(self) -> None:
        """There is no rank to share with."""


@final
class Ranks:
    """This rank among those of a DistributedDataParallel model: all halve together and end with the same gradients."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model, self._group = model, model.process_group
        self._rank, self._count = dist.get_rank(self._group), dist.get_world_size(self._group)
        # Those that the wrapper chose when it was made: the list is the same on every rank.
        self._parameters = [
            parameter
            for name, parameter in model.module.named_parameters()
            if parameter.requires_grad and name not in model.parameters_to_ignore
        ]
        # Three numbers: 1 + the rank that failed; the size at which memory ran out; 1 + the rank where that was one
        # sample. Then, for each parameter, whether it has a gradient.
        self._report = torch.zeros(3 + len(self._parameters), dtype=torch.int64, device=model.device)
        self._exists = [False] * len(self._parameters)
        self._gradients, self._buffers = _Parcel([]), _Parcel([])
        self._inside = self._call_inside  # one object for all calls: torch.compile would compile again for another

    def check(self) -> None:
        """Check that the wrapper is used in a supported way.

        Raises:
            SettingError: inside `model.join()`, whose exchanges for ranks without data differ from those made here.
        """
        if self._model._join_config.enable:
            raise SettingError(
                "oom_safe does not work inside `model.join()`: ranks that ran out of data would answer other exchanges "
                "than it makes. Give every rank equally many batches; they may differ in length"
            )

    def _call_inside(self, *args: Any, **kwargs: Any) -> Any:
        if self._model.device_ids:  # the wrapper would move the arguments
            args, kwargs = to_device((args, kwargs), self._model.device)
        return self._model.module(*args, **kwargs)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A context in which calls of the wrapper exchange nothing.

        Its `no_sync()` is not enough: rebuilding buckets and a static graph's first backward pass exchange even then.
        """
        self._model.forward = self._inside  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._model.forward

    def prepare(self) -> None:
        """Allocate the memory that `share` needs.

        Raises:
            SettingError: a gradient is sparse.
        """
        gradients = []
        for index, parameter in enumerate(self._parameters):
            self._exists[index] = parameter.grad is not None
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # unused here, but another rank may have used it
            if parameter.grad.is_sparse:
                raise SettingError("oom_safe shares no sparse gradients between ranks: build the embedding dense")
            gradients.append(parameter.grad)
        self._gradients = _Parcel(gradients)
        if self._model.broadcast_buffers:
            ignored = self._model.parameters_to_ignore
            buffers = [buffer for name, buffer in self._model.module.named_buffers() if name not in ignored]
            self._buffers = _Parcel(buffers)

    def agree(self, refused: Refused | None) -> Refused | None:
        """None if memory sufficed on every rank; else the largest size at which it ran out, 1 if one sample did not
        fit.

        Raises:
            AutobatchError: another rank failed in another way.
        """
        size = refused.size if refused else 0
        failed, size, unfit = self._exchange(size=size, unfit=self._rank + 1 if size == 1 else 0)
        if failed:
            raise AutobatchError(
                f"rank {failed - 1} failed in its own part of the batch, with the error that it raised; this is rank "
                f"{self._rank}, whose gradients are as they were before the batch"
            )
        if unfit and not (refused and refused.size == 1):
            return Refused(size=1, message=f"on rank {unfit - 1}", here=False)
        if refused:
            return dataclasses.replace(refused, size=1 if unfit else size)
        return Refused(size=size, message="on another rank", here=False) if size else None

    def tell_failure(self) -> None:
        """Tell the other ranks that this one raises an error."""
        self._exchange(failed=self._rank + 1)

    def _exchange(self, *, failed: int = 0, size: int = 0, unfit: int = 0) -> tuple[int, int, int]:
        """The largest of the ranks' reports, for each of the three numbers."""
        self._report.copy_(torch.tensor([failed, size, unfit, *map(int, self._exists)]))
        dist.all_reduce(self._report, op=dist.ReduceOp.MAX, group=self._group)
        failed, size, unfit, *exists = self._report.tolist()
        self._exists = list(map(bool, exists))
        if failed or size:  # the gradients are those of a failed attempt
            self._gradients, self._buffers = _Parcel([]), _Parcel([])
        return failed, size, unfit

    @torch.no_grad()
    def share(self) -> None:
        """Make the gradients their means over the ranks, and the buffers those of rank 0.

        The wrapper sends buffers before the next forward pass instead, with the same effect. A parameter without a
        gradient on any rank has none afterwards.
        """
        first = dist.get_global_rank(self._group, 0)
        self._gradients.divide(self._count)  # before the sum, like the wrapper: fp16 sums may overflow
        self._gradients.exchange(lambda tensor: dist.all_reduce(tensor, group=self._group, async_op=True))
        self._buffers.exchange(lambda tensor: dist.broadcast(tensor, first, group=self._group, async_op=True))
        self._gradients, self._buffers = _Parcel([]), _Parcel([])
        for parameter, exists in zip(self._parameters, self._exists, strict=True):
            if not exists:
                parameter.grad = None


def ranks_of(model: nn.Module) -> Alone | Ranks:
    """The ranks with which a checked model shares its gradients."""
    wrapper = next(_of_type(model, DistributedDataParallel), None)
    return Ranks(wrapper) if wrapper else Alone()


def check_wrapping(model: nn.Module) -> None:
    """Check that ranks exchange gradients and buffers only.

    Raises:
        SettingError: parameters are sharded, or wrapped in an unsupported way.
    """
    # Their modules take long to import. If they were not imported, there are no such objects.
    fsdp, dtensor = (sys.modules.get(f"torch.distributed.{name}") for name in ("fsdp", "tensor"))
    sharded = fsdp and next(_of_type(model, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)), None)
    if sharded or (dtensor and any(isinstance(parameter, dtensor.DTensor) for parameter in model.parameters())):
        raise SettingError(
            "the model's parameters are sharded over ranks (FSDP, DTensor), which exchange them within the forward and "
            "backward pass: a rank that ran out of memory would leave the others waiting. oom_safe works in one "
            "process, and with DistributedDataParallel"
        )
    wrappers = list(_of_type(model, DistributedDataParallel))
    if len(wrappers) > 1:
        raise SettingError(
            f"a model is wrapped in DistributedDataParallel once, as a whole; found {len(wrappers)} in it"
        )
    if wrappers and wrappers[0].mixed_precision is not None:
        raise SettingError(
            "DistributedDataParallel(mixed_precision=...) casts gradients in an exchange that is not used here: use "
            "torch.autocast in the loss"
        )


def check_layers(model: nn.Module) -> None:
    """Check that no layer waits for other ranks.

    Raises:
        SettingError: a batch norm does.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm) and module.training:
            raise SettingError(
                "SyncBatchNorm in training mode exchanges statistics within the forward pass: a rank that ran out of "
                "memory would leave the others waiting. Use BatchNorm or GroupNorm"
            )


def _of_type(model: nn.Module, kind: type[Any] | tuple[type[Any], ...]) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, kind))


@final
class _Parcel:
    """Tensors that travel together: small or scattered ones in one buffer per type, large ones as they are."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self._sent: list[Tensor] = []
        for tensor in tensors:
            if tensor.nbytes >= _PACKED_BELOW_BYTES and tensor.is_contiguous():
                self._sent.append(tensor)
            else:
                small.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        self._packs = [(members, torch.cat([member.flatten() for member in members])) for members in small.values()]
        self._sent.extend(pack for _, pack in self._packs)

    def divide(self, by: int) -> None:
        for tensor in self._sent:
            tensor.div_(by)

    def exchange(self, start: Callable[[Tensor], Any]) -> None:
        """Exchange the values in place.

        Args:
            start: begins the exchange of one tensor, and returns an object to wait for.
        """
        for work in [start(tensor) for tensor in self._sent]:
            work.wait()
        for members, pack in self._packs:
            parts = pack.split([member.numel() for member in members])
            for member, part in zip(members, parts, strict=True):
                member.copy_(part.view(member.shape))
