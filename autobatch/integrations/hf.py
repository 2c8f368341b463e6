"""What `tune` found, as Hugging Face's `Trainer` takes it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from ..reports.report import Report

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


def training_arguments(report: Report, args: TrainingArguments) -> TrainingArguments:
    """New `TrainingArguments` with the batch size, accumulation steps and learning rate of a report.

    All else is as in `args`, which stay as they are. Warm-up that is a number of steps is scaled with the number of
    steps in an epoch, unless `max_steps` says how many steps there are; warm-up that is a share of them needs nothing.

    Args:
        report: of `autobatch.tune`.
        args: what the Trainer that was tuned was made with.
    """
    new: Any = copy.copy(args)
    plan = report.config.plan
    before = args.per_device_train_batch_size * args.gradient_accumulation_steps
    new.per_device_train_batch_size = plan.batch_size
    new.gradient_accumulation_steps = plan.accumulation_steps
    new.learning_rate = report.config.lr
    if args.warmup_steps >= 1 and args.max_steps <= 0:
        new.warmup_steps = max(1, round(args.warmup_steps * before / (plan.batch_size * plan.accumulation_steps)))
    return new


def apply(report: Report, trainer: Trainer) -> None:
    """Have a Trainer train by a report from its next `train()` on.

    Its `args` are new ones (`training_arguments`); an optimizer that it was handed steps at the rate that was found,
    its groups in the ratio that they had.

    Args:
        report: of `autobatch.tune`.
        trainer: the one that was tuned, or one like it.
    """
    trainer.args = training_arguments(report, trainer.args)
    trainer._train_batch_size = trainer.args.train_batch_size  # what its loader goes by; it is read off once, when made
    if trainer.optimizer_cls_and_kwargs is not None:
        kind, arguments = trainer.optimizer_cls_and_kwargs
        trainer.optimizer_cls_and_kwargs = kind, {**arguments, "lr": report.config.lr}
    if trainer.optimizer is not None:
        groups = trainer.optimizer.param_groups
        first = groups[0].get("initial_lr", groups[0]["lr"])
        for group in groups:
            group["lr"] = group.pop("initial_lr", group["lr"]) * report.config.lr / first
