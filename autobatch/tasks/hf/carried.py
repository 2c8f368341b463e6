"""A Trainer on its way to another process, and the whole one that is made of it there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..carry import LiveModel

# What belongs to a process, to a training that is under way or to the model: made anew, or not needed.
_LEFT_OUT = frozenset(
    {
        "accelerator",
        "callback_handler",
        "control",
        "deepspeed",
        "gather_function",
        "hp_search_backend",
        "lr_scheduler",
        "model",
        "model_wrapped",
        "neftune_hook_handle",
        "optimizer",
        "state",
        "_eval_dataloaders",
        "_memory_tracker",
    }
)
# Of the TrainingArguments: what they have found out about the process that they were made in.
_OF_THE_PROCESS = ("_setup_devices", "distributed_state", "deepspeed_plugin")


class CarriedTrainer:
    """What a Trainer says, without its process: pickled in one process, used as a Trainer in another.

    Args:
        given: the user's own. It is read, and left as it is.
        eval_dataset: the data to score on, of what may be several sets.
    """

    def __new__(cls, *_: object) -> CarriedTrainer:
        # A `__new__` of its own, so that nobody writes down what it leads to in search of what a step changes
        # (`object_writer`): that is all of the data.
        return super().__new__(cls)

    def __init__(self, given: Any, eval_dataset: Any) -> None:
        shell = object.__new__(type(given))
        vars(shell).update(vars(given))
        shell._set_signature_columns_if_needed()  # by the model, which does not come along in here
        args = copy.copy(given.args)
        for name in _OF_THE_PROCESS:
            vars(args).pop(name, None)
        args._n_gpu = 1
        self._kind = type(given)
        self._held = {name: value for name, value in vars(shell).items() if name not in _LEFT_OUT}
        self._held |= {"args": args, "eval_dataset": eval_dataset}
        self._model = None if given.model_init is not None else LiveModel(given.model)

    def __reduce__(self) -> tuple[Any, ...]:
        return _carried, (type(self), {name: vars(self)[name] for name in ("_kind", "_held", "_model")})

    def made_model(self) -> nn.Module:
        """A new model, by `model_init`, or with the weights that the given one had."""
        model: nn.Module = self._model() if self._model is not None else self.trainer.call_model_init()
        return model

    @cached_property
    def trainer(self) -> Any:
        """A Trainer of the same class, which has no model, no optimizer and no callbacks."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
        from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState
        from transformers.trainer_utils import TrainerMemoryTracker

        trainer = object.__new__(self._kind)
        vars(trainer).update(self._held)
        # Which device it is on is the runner's to say, and mixed precision the task's: this one is asked for neither.
        is_fresh = not AcceleratorState._shared_state
        accelerator = Accelerator(cpu=True, mixed_precision="no") if is_fresh else Accelerator()
        accelerator._models = [None]  # so that an evaluation does not prepare the model once more
        trainer.accelerator = accelerator
        trainer.gather_function = accelerator.gather_for_metrics
        trainer.args.distributed_state = PartialState()
        trainer.args.deepspeed_plugin = None
        trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = trainer.deepspeed = None
        trainer.hp_search_backend = None
        trainer.control, trainer.state = TrainerControl(), TrainerState()
        trainer.callback_handler = CallbackHandler([DefaultFlowCallback()], None, None, None, None)
        trainer._memory_tracker = TrainerMemoryTracker(True)
        trainer.is_in_train = True  # an evaluation in training keeps the weights' own types
        return trainer

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[Any]:
        """The Trainer while it has this model, on the device where that is; afterwards it keeps nothing of it."""
        trainer = self.trainer
        inner: nn.Module = getattr(model, "_orig_mod", model)  # of a compiled model the one inside
        vars(trainer.args)["_setup_devices"] = device_of(inner)
        trainer.model = trainer.model_wrapped = inner
        try:
            yield trainer
        finally:
            trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None


def device_of(model: nn.Module) -> torch.device:
    """Where a model is."""
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _carried(kind: type[CarriedTrainer], held: dict[str, Any]) -> CarriedTrainer:
    made = kind.__new__(kind)
    vars(made).update(held)
    return made
