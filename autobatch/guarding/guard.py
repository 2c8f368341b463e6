"""A guard for a user's own training loop: a batch that runs out of memory is run again in smaller pieces.

The loss is a mean over samples, so the gradient of a batch of n is the sum of the gradients of its micro-batches, each
times n_i / n. What a failed attempt leaves behind (gradients, buffers, random generators) is undone before the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..devices.oom import is_out_of_memory
from ..errors import DoesNotFit, SettingError, TaskError, first_line, with_class
from ..tasks.data import Batch, to_device
from ..tasks.task import Task, cross_entropy_loss
from ..worker.shares import counted
from ..worker.training import autocast
from .guard_ranks import Refused, check_layers, check_wrapping, ranks_of
from .micro_batches import PASS_SPLIT, BySplit, Cut, Parts, Split, kind_of, ways_to_cut
from .undo import Before

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_CUT_BY = {"rows": "rows", "entries": "the entries of the batch", "lists": "the entries of its lists"}
# Samples are independent if their losses add up to within this share. Assumed: sums in fp32 differ by a hundredth of
# it, and a smaller dependence changes a gradient by as little.
_ADD_UP = 1e-5


def oom_safe(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor] | Task | None = None,
    *,
    accumulation: bool = True,
    micro_batch_size: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    weight: Callable[[Any], Any] | None = None,
    split: Split | None = None,
) -> OomSafeBackward:
    """A function `backward(batch)`: forward and backward of a whole batch, in as many micro-batches as memory needs.

    It returns the mean loss over the batch, a detached scalar, and adds the gradient of that mean to `.grad`, like
    `loss(model, batch).backward()`. When memory runs out, the attempt is undone, the micro-batch halved and the whole
    batch run again. Later batches keep the size that worked. The effective batch size and the gradient stay the same,
    to rounding. The caller takes the optimizer's step:

        backward = autobatch.oom_safe(model, loss)
        for batch in loader:
            mean_loss = backward(batch)
            optimizer.step()
            optimizer.zero_grad()

    A batch is cut into samples, never along time or channels: tensors, in any structure, along dimension 0; lists by
    their entries if they have one for each sample (images of several sizes, the targets of each); batches of
    torch_geometric into graphs. If the shapes do not show what a sample is, the loss is run once on two samples, to see
    whether the part of one depends on the other. If it does, and for any other object, `split` must split the batch;
    without `split` the call is refused.

    Pieces are moved to the model's device one by one: a batch that stays on the host is never on the device as a whole.
    A model on several devices gets its batches as they are.

    Micro-batches differ from the batch if samples interact: batch norm in training mode sees each micro-batch alone
    (there is a warning). Dropout draws another mask, and hooks of tensors run once per micro-batch.

    Under DistributedDataParallel every rank calls it equally often; batches may differ in length. All ranks use the
    same micro-batch size, and end with the plain mean of their gradients, as with the wrapper. The mean is taken after
    the backward pass and not during it, since a rank that runs out of memory halfway would leave the others waiting. So
    the two do not overlap, and the wrapper's communication hooks and `no_sync()` have no effect.

    Args:
        model: in training mode; also compiled, or wrapped in DistributedDataParallel. Everything that the loss trains
            or changes is part of it, or of the loss if that is a module.
        loss: `loss(model, batch)`, a scalar, the mean over the samples of its batch; it uses autocast itself. By
            default the cross-entropy of `model(x)` against `y`, or the loss that a transformers model computes from
            `labels` in the batch. For a `Task`, its loss in its precision, with its weight.
        accumulation: False declares that the loss couples the samples of a batch, which is refused.
        micro_batch_size: the most samples at a time at first; None for whole batches.
        scaler: scales each loss before its backward pass, for fp16. The caller unscales, steps and updates.
        weight: `weight(batch)`, the count of what the loss is a mean over if that is not samples, such as `lambda
            batch: (batch["labels"] != -100).sum()` for tokens. Called with each micro-batch, if there are several. The
            default loss counts its labels itself.
        split: `split(batch, micro_batch_size)`, a list of batches of at most that many samples, with every sample in
            one. For batches whose samples are not obvious, for example with time first, `lambda batch, size:
            batch.split(size, 1)`. With a size of 1 it counts the samples.

    Raises:
        SettingError: an argument cannot be used, the samples are coupled, or the model is sharded. From a call:
        something in the batch acts on the gradients of a part, or waits for other ranks.
        DoesNotFit: from a call: not even one sample at a time fits. The model is as it was.
        TaskError: from a call: the batch has to be split and cannot be, or the loss is not a scalar.
        AutobatchError: from a call: another rank failed.
    """
    return OomSafeBackward(
        model,
        loss,
        accumulation=accumulation,
        micro_batch_size=micro_batch_size,
        scaler=scaler,
        weight=weight,
        split=split,
    )


@final
class OomSafeBackward:
    """The result of `oom_safe`, which explains the arguments.

    Attributes:
        micro_batch_size: the most samples at a time from now on; None while whole batches are run. It may be set.
        accumulation_steps: micro-batches of the last batch; 0 before the first.
        oom_count: how often memory ran out in this process so far.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor] | Task | None = None,
        *,
        accumulation: bool = True,
        micro_batch_size: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
        weight: Callable[[Any], Any] | None = None,
        split: Split | None = None,
    ) -> None:
        _check_size(micro_batch_size)
        _check_model(model)
        if not accumulation or (isinstance(loss, Task) and not loss.accumulation):
            raise SettingError(
                "a loss that couples the samples of a batch (accumulation = False) has another gradient when the batch "
                "is split, so it cannot be guarded: find a batch that fits (autobatch.find_max_batch) and use that"
            )
        if isinstance(loss, Task):
            _check_task(loss, scaler)
            weight = weight or loss.weight
        self.micro_batch_size, self.accumulation_steps, self.oom_count = micro_batch_size, 0, 0
        self._model, self._scaler, self._weight, self._split = model, scaler, weight, split
        self._known: dict[tuple[Any, ...], str] = {}  # how batches of each kind are cut
        self._loss = loss.loss if isinstance(loss, Task) else cross_entropy_loss if loss is None else loss
        self._precision = loss.precision if isinstance(loss, Task) else "fp32"
        self._parts = nn.ModuleList([model, *([self._loss] if isinstance(self._loss, nn.Module) else [])])
        self._ranks = ranks_of(model)
        self._warned_of_norms = False

    def __call__(self, batch: Batch) -> Tensor:
        """The mean loss over the batch. Its gradient has been added to `.grad`; see `oom_safe`."""
        _check_size(self.micro_batch_size)
        self._ranks.check()
        size_before, refusals = self.micro_batch_size, list[Refused]()
        before = Before(self._parts)
        try:
            while isinstance(outcome := self._attempt_on_all_ranks(batch, before), Refused):
                if not outcome.here:
                    before.restore()
                refusals.append(outcome)
                self._halve(refusals)
            self._ranks.share()
            before.keep_gradients()
            self._warn(refusals)  # at the end: if warnings are errors, no rank waits for the one that warns
            return outcome
        except BaseException as error:
            before.put_gradients_back()
            if refusals and not isinstance(error, DoesNotFit):
                error.add_note(
                    f"oom_safe ran this batch {self.micro_batch_size} samples at a time, because memory ran out with "
                    f"{refusals[-1].size} ({refusals[-1].message})"
                )
            self.micro_batch_size = size_before
            raise

    def _attempt_on_all_ranks(self, batch: Batch, before: Before) -> Tensor | Refused:
        try:
            outcome = self._attempt(batch, before)
        except Exception:
            self._ranks.tell_failure()
            raise
        return self._ranks.agree(outcome if isinstance(outcome, Refused) else None) or outcome

    def _attempt(self, batch: Batch, before: Before) -> Tensor | Refused:
        """The mean loss, with the gradients ready to be shared; or that memory was refused."""
        try:
            before.remember()
            with self._ranks.apart():
                mean = self._run(batch, before)
            before.add_gradients()
            self._ranks.prepare()
            return mean
        except Exception as error:
            if not is_out_of_memory(error, limited_cpu=_memory_is_limited()):
                raise
            message = with_class(error)
        # Outside the except block the traceback, and with it the failed attempt's tensors, is gone.
        self.oom_count += 1
        before.restore()
        try:
            with self._ranks.apart():
                count = self._cut(batch, before).count
        except TaskError as error:
            raise TaskError(f"memory ran out ({message}), and this batch cannot be split: {error}") from None
        return Refused(size=max(1, min(count, self.micro_batch_size or count)), message=message)

    def _run(self, batch: Batch, before: Before) -> Tensor:
        _check_what_runs(self._parts)
        pieces = self._pieces(batch, before)
        # If a model shifts its labels, the first forward pass shows how many labels the default loss is a mean over.
        shares = None if self._loss is cross_entropy_loss and self._weight is None else self._shares(pieces)
        parts = []
        for index, (piece, _) in enumerate(pieces):
            if shares is not None and not shares[index]:  # nothing in it counts
                continue
            mean = self._loss_of(piece)
            shares = shares or self._shares(pieces)
            parts.append(self._backward(mean, shares[index]))
        self.accumulation_steps = len(parts)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def _cut(self, batch: Batch, before: Before) -> Cut:
        """The batch with the way to cut it into samples.

        Raises:
            TaskError: no way is certain.
        """
        if self._split is not None:
            return BySplit.of(batch, self._split)
        ways = ways_to_cut(batch)
        kind = kind_of(batch)
        for way in ways:
            if way.is_sure or way.by == self._known.get(kind):
                return way
        if max(way.count for way in ways) <= (self.micro_batch_size or 0):
            return ways[0]  # it is not cut
        refusal = None
        for way in ways:
            answer = self._are_samples(way, before)
            if answer is True:
                self._known[kind] = way.by
                return way
            refusal = answer or refusal
        if refusal:
            known = "before it was clear what a sample is"
            raise TaskError(f"memory ran out with two samples, {known} ({refusal.message}): {PASS_SPLIT}")
        raise TaskError(_unsure(ways))

    def _are_samples(self, way: Parts, before: Before) -> bool | Refused:
        """Whether the pieces of this way are samples to the loss: the part of each does not depend on the other one.

        Batches of two have the same shapes, and so the same dropout and noise: in the loss of two samples, the first
        can be exchanged independently of the second. For time steps, channels, and samples that interact in the loss,
        the sums do not agree. Returns a refusal if memory ran out before that was clear.
        """
        if way.count == 1:
            return True
        norms = [module for module in self._parts.modules() if isinstance(module, _BatchNorm) and module.training]
        one, other = 0, way.count // 2
        refusal = None
        try:
            for norm in norms:  # in training mode they depend on both samples
                norm.training = False
            self._weighed(way.take([one]), before)  # an entry of a list of a batch's fields is no batch
            same_1, same_2, mixed_1, mixed_2 = (
                self._weighed(way.take(pair), before)
                for pair in ((one, one), (other, other), (one, other), (other, one))
            )
        except Exception as error:  # noqa: BLE001  # the loss may raise anything on a piece that is no batch
            if not is_out_of_memory(error, limited_cpu=_memory_is_limited()):
                return False
            refusal = Refused(size=2, message=first_line(error))
        finally:
            for norm in norms:
                norm.training = True
            before.restore()
        if refusal:
            return refusal
        largest = max(abs(value) for value, _ in (same_1, same_2, mixed_1, mixed_2))
        apart = same_1[0] + same_2[0] - mixed_1[0] - mixed_2[0]
        return abs(apart) <= max(_ADD_UP, 2 * same_1[1]) * largest

    def _weighed(self, piece: Batch, before: Before) -> tuple[float, float]:
        """The loss of a batch times what it is a mean over, and the precision of a number of its type."""
        before.put_values_back()
        loss = self._loss_of(piece).detach()
        known = self._counted(piece)
        weight = 1.0 if known is None else known
        return float(loss) * weight if weight else 0.0, torch.finfo(loss.dtype).eps

    def _counted(self, piece: Batch) -> float | None:
        """How many things the loss of a piece is a mean over; None if they are its samples."""
        return counted(self._model, piece, loss=self._loss, weight=self._weight)

    def _pieces(self, batch: Batch, before: Before) -> list[tuple[Batch, int]]:
        """The micro-batches with their numbers of samples."""
        size = self.micro_batch_size
        if size is None or (cut := self._cut(batch, before)).count <= size:
            return [(batch, 1)]
        return cut.pieces(size)

    def _shares(self, pieces: list[tuple[Batch, int]]) -> list[float]:
        """The shares of micro-batches in the mean over the batch."""
        if len(pieces) == 1:
            return [1.0]
        known = [self._counted(piece) for piece, _ in pieces]
        weights = [
            float(samples) if weight is None else weight for (_, samples), weight in zip(pieces, known, strict=True)
        ]
        if not any(weights):  # the loss decides what a mean over nothing is
            weights = [float(samples) for _, samples in pieces]
        return [weight / sum(weights) for weight in weights]

    def _loss_of(self, piece: Batch) -> Tensor:
        devices = list({parameter.device for parameter in self._parts.parameters()}) or [torch.device("cpu")]
        if len(devices) == 1:
            piece = to_device(piece, devices[0])
        with autocast(devices[0], self._precision):
            mean = self._loss(self._model, piece)
        if not isinstance(mean, Tensor) or mean.ndim:
            found = f"a tensor of shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            raise TaskError(f"loss(model, batch) returns a scalar tensor, the mean over the batch; it returned {found}")
        return mean

    def _backward(self, mean: Tensor, share: float) -> Tensor:
        part = mean if share == 1 else mean * share
        (part if self._scaler is None else self._scaler.scale(part)).backward()
        return part.detach()

    def _halve(self, refusals: list[Refused]) -> None:
        last = refusals[-1]
        if last.size == 1:
            tried = ", ".join(str(refused.size) for refused in refusals)
            raise DoesNotFit(
                f"not even one sample at a time fits: forward and backward ran out of memory with {tried} at a time "
                f"({last.message}). Free memory, or use shorter samples, a lower precision, activation checkpointing "
                "or a smaller model"
            )
        self.micro_batch_size = last.size // 2

    def _warn(self, refusals: list[Refused]) -> None:
        mine = [refused for refused in refusals if refused.here]  # with several ranks, only those that ran out warn
        for refused in mine:
            warnings.warn(
                f"memory ran out with {refused.size} samples at a time ({refused.message}); this batch and later ones "
                f"run {refused.size // 2} at a time and accumulate: effective batch and gradient are the same",
                stacklevel=3,
            )
        if mine and not self._warned_of_norms:
            modules = self._model.named_modules()
            norms = [name for name, module in modules if isinstance(module, _BatchNorm) and module.training]
            if norms:
                self._warned_of_norms = True
                warnings.warn(
                    f"batch norm in training mode ({len(norms)} layers, {norms[0]!r} the first) now sees at most "
                    f"{self.micro_batch_size} samples at a time, so the gradient is not exactly that of the whole "
                    "batch. It would be in eval mode, or with GroupNorm or LayerNorm",
                    stacklevel=3,
                )


