"""The default loss and metric of a task: the cross-entropy of its labels, and their accuracy.

Both ignore the same labels, those of `IGNORED`. So neither is a mean over samples: `labels_counted` and
`right_and_counted` give the numbers that they are means over, by which batches are weighted.

A batch is a pair (x, y), or a mapping of the model's arguments, as transformers' collate functions make them. The
model's output is a tensor of class scores, or an object with `logits` and, if it computes its own loss, `loss`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import TaskError
from .label_shapes import label_problem

# Cited: the default `ignore_index` of torch's cross_entropy, and the value with which transformers' collate functions
# pad labels.
IGNORED = -100

# A model's own loss and ours count as the same if they differ by less than this share. Assumed: ten times the rounding
# of a mean in float32. The loss of the next label differs more from that of the same one, unless all scores are equal.
_SAME_LOSS = 1e-4

# For each model that has computed a loss of (B, T) labels: whether it is that of the next label.
_predicts_next: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

# For each model: the keys of the last mapping, and those with which it is called. So a step need not read the signature
# again.
_taken: WeakKeyDictionary[nn.Module, tuple[frozenset[Any], tuple[str, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A model's output for a batch.

    Attributes:
        output: as the model returned it.
        scores: of shape (B, classes, ...); None if there are none.
        labels: the labels to compare the scores with; None if there are none.
        loss: the model's own; None if it computes none.
    """

    output: Any
    scores: Tensor | None
    labels: Tensor | None
    loss: Tensor | None


def cross_entropy_loss(model: nn.Module, batch: Any) -> Tensor:
    """The mean cross-entropy over the labels of a batch, or the loss that the model computes from them itself.

    Labels of -100 are ignored. A batch without any other has a loss of zero.

    Raises:
        TaskError: the batch is neither a pair nor a mapping, the model returns neither class scores nor a loss, or the
        labels do not fit the scores.
    """
    answer = _answer(model, batch, "loss")
    if answer.loss is not None:
        return _zero_of_nothing(answer.loss, answer.labels, is_of_next=_is_of_next(model, answer) is True)
    scores, labels = _scores(answer, "loss"), answer.labels
    if (problem := label_problem(scores, labels, "loss")) is not None:
        raise TaskError(problem)
    assert labels is not None
    return _zero_of_nothing(nn.functional.cross_entropy(scores, labels), labels, is_of_next=False)


