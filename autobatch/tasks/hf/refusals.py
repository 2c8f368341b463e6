"""What a Trainer may be that cannot be trained here, with the remedy; and what is left out of one that can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset

from ..task_file import gather

_FILE = "write a task file for it (docs/task-files.md)"
# Classes that put a model on several devices, by their modules: none of them need be installed.
_WRAPPERS = ("torch.nn.parallel.", "torch.distributed.", "deepspeed.", "fairscale.")
# Of transformers' own callbacks those that do nothing to a training: they draw, log and decide when to do either.
_SILENT = ("DefaultFlowCallback", "ProgressCallback", "PrinterCallback", "NotebookProgressCallback")
_EVENTS_IN_TRAINING = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_epoch_end",
    "on_evaluate",
)
# Methods that are the training loop, in place of which trials have one of their own.
_LOOPS = ("_inner_training_loop", "_run_epoch", "_maybe_log_save_evaluate")


def refuse(trainer: Any) -> None:
    """See that it can be trained, as far as shows without running it.

    Raises:
        TaskError: it cannot; with all of the reasons.
    """
    problems = [*_of_the_model(trainer), *_of_the_arguments(trainer), *_of_the_rest(trainer)]
    if problems:
        raise gather(f"the {type(trainer).__name__}", problems)


def _of_the_model(trainer: Any) -> Iterator[str]:
    model: nn.Module = trainer.model
    wrapper = next((kind for kind in type(model).__mro__ if f"{kind.__module__}.".startswith(_WRAPPERS)), None)
    if wrapper is not None:
        yield (
            f"its model is wrapped ({type(model).__name__}), and so is of one group of processes: pass the model that "
            "is inside (`model.module`)"
        )
    elif hasattr(model, "_orig_mod"):
        yield (
            "its model is a compiled one (torch.compile): pass the model that was compiled, with "
            "TrainingArguments(torch_compile=True)"
        )
    if getattr(trainer, "is_deepspeed_enabled", False) or trainer.args.deepspeed:
        yield f"it trains with DeepSpeed, whose engine owns optimizer and step: leave `deepspeed` out, or {_FILE}"
    if getattr(trainer, "is_fsdp_enabled", False) or trainer.args.fsdp:
        yield f"it trains with FSDP, which shards the model over processes: leave `fsdp` out, or {_FILE}"
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None) is not None:
        method = getattr(getattr(model, "quantization_method", None), "value", None) or "some method"
        yield (
            f"its model is quantised ({method}), and such weights cannot be copied to the process that a trial trains "
            f"in: load it without quantization_config, or {_FILE} whose model() loads it"
        )
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        yield (
            f"its model lies on several devices ({', '.join(sorted(devices))}): load it without device_map; a trial "
            "trains on one device"
        )


def _of_the_arguments(trainer: Any) -> Iterator[str]:
    args = trainer.args
    if args.world_size > 1:
        yield (
            f"it is one of {args.world_size} processes: call autobatch in a script that runs as one, and start the "
            "training with what it finds"
        )
    precision = trainer.accelerator.mixed_precision
    if precision not in ("no", "fp16", "bf16"):
        yield f"its mixed precision is {precision}; autobatch trains in fp32, tf32, bf16 and fp16"
    optim = str(getattr(args.optim, "value", args.optim))
    if optim.endswith(("lomo", "_layerwise")):
        yield (
            f"optim={optim!r} steps inside the backward pass, where no micro-batches can be accumulated and no step be "
            "skipped: take another one, such as 'adamw_torch'"
        )
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if kind in ("reduce_lr_on_plateau", "greedy"):
        yield (
            f"lr_scheduler_type={kind!r} goes by the evaluations of one training, and trials are evaluated at other "
            "steps: take one that goes by the step alone, such as 'cosine' or 'linear'"
        )
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        yield (
            f"its schedule (a {type(trainer.lr_scheduler).__name__} in optimizers=) is of one optimizer and one "
            "length, and each trial has its own: set lr_scheduler_type and warmup_steps in TrainingArguments, or "
            "override create_scheduler(num_training_steps, optimizer) in a subclass of Trainer"
        )


def _of_the_rest(trainer: Any) -> Iterator[str]:
    if trainer.train_dataset is None:
        yield "it has no train_dataset: pass one"
    elif isinstance(trainer.train_dataset, IterableDataset) and trainer.args.max_steps <= 0:
        yield "its train_dataset is iterable, and nothing says how long it trains: set max_steps in TrainingArguments"
    own = [name for name in _LOOPS if _defined_by_users(type(trainer), name)]
    if own:
        yield (
            f"it has a training loop of its own ({', '.join(own)}), and trials have one of autobatch's: override "
            f"training_step(), compute_loss() or evaluate() instead, or {_FILE}"
        )


def has_own_loader(trainer: Any) -> bool:
    """Whether a subclass makes the loader, or its order, itself."""
    return any(_defined_by_users(type(trainer), name) for name in ("get_train_dataloader", "_get_train_sampler"))


def _defined_by_users(kind: type, name: str) -> bool:
    """Whether a method is of a class that is not transformers'."""
    owner = next((one for one in kind.__mro__ if name in vars(one)), None)
    return owner is not None and not owner.__module__.startswith("transformers.")


def callbacks_left_out(trainer: Any) -> str | None:
    """Which callbacks would act in the training, and do not in a trial; None where there are none."""
    named = []
    for callback in trainer.callback_handler.callbacks:
        kind = type(callback)
        if kind.__module__.startswith("transformers.integrations.") or kind.__name__ in _SILENT:
            continue
        events = [name for name in _EVENTS_IN_TRAINING if _overrides(kind, name)]
        if events:
            named.append(f"{kind.__name__} ({', '.join(events)})")
    if not named:
        return None
    return (
        f"callbacks do not run in trials: {', '.join(named)}. What one does to the model, the loss or the rate belongs "
        "into compute_loss(), training_step() or create_scheduler() of a subclass of Trainer; one that stops early "
        "does so in the real training"
    )


def _overrides(kind: type, name: str) -> bool:
    owner = next((one for one in kind.__mro__ if name in vars(one)), None)
    return owner is not None and owner.__name__ not in ("TrainerCallback", *_SILENT)