def _unsure(ways: list[Parts]) -> str:
    """Why none of these ways is taken, and what to do."""
    guesses = " or ".join(f"{_CUT_BY[way.by]} ({way.count}) were samples" for way in ways)
    return (
        f"a batch is split only if it is certain what a sample is. Cut as if {guesses}, two of them do not add up "
        f"to the loss of both. If they are something else (time, channels), {PASS_SPLIT}; if the loss is a mean over "
        "tokens or the like, pass weight=, a function (batch) that counts them; if it couples the samples of a batch, "
        "use a batch that fits (autobatch.find_max_batch)"
    )


def _check_size(micro_batch_size: int | None) -> None:
    is_size = isinstance(micro_batch_size, int) and not isinstance(micro_batch_size, bool) and micro_batch_size >= 1
    if micro_batch_size is not None and not is_size:
        raise SettingError(
            f"micro_batch_size is a whole number, at least 1, or None for whole batches; got {micro_batch_size!r}"
        )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise SettingError(f"model is a torch.nn.Module; got {type(model).__name__}")
    check_wrapping(model)


def _check_task(task: Task, scaler: torch.amp.GradScaler | None) -> None:
    if task.training_step is not None:
        raise SettingError(
            "a task with training_step(model, batch, scale) does its own backward pass, which may do anything with a "
            "batch: pass a loss(model, batch)"
        )
    if task.precision == "fp16" and scaler is None:
        raise SettingError('a task with precision = "fp16" needs scaler=torch.amp.GradScaler(), or gradients vanish')


def _check_what_runs(parts: nn.Module) -> None:
    """Check that neither gradients of a part nor a rank that ran out of memory can do harm.

    Raises:
        SettingError: a hook acts on each gradient when it is accumulated, or a layer waits for other ranks.
    """
    if any(parameter._post_accumulate_grad_hooks for parameter in parts.parameters()):
        raise SettingError(
            "a hook runs when gradients are accumulated (register_post_accumulate_grad_hook, an optimizer in the "
            "backward pass) and would act on those of parts, and of attempts that failed: do it after backward(batch)"
        )
    check_layers(parts)


def _memory_is_limited() -> bool:
    """Whether `ulimit -d` or `-v` is set, so that the vague messages of libraries mean a refusal too."""
    if resource is None:
        return False
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    return any(soft != resource.RLIM_INFINITY for soft in limits)
