"""A `Task` around a live model: one sample of its input, known or assumed, and the way to another process."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

from ..core.plan import Precision
from ..devices.oom import is_out_of_memory
from ..errors import TaskError, with_class
from .carry import LiveModel, from_bytes, to_bytes, what_stays
from .data import SampleDataset, collate_samples, num_samples, to_device
from .infer import inferred_inputs, inputs_from_data, inputs_given, lazy_layers, required_names
from .later import TaskLater, made_of
from .state import preserve_generators
from .task import DEFAULT_BATCH_SIZE, DEFAULT_LR, Task, adamw, blame


def task_for_model(
    model: nn.Module,
    sample: Any = None,
    data: Any = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] | type[torch.optim.Optimizer] | None = None,
    precision: Precision = "fp32",
) -> tuple[Task, tuple[str, ...]]:
    """A task whose `model()` is this live module, and a sentence for each assumption about it.

    Args:
        model: is returned as it is, not copied: borrow it with `state.preserve`. After `pickle_task` it is a copy.
        sample: ONE sample, as a dataset returns it, without a batch dimension: a tensor, or tensors in a tuple, list or
            dict. A torch `Dataset` or `DataLoader` is taken as `data`.
        data: a Dataset (or anything with a length and an index) or a DataLoader, whose `collate_fn` is used too. The
            sample with the most elements among its first 64 stands for all, and the task's data has its length. If
            neither is passed, the sample is derived from the model.
        loss: (model, batch) -> scalar; by default the `loss` of the model's output, or otherwise the mean of its
            output.
        optimizer: (model, lr) -> Optimizer, or an optimizer's class; by default AdamW.
        precision: of the forward pass.

    Raises:
        TaskError: there is no sample, and none can be derived or assumed; or an argument cannot be used.
    """
    if not isinstance(model, nn.Module):
        raise TaskError(f"model must be a torch.nn.Module; found {type(model).__name__}: a task file goes to load_task")
    if isinstance(sample, (Dataset, DataLoader)):
        if data is not None:
            raise TaskError("sample= and data= are two ways to say one thing; found both")
        sample, data = None, sample
    if sample is not None and data is not None:
        raise TaskError("sample= and data= are two ways to say one thing; found both")
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if data is not None:
        inputs = inputs_from_data(data)
    elif sample is not None:
        inputs = inputs_given(inner, sample)
    else:
        inputs = inferred_inputs(inner)
    assumed = list(inputs.assumed)
    if loss is None:
        required = max(1, len(required_names(inner)))
        loss = output_loss(required)
        assumed.append("the loss is the model's own, or else the mean of its output")
        parts = inputs.sample if isinstance(inputs.sample, (tuple, list)) else ()
        if len(parts) > required:
            assumed.append(f"the first {required} of the sample's {len(parts)} parts are the model's input")
    if optimizer is None:
        assumed.append("the optimizer is AdamW")
    size = None if data is None else num_samples(data.dataset if isinstance(data, DataLoader) else data)
    dataset = SampleDataset(inputs.sample) if size is None else SampleDataset(inputs.sample, size)
    # Data smaller than the default baseline's batch is no fault of a model that declares no baseline.
    is_small = len(dataset) < DEFAULT_BATCH_SIZE
    task = Task(
        model=LiveModel(model),
        train_data=partial(_same, dataset),
        val_data=partial(_same, dataset),
        loss=loss,
        metric=partial(_no_score, loss),
        direction="minimize",
        optimizer=_optimizer_function(optimizer),
        collate=inputs.collate,
        precision=precision,
        baseline={"batch_size": len(dataset), "lr": DEFAULT_LR} if is_small else None,
        name=type(inner).__name__,
    )
    if lazy := lazy_layers(inner):
        task = dataclasses.replace(task, model=LiveModel(_materialised(model, task, lazy)))
        assumed.append(f"{lazy} has the shape that this sample gives it")
    return task, tuple(assumed)


def _materialised(model: nn.Module, task: Task, lazy: str) -> nn.Module:
    """A copy of the model whose layers have their shapes. The user's own still waits for its first batch."""
    assert task.train_data is not None
    held = [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]
    device = held[0].device if held else torch.device("cpu")
    try:
        with preserve_generators(), torch.no_grad():
            copy: nn.Module = from_bytes(to_bytes(model)).to(device)
            modes = [module.training for module in copy.modules()]
            samples = [task.train_data()[0]] * 2
            task.loss(copy.eval(), to_device(collate_samples(task, samples), device))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise TaskError(
            f"{lazy} waits for its first batch, and could not be given one: {with_class(error)}. Pass sample=, one "
            "sample as your dataset gives it, or run the model once on a batch before you pass it"
        ) from error
    for module, training in zip(copy.modules(), modes, strict=True):
        module.training = training
    return copy


