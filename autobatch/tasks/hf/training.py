"""How a Trainer trains, as the functions of a `Task`: its own methods, on the models and batches of a trial."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.plan import Precision
from ..data import DeviceLoader
from .carried import CarriedTrainer, device_of
from .evaluation import Scored, score
from .given_optimizer import GivenOptimizer

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class OfStep:
    """A micro-batch, with what the Trainer knows of the optimizer step that it is part of.

    Attributes:
        inputs: as the collator made them.
        items: what the losses of all micro-batches are divided by, such as their labels; None where it is not counted.
        count: of the micro-batches.
    """

    inputs: Any
    items: Any
    count: int


class TrainerTask:
    """The functions of the task. They run where the task does, and import transformers with the carried Trainer.

    Args:
        carried: the Trainer.
        precision: of its forward pass.
        scored: what a trial is scored by.
        warm_up: the share of the steps that warm up, in place of a number of them; None for what the arguments say.
        given: the optimizer that the Trainer was handed, as it can be made again; None where the Trainer makes it.
    """

    def __new__(cls, *_: object, **__: object) -> TrainerTask:
        return super().__new__(cls)  # for the reason that CarriedTrainer has one

    def __init__(
        self,
        carried: CarriedTrainer,
        precision: Precision,
        scored: Scored,
        *,
        warm_up: float | None,
        given: GivenOptimizer | None,
    ) -> None:
        self.carried, self.precision, self.scored = carried, precision, scored
        self.warm_up, self.given = warm_up, given

    # -- what is trained ----------------------------------------------------------------------------------------------

    def model(self) -> nn.Module:
        """A new model, with all that `train()` does to one before its first step."""
        model = self.carried.made_model()
        with self.carried.of(model) as trainer:
            _dress(trainer, model)
        if self.precision in _AUTOCAST:
            _cast(model, _AUTOCAST[self.precision])
        return model

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The Trainer's own, or one like that which it was given."""
        if self.given is not None:
            return self.given.made(model, lr)
        with self.carried.of(model) as trainer:
            trainer.args.learning_rate = lr
            if trainer.optimizer_cls_and_kwargs is not None:
                kind, arguments = trainer.optimizer_cls_and_kwargs
                trainer.optimizer_cls_and_kwargs = kind, {**arguments, "lr": lr}
            trainer.create_optimizer()
            made: torch.optim.Optimizer = trainer.optimizer
        return made

    def scheduler(self, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
        """The Trainer's schedule over so many steps."""
        trainer = self.carried.trainer
        if self.warm_up is not None:
            trainer.args.warmup_steps = self.warm_up
        trainer.state.max_steps = total_steps
        trainer.optimizer = optimizer
        try:
            made = trainer.create_scheduler(num_training_steps=total_steps, optimizer=optimizer)
        finally:
            trainer.optimizer = trainer.lr_scheduler = None
        return made

    # -- a step -------------------------------------------------------------------------------------------------------

    def before_step(self, batches: list[Any]) -> Iterator[OfStep]:
        """The micro-batches with what the Trainer counts in all of them."""
        trainer = self.carried.trainer
        samples, items = trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
        return (OfStep(inputs, items, len(batches)) for inputs in samples)

    def training_step(self, model: nn.Module, batch: OfStep, scale: float) -> Tensor:
        """Forward and backward of one micro-batch by the Trainer's `training_step`.

        That divides by what it has to, so of `scale` only the gradient scaler's factor is left.
        """
        factor = scale * batch.count

        def backward(loss: Tensor, **more: Any) -> None:
            (loss if factor == 1 else loss * factor).backward(**more)

        with self.carried.of(model) as trainer, self._as_trainer():
            trainer.current_gradient_accumulation_steps = batch.count
            trainer.accelerator.backward = backward
            try:
                loss: Tensor = trainer.training_step(model, batch.inputs, batch.items)
            finally:
                del trainer.accelerator.backward
        return loss.detach() * batch.count

    def after_step(self, model: nn.Module, step: int) -> None:
        """Count, for who goes by it."""
        self.carried.trainer.state.global_step = step + 1

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The Trainer's `compute_loss` of a batch by itself."""
        with self.carried.of(model) as trainer, self._as_trainer():
            items = trainer._get_num_items_in_batch([batch], device_of(model))
            found: Tensor = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
        return found

    def evaluate(self, model: nn.Module, loader: Iterable[Any]) -> float:
        """The metric that chooses the best model, by the Trainer's `evaluate`."""
        assert isinstance(loader, DeviceLoader)
        with self._as_trainer():
            return score(self.carried, model, self.scored, loader.counted())

    def _as_trainer(self) -> AbstractContextManager[Any]:
        """Without the task's autocast: the model's forward pass has its own, and what is outside of it has none."""
        if self.precision not in _AUTOCAST:
            return nullcontext()
        device = self.carried.trainer.args.device.type
        return torch.autocast(device, enabled=False)

    # -- data ---------------------------------------------------------------------------------------------------------

    def train_data(self) -> Any:
        """The training data."""
        return self._without_unused(self.carried.trainer.train_dataset, "training")

    def val_data(self) -> Any:
        """The data that trials are scored on; where there is none, what memory is measured on in its place."""
        data = self.carried.trainer.eval_dataset
        return self.train_data() if data is None else self._without_unused(data, "evaluation")

    def train_loader(self, batch_size: int, seed: int) -> Any:
        """The Trainer's own loader, in an order that the seed decides."""
        trainer = self.carried.trainer
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = batch_size
        loader = trainer.get_train_dataloader()
        batches: Any = getattr(loader, "batch_sampler", None)
        samplers: tuple[Any, ...] = (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
        for sampler in samplers:
            # Without one it draws from the trial's own generator, which stands elsewhere when a trial is resumed.
            if getattr(sampler, "generator", self) is None:
                sampler.generator = torch.Generator().manual_seed(seed)
        return loader

    def _without_unused(self, data: Any, what: str) -> Any:
        trainer = self.carried.trainer
        if not _is_of_datasets(data):
            return data
        return trainer._remove_unused_columns(data, description=what)

    def collate(self, samples: list[Any]) -> Any:
        """A batch, of the columns that the model takes."""
        return self._collate(samples)

    @functools.cached_property
    def _collate(self) -> Any:
        trainer = self.carried.trainer
        if _is_of_datasets(trainer.train_dataset):
            return trainer.data_collator
        return trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_collate"}


def _is_of_datasets(data: Any) -> bool:
    """Whether it is a `datasets.Dataset`, whose columns can be left out; the package need not be installed."""
    return any((kind.__module__, kind.__name__) == ("datasets.arrow_dataset", "Dataset") for kind in type(data).__mro__)


def _dress(trainer: Any, model: nn.Module) -> None:
    """What `Trainer.train()` does to a model before it trains it (transformers 5.24)."""
    args = trainer.args
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(args, "use_cache"):
        config.use_cache = args.use_cache
    if getattr(args, "use_liger_kernel", False):
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, args.liger_kernel_config)
    if args.activation_checkpointing:
        arguments = dict(args.activation_checkpointing_kwargs or {})
        chosen = {"every_n_layers": arguments.pop("every_n_layers", 1), "offload": arguments.pop("offload", False)}
        enable: Any = getattr(model, "activation_checkpointing_enable", None)
        if enable is not None:
            enable(activation_checkpointing_kwargs=arguments or None, **chosen)
        else:
            old: Any = model.gradient_checkpointing_enable
            old(gradient_checkpointing_kwargs=arguments or None, **chosen)
    if trainer.neftune_noise_alpha is not None:
        from transformers.integrations.neftune import activate_neftune

        activate_neftune(model, trainer.neftune_noise_alpha, trainer.accelerator)
    if trainer.processing_class is not None and hasattr(model, "config"):
        from transformers import PreTrainedTokenizerBase, ProcessorMixin
        from transformers.trainer_utils import align_special_tokens

        if isinstance(trainer.processing_class, (PreTrainedTokenizerBase, ProcessorMixin)):
            align_special_tokens(model, trainer.processing_class)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Have the forward pass run under autocast and answer in float32, as Accelerate prepares a model."""
    from accelerate.utils.operations import convert_to_fp32

    forward: Any = model.forward

    @functools.wraps(forward)
    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_of(model).type, dtype=dtype):
            answer = forward(*args, **kwargs)
        return convert_to_fp32(answer)

    model.forward = cast
