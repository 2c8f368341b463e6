"""Everything that is the user's: `Task`, its defaults, and `load_task`, which makes one from a file.

A `Task` holds functions and settings, never a model or data: those are made by calling them, in the process that needs
them. What can be known without calling anything is checked here; `check.py` calls the functions and checks the rest.
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

# Assumed: the batch size most tutorials use and the rate AdamW is documented with. It stands in for a baseline that the
# task does not declare, and is called "default" wherever it is shown.
DEFAULT_BATCH_SIZE = 32
DEFAULT_LR = 1e-3

# A task in a file is called after the file, unless it has a name other than this one.
DEFAULT_NAME = "task"


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW over all parameters at the rate `lr`, otherwise torch's defaults; for a task that defines no optimizer."""
    return torch.optim.AdamW(model.parameters(), lr=lr)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is trained, on what data, judged how: the user's half.

    Attributes:
        model: () -> nn.Module, freshly initialised at each call.
        train_data: () -> Dataset, map-style or iterable. Required unless `train_loader` is given.
        val_data: () -> Dataset.
        test_data: () -> Dataset, scored once for the winner and the baseline.
        loss: (model, batch) -> scalar mean over the batch.
        weight: (batch) -> how many things `loss` is a mean over, where those are not samples: tokens, pairs.
        metric: (model, batch) -> scores of shape (B,), or a mean of shape (), over what `loss` is a mean over.
        evaluate: (model, loader) -> float; replaces `metric` where a mean of per-sample scores will not do.
        direction: "maximize" or "minimize".
        optimizer: (model, lr) -> Optimizer; its parameter groups scale from `lr`.
        scheduler: (optimizer, total_steps) -> an object whose step() is called once per optimizer step.
        clip_grad_norm: largest norm of the gradient; None for no clipping.
        precision: "fp32", "tf32", "bf16" or "fp16".
        channels_last: whether images lie in memory with their channels side by side, the model's weights too.
        compile: whether the model goes through torch.compile.
        accumulation: False for a loss that couples the samples of a batch, which must not be split then.
        before_step: (batches) -> batches, handed all micro-batches of an optimizer step before the first is trained on.
            What it returns, as many, is trained on in their place: so a loss can know what the others hold.
            `mode="inference"` hands it batches as they come.
            `mode="inference"` hands the loss batches as they come.
        after_step: (model, step) -> None, called after each optimizer step.
        training_step: (model, batch, scale): forward and backward of one micro-batch, the loss times `scale`.
            Under autocast, as `precision` says; in fp16 `scale` holds the gradient scaler's factor too.
        loader: DataLoader arguments, apart from those that autobatch sets.
        collate: (samples) -> batch, of any structure: a batch has as many samples as were handed to it, whatever the
            shapes in it say. What holds tensors in another object moves to the device by its `.to(device)`.
        train_loader: (batch_size, seed) -> an iterable of batches, in place of `train_data`.
        sample_size: (sample) -> a number that grows with the memory a sample needs, for variable-length data.
        baseline: what the user trains with today: "batch_size", "lr" and, optionally, "accumulation_steps".
        name: for titles and folders.
        path: the file that workers reload the task from; None for a task that lives in this process only.
        remarks: sentences that are told with what the check warns of, from whoever made the task of something else.

    Raises:
        TaskError: listing every field that cannot be used.
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
        """What the user trains with today, and True; or batch 32 at a rate of 1e-3 (assumed), and False."""
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

    The file is run under a module name of its own (see `run_file`), which other processes can import too.

    Raises:
        TaskError: there is no such file, it cannot be run, or what it defines is no task; lists every problem.
    """
    file = existing_file(Path(path))
    refuse_training_in(file)
    module = run_file(file)
    # What the file holds, read without asking it: a module's own `__getattr__` answers to any name.
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
        # As it is stored: what a proxy answers is not asked for.
        whose = value.__module__ if type(value) is FunctionType else getattr_static(value, "__module__", None)
        if is_a(whose, str) and whose == module.__name__:
            yield name
