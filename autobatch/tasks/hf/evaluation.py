"""The score of a model as the Trainer's own `evaluate` gives it, on batches that it is handed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from ...core.plan import Direction
from ...errors import SettingError, TaskError
from ..data import Collated
from .carried import CarriedTrainer

# What `evaluate` adds to each answer that is no score.
_ABOUT_THE_RUN = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time", "epoch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a trial is scored by.

    Attributes:
        key: of the metric in what `evaluate` returns.
        prefix: of all of its keys: that of the one dataset among several that the metric is of.
        dataset: the name of that dataset; None where there is one.
        direction: which way is better.
    """

    key: str
    prefix: str = "eval"
    dataset: str | None = None
    direction: Direction = "minimize"


def scored_by(args: Any, eval_dataset: Any, monitor: str | None, direction: Direction | None) -> Scored:
    """What is asked for, or what the TrainingArguments choose the best model by; the loss where neither says.

    Raises:
        SettingError: the direction is no direction.
        TaskError: there are several datasets, and the metric is of none of them.
    """
    named = args.metric_for_best_model if monitor is None else monitor
    key = "eval_loss" if named is None else named if named.startswith("eval_") else f"eval_{named}"
    if direction is None:
        # As TrainingArguments have it, whose own is of their own metric.
        is_more_better = not key.endswith("loss")
        if monitor is None or monitor == args.metric_for_best_model:
            is_more_better = named is not None and bool(args.greater_is_better)
        direction = "maximize" if is_more_better else "minimize"
    elif direction not in get_args(Direction):
        raise SettingError(f"direction is one of {', '.join(get_args(Direction))}; got {direction!r}")
    if not isinstance(eval_dataset, dict):
        return Scored(key=key, direction=direction)
    # Of "news" and "news_long" the longer one is meant by "eval_news_long_loss".
    fits = [name for name in sorted(eval_dataset, key=len, reverse=True) if key.startswith(f"eval_{name}_")]
    if not fits:
        raise TaskError(
            f"eval_dataset holds {', '.join(map(repr, eval_dataset))}, and the score is of one of them: name it in "
            f"TrainingArguments, as in metric_for_best_model='{next(iter(eval_dataset), 'name')}_loss', or by "
            f"monitor=; found {named!r}"
        )
    return Scored(key=key, prefix=f"eval_{fits[0]}", dataset=fits[0], direction=direction)


def score(carried: CarriedTrainer, model: nn.Module, by: Scored, batches: Iterable[Collated]) -> float:
    """The metric over these batches, which are on the model's device.

    Raises:
        TaskError: `evaluate` returns no such metric, with those that it does return.
    """
    with carried.of(model) as trainer:
        loader = _Loader(batches, trainer.accelerator.gradient_state)
        trainer.args.per_device_eval_batch_size = loader.batch_size
        trainer.get_eval_dataloader = lambda *_, **__: loader
        trainer.state.log_history.clear()
        found = trainer.evaluate() if by.prefix == "eval" else trainer.evaluate(metric_key_prefix=by.prefix)
    if by.key in found:
        return float(found[by.key])
    known = ", ".join(name for name in found if not name.endswith(_ABOUT_THE_RUN)) or "nothing"
    remedy = "let compute_metrics return it, or name another by metric_for_best_model in TrainingArguments or monitor="
    if trainer.compute_metrics is None:
        remedy = "pass a compute_metrics that returns it, or leave metric_for_best_model out for the loss"
    raise TaskError(f"evaluate() gives no {by.key!r}, which is to be the score; it gives {known}: {remedy}")


class _Loader:
    """Batches as Accelerate's loader gives them: it says when the last one comes, and how many samples that has.

    `gather_for_metrics` goes by that, so that a short last batch counts by its samples.
    """

    def __init__(self, batches: Iterable[Collated], state: Any) -> None:
        self._batches, self._state = iter(batches), state
        first = next(self._batches, None)
        self._first = [] if first is None else [first]
        self.batch_size = 1 if first is None else first.samples
        self.end_of_dataloader, self.remainder = False, -1

    def __iter__(self) -> Iterator[Any]:
        self._state._add_dataloader(self)
        try:
            held = self._first.pop() if self._first else None
            while held is not None:
                following = next(self._batches, None)
                if following is None:
                    self.end_of_dataloader, self.remainder = True, held.samples % self.batch_size
                yield held.batch
                held = following
        finally:
            self._state._remove_dataloader(self)
