"""A `Task` made of a Hugging Face `Trainer`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ...core.plan import Direction, Precision
from ..data import num_samples
from ..task import Task
from .carried import CarriedTrainer
from .evaluation import scored_by
from .given_optimizer import GivenOptimizer
from .refusals import callbacks_left_out, has_own_loader, refuse
from .training import TrainerTask


def task_for_trainer(trainer: Any, monitor: str | None = None, direction: Direction | None = None) -> Task:
    """A task that trains as this Trainer does, which is only read.

    Args:
        trainer: of `transformers.Trainer` or a class that derives from it.
        monitor: what trials are scored by, of what `evaluate()` returns; None for `metric_for_best_model`.
        direction: which way is better; None for `greater_is_better`, or what the name says.

    Raises:
        TaskError: what about it cannot be trained here, with the remedies.
    """
    refuse(trainer)
    args = trainer.args
    given = _given_optimizer(trainer)
    precision = _precision(trainer)
    scored = scored_by(args, trainer.eval_dataset, monitor, direction)
    warm_up = _warm_up(trainer)
    data = trainer.eval_dataset
    carried = CarriedTrainer(trainer, data if scored.dataset is None else data[scored.dataset])
    made = TrainerTask(carried, precision, scored, warm_up=warm_up, given=given)
    model = trainer.model
    has_own_order = has_own_loader(trainer) or _strategy(args) == "group_by_length"
    return Task(
        model=made.model,
        train_data=None if has_own_order else made.train_data,
        train_loader=made.train_loader if has_own_order else None,
        val_data=made.val_data,
        loss=made.loss,
        evaluate=made.evaluate,
        direction=scored.direction,
        optimizer=made.optimizer,
        scheduler=made.scheduler,
        clip_grad_norm=float(args.max_grad_norm) if args.max_grad_norm and args.max_grad_norm > 0 else None,
        precision=precision,
        compile=bool(args.torch_compile),
        before_step=made.before_step,
        training_step=made.training_step,
        after_step=made.after_step,
        loader=_loader(args),
        collate=made.collate,
        baseline={
            "batch_size": args.per_device_train_batch_size,
            "lr": _rate(trainer, given),
            "accumulation_steps": args.gradient_accumulation_steps,
        },
        name=type(model).__name__,
        remarks=tuple(_remarks(trainer, monitor, warm_up)),
    )


def _given_optimizer(trainer: Any) -> GivenOptimizer | None:
    """The optimizer that it was handed, or is left with by a training; None where it makes its own."""
    optimizer = trainer.optimizer
    if optimizer is None:
        return None
    inner = getattr(optimizer, "optimizer", None)  # of Accelerate's the one inside
    return GivenOptimizer.of(inner if isinstance(inner, torch.optim.Optimizer) else optimizer, trainer.model)


def _rate(trainer: Any, given: GivenOptimizer | None) -> float:
    if given is not None:
        return given.lr
    if trainer.optimizer_cls_and_kwargs is not None:
        return float(trainer.optimizer_cls_and_kwargs[1].get("lr", trainer.args.learning_rate))
    return float(trainer.args.learning_rate)


def _precision(trainer: Any) -> Precision:
    known: dict[str, Precision] = {"bf16": "bf16", "fp16": "fp16"}
    mixed = trainer.accelerator.mixed_precision
    return known.get(mixed, "tf32" if trainer.args.tf32 else "fp32")


def _loader(args: Any) -> dict[str, Any]:
    """What the Trainer gives its DataLoader, without what is void where there are no workers."""
    found: dict[str, Any] = {}
    if args.dataloader_pin_memory and torch.accelerator.is_available():
        found["pin_memory"] = True
    if args.dataloader_num_workers:
        found |= {
            "num_workers": args.dataloader_num_workers,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
    return found


def _warm_up(trainer: Any) -> float | None:
    """The share of the training that a number of warm-up steps is; None where the arguments say a share, or nothing."""
    args = trainer.args
    if args.warmup_steps < 1:
        return None
    total = steps_of(trainer)
    # 1 and above would be read as a number of steps again.
    return None if total is None else min(args.warmup_steps / total, math.nextafter(1.0, 0.0))


def steps_of(trainer: Any) -> int | None:
    """Optimizer steps of the training that the arguments say; None where nobody knows."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    samples = None if isinstance(trainer.train_dataset, IterableDataset) else num_samples(trainer.train_dataset)
    if samples is None:
        return None
    batches = math.ceil(samples / int(args.per_device_train_batch_size))
    steps = math.ceil(batches / int(args.gradient_accumulation_steps))
    return max(1, math.ceil(float(args.num_train_epochs) * steps))


def _remarks(trainer: Any, monitor: str | None, warm_up: float | None) -> list[str]:
    args = trainer.args
    found = []
    if trainer.model_init is None:
        found.append(
            "the Trainer has a model and no model_init: each trial starts from a copy of its weights, so seeds vary "
            "the data order (and dropout) only. For a pre-trained model that is as it should be"
        )
    if monitor is None and args.metric_for_best_model is None and trainer.compute_metrics is not None:
        found.append(
            "the score is eval_loss, since metric_for_best_model is not set: set it in TrainingArguments, with "
            "greater_is_better, or pass monitor= and direction=, for one of what compute_metrics returns"
        )
    if (left_out := callbacks_left_out(trainer)) is not None:
        found.append(left_out)
    if warm_up is not None:
        found.append(
            f"warmup_steps={args.warmup_steps:g} are {warm_up:.1%} of the {steps_of(trainer):,} steps that the "
            "arguments say: that share of each trial warms up. Write it as a share, warmup_steps="
            f"{warm_up:.3g}, so that it holds for the batch size that is found"
        )
    if args.n_gpu > 1:
        found.append(
            f"the Trainer puts its model on {args.n_gpu} GPUs (torch.nn.DataParallel); a trial trains on one, and "
            "batch sizes are of one"
        )
    if has_own_loader(trainer):
        found.append(
            f"{type(trainer).__name__} has a data loader of its own: memory is probed with its first batch, and "
            "not with the longest samples of train_dataset"
        )
    elif (strategy := _strategy(args)) not in ("random", "group_by_length"):
        found.append(f"train_sampling_strategy={strategy!r} is not followed in trials, which draw samples at random")
    return found


def _strategy(args: Any) -> str:
    """How the Trainer orders its samples; by an argument that has come in the course of version 5."""
    said = getattr(args, "train_sampling_strategy", "random")
    return str(getattr(said, "value", said))