def labels_counted(model: nn.Module, batch: Any) -> float | None:
    """How many labels `cross_entropy_loss` of this batch is a mean over; None if it is a mean over samples.

    If the model computes its own loss, `cross_entropy_loss` must have been called before: its value shows which labels
    it is of.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if _is_pair(batch) else None
    if not isinstance(labels, Tensor):
        return None
    if not _are_classes(labels):
        return float(labels.numel())
    return float(((labels[:, 1:] if _predicts_next.get(model, False) else labels) != IGNORED).sum())


def accuracy(model: nn.Module, batch: Any) -> Tensor:
    """The share of right classes of each sample, shape (B,), in [0, 1]; the metric of a task that defines none.

    The labels are classes, or one probability per class in the shape of the scores. Those of -100 are ignored, and a
    sample without any other has a score of nan. The score of several batches is a mean over labels.

    Raises:
        TaskError: the batch is neither a pair nor a mapping with labels, the model returns no class scores, or it is
        not clear which score belongs to which label.
    """
    right, counted = right_and_counted(model, batch)
    return right / counted


def right_and_counted(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """How many labels of each sample the model has right, and how many count; both of shape (B,)."""
    answer = _answer(model, batch, "metric")
    scores, labels = _scores(answer, "metric"), answer.labels
    if not isinstance(labels, Tensor):
        raise TaskError(
            "the default metric needs the classes that are right, `labels` in the batch; define metric(model, batch)"
        )
    if answer.loss is not None:
        _require_classes(answer, scores, labels)
        is_of_next = _is_of_next(model, answer)
        if is_of_next is None:
            raise TaskError(
                "the default metric cannot tell whether the model's scores are of the same label or of the next one: "
                "the loss it computes is the cross-entropy of neither; define metric(model, batch)"
            )
        if is_of_next:
            scores, labels = scores[:, :, :-1], labels[:, 1:]
    if (problem := label_problem(scores, labels, "metric")) is not None:  # torch would compare each with all others
        raise TaskError(problem)
    if labels.shape == scores.shape:
        labels = labels.argmax(dim=1)
    best = scores.argmax(dim=1)
    counted = labels != IGNORED
    right = (best == labels) & counted
    return tuple(part.reshape(len(part), -1).sum(dim=1).float() for part in (right, counted))  # type: ignore[return-value]


def _are_classes(labels: Tensor | None) -> bool:
    return isinstance(labels, Tensor) and not labels.is_floating_point()


def _zero_of_nothing(mean: Tensor, labels: Tensor | None, *, is_of_next: bool) -> Tensor:
    """The mean, or zero if no label counts: torch's is nan then, although its gradients are zero."""
    if not _are_classes(labels):
        return mean
    assert labels is not None
    # Without looking at the values, which would wait for all work queued on a GPU, and which vmap does not allow.
    counted = (labels[:, 1:] if is_of_next else labels) != IGNORED
    return torch.where(counted.any(), mean, 0.0)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def _answer(model: nn.Module, batch: Any, used_by: str) -> _Answer:
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
        output = model(**_arguments(model, batch, used_by))
    elif _is_pair(batch):
        x, labels = batch
        output = model(x)
    else:
        raise _unknown_batch(batch, used_by)
    if isinstance(output, Tensor):
        return _Answer(output=output, scores=output, labels=labels, loss=None)
    loss, scores = _part(output, "loss"), _part(output, "logits")
    if isinstance(batch, Mapping) and isinstance(output, tuple) and loss is None and scores is None:
        loss, scores = _first_two(output)
    is_sequence = scores is not None and scores.ndim == 3 and getattr(labels, "shape", None) == scores.shape[:2]
    if scores is not None and is_sequence:  # in transformers the classes of a token come last
        scores = scores.transpose(1, 2)
    return _Answer(output=output, scores=scores, labels=labels, loss=loss)


def _arguments(model: nn.Module, batch: Mapping[Any, Any], used_by: str) -> dict[str, Any]:
    """The arguments from a mapping for the model: all, or all but `labels` if it computes no loss from them."""
    inner = getattr(model, "_orig_mod", model)  # the model inside a compiled one
    if isinstance(inner, DistributedDataParallel):  # its own forward takes anything
        inner = getattr(inner.module, "_orig_mod", inner.module)
    parts = frozenset(batch)
    known, taken = _taken.get(inner, (None, ()))
    if known != parts:
        taken = _names_taken(inner, batch, used_by)
        _taken[inner] = (parts, taken)
    return {name: batch[name] for name in taken}


def _names_taken(model: nn.Module, batch: Mapping[Any, Any], used_by: str) -> tuple[str, ...]:
    signature = inspect.signature(model.forward)
    arguments = dict(batch)
    takes_all = any(known.kind is inspect.Parameter.VAR_KEYWORD for known in signature.parameters.values())
    if "labels" not in signature.parameters and not takes_all:
        arguments.pop("labels", None)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise _unknown_batch(batch, used_by, f", and the model cannot be called with them ({error})") from None
    return tuple(arguments)


def _unknown_batch(batch: Any, used_by: str, why: str = "") -> TaskError:
    sized = isinstance(batch, (tuple, list, dict))
    kind = f"{type(batch).__name__} of {len(batch)}" if sized else type(batch).__name__
    return TaskError(
        f"the default {used_by} needs batches that are a pair (x, y); found a {kind}{why}: let the dataset give "
        f"(x, y), or a mapping of the model's arguments and `labels`, or define {used_by}(model, batch)"
    )


