"""What a user's Trainer says of how a model is trained, as plain data, and what of it trials do without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...core.plan import Direction, Precision
from ...errors import TaskError

_PRECISIONS: dict[str, Precision] = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}
# Callbacks that only watch, write or end a training: a trial needs none of them. By the names of their classes.
_WATCH = {
    "BasePredictionWriter",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "ThroughputMonitor",
    "Timer",
}
# What autobatch does in their place.
_OURS = {"BatchSizeFinder", "LearningRateFinder", "Tune"}
_MODES: dict[str, Direction] = {"min": "minimize", "max": "maximize"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a callback goes by: the class of the callback, the metric, and which way is better."""

    callback: str
    monitor: str
    direction: Direction | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """A Trainer's settings, as far as they change what one optimizer step or one evaluation is.

    Attributes:
        precision, accumulation_steps: of a step.
        clip_val, clip_algorithm: of its gradient; None for no clipping, and "norm" or "value".
        max_epochs, max_steps: the length of the whole training, which a trial stands for; None where there is none.
        limit_val_batches: batches of an evaluation, or a share of them.
        watched: what its callbacks go by, the one that keeps the best checkpoint first.
        remarks: a sentence for each thing that trials do without.
    """

    precision: Precision = "fp32"
    accumulation_steps: int = 1
    clip_val: float | None = None
    clip_algorithm: str = "norm"
    max_epochs: int | None = None
    max_steps: int | None = None
    limit_val_batches: int | float = 1.0
    watched: tuple[Watched, ...] = ()
    remarks: tuple[str, ...] = ()


def settings_of(trainer: Any) -> TrainerSettings:
    """What a Trainer says.

    Raises:
        TaskError: it says what trials cannot do, with what to do about it.
    """
    problems = []
    said = str(trainer.precision)
    if said not in _PRECISIONS:
        problems.append(
            f"precision={said!r} is not one that trials can be run in: use one of "
            f"{', '.join(map(repr, _PRECISIONS))} for tuning"
        )
    if trainer.fast_dev_run:
        problems.append("fast_dev_run runs single batches to find bugs: leave it out for tuning")
    if trainer.overfit_batches:
        problems.append("overfit_batches trains and scores on the same few batches: leave it out for tuning")
    strategy = type(trainer.strategy).__name__
    is_ddp = "DDP" in strategy
    if strategy != "SingleDeviceStrategy" and not is_ddp:
        problems.append(
            f"its strategy, {strategy}, shards or moves the model in a way that trials do not repeat: pass a Trainer "
            "with strategy='auto' and devices=1 (for several GPUs: nproc=)"
        )
    if problems:
        raise TaskError("the Trainer cannot be tuned for: " + "; ".join(problems))
    remarks = []
    if is_ddp or trainer.world_size > 1:
        remarks.append(
            f"the Trainer's {strategy} of {trainer.world_size} processes is left out: trials train in one process, or "
            "in as many as nproc= says"
        )
    algorithm = getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm) or "norm"
    clip_val = trainer.gradient_clip_val
    return TrainerSettings(
        precision=_PRECISIONS[said],
        accumulation_steps=trainer.accumulate_grad_batches,
        clip_val=float(clip_val) if clip_val else None,
        clip_algorithm=str(algorithm),
        max_epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None,
        max_steps=trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None,
        limit_val_batches=trainer.limit_val_batches,
        watched=watched_by(trainer.callbacks),
        remarks=(*remarks, *remarks_on_callbacks(trainer.callbacks)),
    )


def watched_by(callbacks: Iterable[Any]) -> tuple[Watched, ...]:
    """What callbacks go by: first those that keep the best checkpoint, then those that stop early."""
    found: list[tuple[int, Watched]] = []
    for callback in callbacks:
        names = [kind.__name__ for kind in type(callback).__mro__]
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and ("ModelCheckpoint" in names or "EarlyStopping" in names):
            direction = _MODES.get(str(getattr(callback, "mode", None)))
            told = Watched(callback=names[0], monitor=monitor, direction=direction)
            found.append((0 if "ModelCheckpoint" in names else 1, told))
    return tuple(one for _, one in sorted(found, key=lambda pair: pair[0]))


def remarks_on_callbacks(callbacks: Iterable[Any]) -> list[str]:
    """A sentence on the callbacks that may act in training, and are not run in trials."""
    left_out = []
    for callback in callbacks:
        names = {kind.__name__ for kind in type(callback).__mro__}
        if not names & (_WATCH | _OURS):
            left_out.append(type(callback).__name__)
    if not left_out:
        return []
    return [
        f"callbacks are not run in trials: {', '.join(left_out)} may change what training comes to, and is left out "
        "of every trial alike"
    ]