def pickle_task(task: Task | TaskLater) -> bytes:
    """The task, its live model and its functions as bytes, also where they are defined in a notebook or a script.

    Of one that is made later, what it is made of.

    Raises:
        TaskError: a part of it cannot be pickled. The message has its place and the reason.
    """
    try:
        data = to_bytes(task)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        fields = (
            {} if isinstance(task, TaskLater) else {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
        )
        parts = {**fields, **(task.parts if isinstance(task, TaskLater) else {})}
        stuck = (what_stays(name, part) for name, part in parts.items())
        place = next((place_of_part for place_of_part in stuck if place_of_part is not None), with_class(error))
        raise TaskError(
            f"the task {task.name!r} cannot be sent to another process, because of {place}. {_remedy(task, place)}"
        ) from error
    return data


def _remedy(task: Task | TaskLater, place: str) -> str:
    if isinstance(task, TaskLater):
        return (
            "Make that where it is first used, and leave it out in a __getstate__ of its object; or pass a file's path"
        )
    if not isinstance(task.model, LiveModel):
        return "Make that inside the function that uses it, or put the task into a file, which each process runs"
    how = "Make that inside the function"
    if place.startswith("model"):
        how = "Leave that out in its module's __getstate__ and make it where it is first used"
    return (
        f"{how}, put the model into a task file, which each process runs, or pass isolate=False to find_max_batch, "
        "which measures in your own process"
    )


def unpickle_task(pickled: bytes) -> Task:
    """The task that `pickle_task` wrote, with its tensors on the host. A live model is made again at each `model()`.

    One that is to be made later is made now.

    Raises:
        TaskError: the bytes hold no task, or it needs something that cannot be imported here.
    """
    try:
        task = from_bytes(pickled)
    except (pickle.UnpicklingError, ImportError, AttributeError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, TaskError):
            raise
        raise blame("unpickling the task", error, None) from error
    if isinstance(task, TaskLater):
        return made_of(task.name, task.make, None)
    if not isinstance(task, Task):
        raise TaskError(f"a pickled task must hold a Task; found {type(task).__name__}")
    return task


def _same(value: Any) -> Any:
    return value


def _optimizer_function(optimizer: Any) -> Callable[[nn.Module, float], torch.optim.Optimizer]:
    if optimizer is None:
        return adamw
    if isinstance(optimizer, torch.optim.Optimizer):
        raise TaskError(
            f"optimizer must be a function (model, lr) or an optimizer's class; found an instance of "
            f"{type(optimizer).__name__}, which is bound to the parameters it was made with"
        )
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        return partial(_of_class, optimizer)
    return optimizer  # type: ignore[no-any-return]  # Task checks it


def _of_class(optimizer: Any, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = optimizer(model.parameters(), lr=lr)
    return made


def _floating(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floating(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _floating(value)


def output_loss(required: int) -> Callable[[nn.Module, Any], Tensor]:
    """The loss of a model without one, whose forward() needs the first `required` parts of a sample."""
    return partial(_output_loss, max(1, required))


def _output_loss(required: int, model: nn.Module, batch: Any) -> Tensor:
    """The loss in the model's output, or the mean over every floating tensor in it, so that the whole graph runs."""
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, (tuple, list)):
        output = model(*batch[:required])
    else:
        output = model(batch)
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.ndim == 0:
        return own
    means = [tensor.mean() for tensor in _floating(output)]
    if not means:
        raise TaskError(f"the model's output ({type(output).__name__}) must hold a floating tensor; pass loss=")
    return torch.stack(means).mean()


def _no_score(loss: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
    """The loss again: a model without a task has no other score, and it is only probed for memory."""
    return loss(model, batch).detach()
