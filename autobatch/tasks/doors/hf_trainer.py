"""A Hugging Face `Trainer`, as it stands before `train()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.plan import Direction
from ..libraries import NO_LIBRARIES, libraries_of
from .door import Door, GivenTask, is_a

if TYPE_CHECKING:
    from transformers import Trainer

_SAID_BY = {
    "sample": "the Trainer's train_dataset",
    "data": "the Trainer's train_dataset",
    "loss": "the Trainer's compute_loss, or its compute_loss_func",
    "optimizer": "the `optim` of its TrainingArguments",
    "precision": "the `bf16` or `fp16` of its TrainingArguments",
}

_ALONE = (
    "a Trainer is tuned in one process: what it would exchange with others in a step and in an evaluation is "
    "Accelerate's own. Tune without nproc=, or write a task file, whose processes autobatch joins"
)


def _takes(given: object) -> bool:
    return is_a(given, "transformers.trainer", "Trainer")


def _opened(given: Trainer, *, monitor: str | None = None, direction: Direction | None = None) -> GivenTask:
    import torch  # it and transformers, which are there where a Trainer is

    from ..hf.task import task_for_trainer

    task = task_for_trainer(given, monitor, direction)
    unscored = None
    if given.eval_dataset is None:
        unscored = (
            f"the {type(given).__name__} has no eval_dataset, and trials are compared by what evaluate() says on it: "
            "pass eval_dataset=. `find_max_batch` and `profile` do without"
        )
    used = (given, given.args, given.model, given.data_collator, given.processing_class)
    libraries = NO_LIBRARIES if torch.accelerator.is_available() else libraries_of(used)
    return GivenTask(name=task.name, task=task, only_measured=unscored, alone=_ALONE, libraries=libraries)


DOOR = Door(
    what="a transformers Trainer", takes=_takes, opened=_opened, also=("monitor", "direction"), said_by=_SAID_BY
)
