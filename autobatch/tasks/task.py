"""The user's part: `Task`, its defaults, and `load_task`, which makes one from a file.

A `Task` holds functions and settings, never a model or data: these are made by calling the functions, in the process
that needs them. What can be checked without calling anything is checked here; `worker/check.py` calls the functions and
checks the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import getattr_static
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.plan import Config, Direction, Plan, Precision
from ..errors import TaskError
from .defaults import accuracy as accuracy
from .defaults import cross_entropy_loss as cross_entropy_loss
from .lightning.at_import import refuse_training_in
from .lightning.library import imported_roots
from .script_hint import command_hint
from .shown import is_a
from .task_file import blame as blame
from .task_file import existing_file, gather, run_file
from .task_rules import FILE_NAMES, REQUIRED, missing, misspellings, value_problems

# Assumed: the batch size of most tutorials and the learning rate in AdamW's documentation. They take the place of a
# baseline that the task does not declare, and are shown as "default" everywhere.
DEFAULT_BATCH_SIZE = 32
DEFAULT_LR = 1e-3

# A task in a file has the name of the file, unless its name differs from this one.
DEFAULT_NAME = "task"


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW over all parameters at the rate `lr`, otherwise with torch's defaults; for a task that defines no
    optimizer.
    """
    return torch.optim.AdamW(model.parameters(), lr=lr)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is trained, on which data, and how it is judged: the user's part.

    Attributes:
        model: () -> nn.Module, freshly initialised at each call.
        train_data: () -> Dataset, map-style or iterable. Required unless there is a `train_loader`.
        val_data: () -> Dataset.
        test_data: () -> Dataset, scored once for the winner and the baseline.
        loss: (model, batch) -> scalar mean over the batch.
        weight: (batch) -> how many things `loss` is a mean over, if those are not samples: tokens, pairs.
        metric: (model, batch) -> scores of shape (B,), or a mean of shape (), over what `loss` is a mean over.
        evaluate: (model, loader) -> float; replaces `metric` if a mean of per-sample scores is not enough.
        direction: "maximize" or "minimize".
        optimizer: (model, lr) -> Optimizer; its parameter groups scale from `lr`.
        scheduler: (optimizer, total_steps) -> an object whose step() is called once per optimizer step.
        clip_grad_norm: the largest norm of the gradient; None for no clipping.
        precision: "fp32", "tf32", "bf16" or "fp16".
        channels_last: whether images, and the model's weights, are stored with their channels last.
        compile: whether the model goes through torch.compile.
        accumulation: False for a loss that couples the samples of a batch, which must then not be split.
        before_step: (batches) -> batches, called with all micro-batches of an optimizer step before the first one is
            trained on. It returns as many, which replace them. So a loss can know what the other micro-batches hold.
            With `mode="inference"` it is not called.
        after_step: (model, step) -> None, called after each optimizer step.
        training_step: (model, batch, scale): forward and backward of one micro-batch, with the loss times `scale`. It
            runs under autocast if `precision` says so; in fp16, `scale` includes the gradient scaler's factor.
        loader: DataLoader arguments, except those that autobatch sets.
        collate: (samples) -> batch, of any structure. A batch has as many samples as were passed, whatever its shapes.
            An object that holds tensors is moved to the device by its `.to(device)`.
        train_loader: (batch_size, seed) -> an iterable of batches, in place of `train_data`.
        sample_size: (sample) -> a number that grows with the memory of a sample, for variable-length data.
        baseline: the user's present configuration: "batch_size", "lr" and, optionally, "accumulation_steps".
        name: for titles and folders.
        path: the file from which workers load the task; None for a task that exists in this process only.
        remarks: sentences to report with the warnings of the check, from code that made the task from something else.

    Raises:
        TaskError: a list of every field that cannot be used.
    """

    model: Callable[[], nn.Module]
    val_data: Callable[[], Any]
    train_data: Callable[[], Any] | None = None
    test_data: Callable[[], Any] | None = None
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy_loss
    weight: Callable[[Any], Any] | None = None
    metric: Callable[[nn.Module, Any], Tensor] = accuracy
    evaluate: Callable[[nn.Module, Iterable[Any]], float] | None = None
    direction: Direction = "maximize"
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] = adamw
    scheduler: Callable[[torch.optim.Optimizer, int], Any] | None = None
    clip_grad_norm: float | None = None
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    accumulation: bool = True
    before_step: Callable[[list[Any]], Iterable[Any]] | None = None
    after_step: Callable[[nn.Module, int], None] | None = None
    training_step: Callable[[nn.Module, Any, float], Any] | None = None
    loader: Mapping[str, Any] = field(default_factory=dict)
    collate: Callable[[list[Any]], Any] | None = None
    train_loader: Callable[[int, int], Iterable[Any]] | None = None
    sample_size: Callable[[Any], float] | None = None
    baseline: Mapping[str, Any] | None = None
    name: str = DEFAULT_NAME
    path: Path | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = {known.name: getattr(self, known.name) for known in dataclasses.fields(self)}
        problems = [
            *missing(values, [name for name in REQUIRED if values[name] is not None]),
            *value_problems(values),
        ]
        if problems:
            raise gather(f"the task {self.name!r}" if is_a(self.name, str) else "the task", problems)

    def baseline_config(self) -> tuple[Config, bool]:
        """The user's baseline, and True; or batch 32 at a rate of 1e-3 (assumed), and False."""
        given = self.baseline or {"batch_size": DEFAULT_BATCH_SIZE, "lr": DEFAULT_LR}
        plan = Plan(
            batch_size=given["batch_size"],
            accumulation_steps=given.get("accumulation_steps", 1),
            precision=self.precision,
        )
        return Config(plan=plan, lr=float(given["lr"])), self.baseline is not None


def load_task(path: str | Path) -> Task:
    """The task that the Python file at `path` defines: by functions and settings, or as `task = autobatch.Task(...)`.

    Or by a LightningModule and its data (lightning/from_file.py).

    The file runs under its own module name (see `run_file`), which other processes can import too.

    Raises:
        TaskError: there is no such file, it cannot be run, or it defines no valid task. The error lists every problem.
    """
    file = existing_file(Path(path))
    refuse_training_in(file)
    module = run_file(file)
    # The contents of the module, without its `__getattr__`, which may answer to any name.
    if is_a(vars(module).get("task"), Task):
        task: Task = vars(module)["task"]
        name = file.stem if task.name == DEFAULT_NAME else task.name
        return dataclasses.replace(task, path=task.path or file, name=name)
    values = {name: value for name, value in vars(module).items() if name in FILE_NAMES and not is_a(value, ModuleType)}
    if missing(values, ()) and imported_roots():
        from .lightning.from_file import project_in  # which builds a task, and so needs this file

        project = project_in(module, file)
        if project is not None:
            return project
    absent = missing(values, _defined_names(module))
    problems = [*absent, *misspellings(module, values), *value_problems(values)]
    if problems:
        told, hint = gather(file.name, problems), command_hint(file) if absent else None
        raise told if hint is None else TaskError(f"{told}\n{hint}")
    return Task(**({"name": file.stem} | values), path=file)


def _defined_names(module: ModuleType) -> Iterator[str]:
    """Public functions and classes that the file itself defines, in its order."""
    for name, value in vars(module).items():
        if name.startswith("_") or not callable(value):
            continue
        # The stored attribute: a proxy's answer does not count.
        whose = value.__module__ if type(value) is FunctionType else getattr_static(value, "__module__", None)
        if is_a(whose, str) and whose == module.__name__:
            yield name