def _part(output: Any, name: str) -> Tensor | None:
    value = getattr(output, name, None)
    if value is None and isinstance(output, Mapping):
        value = output.get(name)
    return value if isinstance(value, Tensor) else None


def _first_two(output: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The loss and the scores of a transformers model that returns tuples (`return_dict=False`)."""
    tensors = [part if isinstance(part, Tensor) else None for part in (*output, None, None)[:2]]
    if tensors[0] is not None and tensors[0].ndim == 0:
        return tensors[0], tensors[1]
    return None, tensors[0]


def _scores(answer: _Answer, used_by: str) -> Tensor:
    if answer.scores is not None and answer.scores.ndim >= 2:
        return answer.scores
    output = f"{type(answer.output).__name__} without logits"
    if answer.scores is not None:
        output = f"shape {tuple(answer.scores.shape)}"
    elif isinstance(answer.output, (tuple, list)) or answer.output is None:
        output = type(answer.output).__name__
    raise TaskError(
        f"the default {used_by} needs model(x) to be class scores of shape (B, classes, ...), or to have them as its "
        f"`logits`; found {output}: define {used_by}(model, batch)"
    )


def _require_classes(answer: _Answer, scores: Tensor, labels: Tensor) -> None:
    """Check that the labels from which a model computed its own loss are classes of its scores.

    Raises:
        TaskError: they are values to approximate, several classes at once, or of another shape.
    """
    if labels.is_floating_point():
        fits = labels.shape == scores.shape
        if fits and _is_same(answer.loss, nn.functional.cross_entropy(scores.detach().float(), labels.float())):
            return
    elif labels.shape == scores.shape[:1] + scores.shape[2:]:
        return
    raise TaskError(
        "the default metric is the share of right classes, and needs one class for each score of the model; found "
        f"labels of {str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)} for scores of "
        f'{tuple(scores.shape)}: define metric(model, batch), with direction = "minimize" where less is better'
    )


def _is_same(loss: Tensor | None, other: Tensor) -> bool:
    assert loss is not None
    return bool((loss - other).abs() <= _SAME_LOSS * other.abs().clamp(min=1.0))


@torch.no_grad()
def _is_of_next(model: nn.Module, answer: _Answer) -> bool | None:
    """Whether the model's own loss is that of each label given the tokens before it, as in a causal language model.

    Its value shows it, if that is the cross-entropy of either; otherwise transformers' name for the output does. None
    if neither does.
    """
    scores, labels, loss = answer.scores, answer.labels, answer.loss
    if scores is None or labels is None or loss is None or scores.ndim != 3 or labels.is_floating_point():
        return False
    if labels.shape != (scores.shape[0], scores.shape[2]) or scores.is_meta:
        return False
    if model in _predicts_next:
        return _predicts_next[model]
    same, following = (_mean(scores, labels), _mean(scores[:, :, :-1], labels[:, 1:]))
    matches = (_is_same(loss, same), _is_same(loss, following))
    if matches == (True, True) or not bool(torch.isfinite(loss)):
        return (
            "CausalLM" in type(answer.output).__name__
        )  # all scores are equal, or there is no label: a later batch will show it
    if matches == (False, False):
        named = type(answer.output).__name__
        known = {"CausalLM": True, "Seq2SeqLM": False, "MaskedLM": False, "TokenClassifier": False}
        is_next_label = next((is_next for name, is_next in known.items() if name in named), None)
    else:
        is_next_label = matches[1]
    if is_next_label is not None:
        _predicts_next[model] = is_next_label
    return is_next_label


def _mean(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy, in float32, one sample at a time: all at once would take as much memory as the scores."""
    total = scores.new_zeros((), dtype=torch.float32)
    for sample, of_sample in zip(scores, labels, strict=True):
        total += nn.functional.cross_entropy(sample.T.float(), of_sample, reduction="sum")
    return total / (labels != IGNORED).sum()
