"""A Hugging Face `Trainer`, as it stands before `train()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def _takes(given: object) -> bool:
    return is_a(given, "transformers.trainer", "Trainer")


def _opened(given: Trainer) -> GivenTask:
    from ..hf.task import task_for_trainer  # torch and transformers, which are there where a Trainer is

    task = task_for_trainer(given)
    unscored = None
    if given.eval_dataset is None:
        unscored = (
            f"the {type(given).__name__} has no eval_dataset, and trials are compared by what evaluate() says on it: "
            "pass eval_dataset=. `find_max_batch`, `profile` and `find_lr` do without"
        )
    return GivenTask(name=task.name, task=task, only_measured=unscored)


DOOR = Door(what="a transformers Trainer", takes=_takes, opened=_opened, said_by=_SAID_BY)
