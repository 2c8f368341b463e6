"""Call every part of a task once, on a few samples, and report all problems together.

The check covers what would otherwise fail in the middle of a run: the model, the data, one training step, one
evaluation, the optimizer, the schedule, and other code that sets the learning rate. It does not cover torch.compile and
loader workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import IterableDataset

from ..devices.oom import is_out_of_memory
from ..errors import TaskError
from ..tasks.data import SampleDataset, collate_samples, load_data, seed_everything, to_device
from ..tasks.fixed_seeds import seeds_set, seeds_text
from ..tasks.state import preserve, preserve_generators
from ..tasks.task import Task, accuracy, blame
from ..tasks.task_file import gather
from ..tasks.worst_case import checked_loader_batch
from .carried_state import REMEDY_FOR_LOST, Watched
from .check_data import Findings, check_dataset, warning_of_seeds
from .check_evaluation import check_evaluation
from .check_model import check_model
from .check_optimizer import check_optimizer, made_optimizer
from .check_rates import DRY_RUN_STEPS, scheduled_rates
from .check_step import MOST_SAMPLES, check_any_step
from .left_out import left_out_warning
from .shares import weight_of
from .split_check import split_warnings

# Assumed: no task uses this seed. It distinguishes a seed that was set and restored, as by `fork_rng`, from one that
# stays.
_NOBODYS_SEED = 1_629_113_837
# Processor seconds of one step on that batch above which it is not compared with its halves, as that takes two or three
# such steps. Assumed: the start of a command can take that long.
_LONGEST_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What is said of a task without a problem.

    Attributes:
        warnings: which do not stop it.
        is_pausable: whether a checkpoint keeps all that a training step changes.
    """

    warnings: tuple[str, ...]
    is_pausable: bool = True


def check_task(task: Task, device: torch.device, batch_size: int, load: Callable[[str], Any] | None = None) -> Checked:
    """What there is to say of a task; it has no problem that a batch of a few samples could show.

    The model is made for the check and thrown away. A task without a file may return a live one, which is given back
    unchanged. The random generators are restored.

    Args:
        task: what to check.
        device: where the step runs.
        batch_size: that of the baseline, which the training data must be able to fill.
        load: returns a dataset by the name of its function, if the caller keeps datasets; by default the function is
            called.

    Raises:
        TaskError: a list of all independent problems.
    """
    findings = Findings(task, load or partial(load_data, task))
    with preserve_generators():
        seed_everything(_NOBODYS_SEED)
        train = val = None
        train_samples: list[Any] = []
        if task.train_loader is None:
            train, train_samples = check_dataset(findings, "train_data", at_least=batch_size)
        val, val_samples = check_dataset(findings, "val_data")
        if task.test_data is not None:
            check_dataset(findings, "test_data")
        # A model with a stand-in for data is not trained.
        if train is not None and train is val and not isinstance(train, SampleDataset):
            findings.warnings.append(
                "train_data() and val_data() return the same object: scores are of data trained on"
            )
        with warning_of_seeds(findings, "train_loader" if task.train_loader else "collate", given=0):
            train_batch = _train_batch(findings, train_samples, batch_size)
        with seeds_set() as seeds:
            model = check_model(findings)
        if seeds:
            findings.warnings.append(_of_model(seeds))
        if model is not None:
            with _borrowed(task, model):
                model = model.to(device)
                check_evaluation(findings, model, val_samples, device)
                if task.weight is not None and train_batch is not None:
                    with findings.attempt("weight(batch)"):
                        weight_of(task.weight, train_batch)
                # Before the step, as in training: a task may keep it for its training_step.
                optimizer = made_optimizer(findings, model)
                began = process_time()
                with warning_of_seeds(findings, "a training step"), _warning_of_lost(findings, model):
                    batch = (
                        None
                        if train_batch is None
                        else check_any_step(
                            findings,
                            model,
                            to_device(train_batch, device),
                            lambda: _whole_batch(task, train, batch_size),
                        )
                    )
                if batch is not None and process_time() - began < _LONGEST_STEP_S:
                    findings.warnings += left_out_warning(task, model, batch, device)
                    # `before_step` prepares a loss for a whole step, so halves of a batch cannot be compared.
                    if task.accumulation and task.before_step is None:
                        few = _few(batch_size)
                        findings.warnings += split_warnings(task, model, train_samples, train_batch, few, device)
                if optimizer is not None:
                    check_optimizer(findings, model, optimizer, batch)
            _warn(findings, model, batch_size)
    if findings.problems:
        raise _gathered(findings)
    return Checked((*task.remarks, *findings.warnings), findings.is_pausable)


def _gathered(findings: Findings) -> TaskError:
    task = findings.task
    return gather(task.path.name if task.path else f"the task {task.name!r}", findings.problems)


def check_inference(task: Task, load: Callable[[str], Any]) -> tuple[str, ...]:
    """Warnings about a task whose model only runs forward. It may be frozen, or have no optimizer.

    Args:
        task: what to check.
        load: returns a dataset by the name of its function.

    Raises:
        TaskError: a list of all problems of the training data and the model.
    """
    findings = Findings(task, load)
    with preserve_generators():
        seed_everything(_NOBODYS_SEED)
        if task.train_loader is None:
            check_dataset(findings, "train_data")
        check_model(findings, trains=False)
    if findings.problems:
        raise _gathered(findings)
    return (*task.remarks, *findings.warnings)


def peak_lr_fraction(task: Task, *, total_steps: int = DRY_RUN_STEPS) -> float:
    """The share of the schedule at which the learning rate first peaks, in [0, 1); 0.0 if it is constant or falling.

    The user's scheduler runs over `total_steps` on an optimizer without gradients.

    Raises:
        TaskError: the model, the optimizer or the schedule cannot be made, or the rate is not a usable number.
    """
    if task.scheduler is None:
        return 0.0
    with preserve_generators():
        try:
            model = task.model()
            with _borrowed(task, model):
                model.zero_grad(set_to_none=True)
                optimizer = task.optimizer(model, task.baseline_config()[0].lr)
                _, held_rates = scheduled_rates(task, optimizer, total_steps)
        except TaskError:
            raise
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):  # not the task's fault: the memory probe reports it, with figures
                raise
            raise blame("scheduler(optimizer, total_steps)", error, task.path) from error
    rates = [sum(groups) for groups in held_rates]
    peak = max(rates)
    # Rates within rounding of the peak count as the peak, so that a plateau peaks at its beginning.
    return next(step for step, rate in enumerate(rates) if rate >= peak * (1 - 1e-6)) / total_steps


def _of_model(seeds: dict[str, int | None]) -> str:
    """A warning about a seed in model(). A new seed is set after it, but what model() drew before stays."""
    same = "the initial weights are" if "torch.manual_seed" in seeds else "what it draws from that generator is"
    return (
        f"model() sets a seed itself, {seeds_text(seeds)}: {same} the same under every seed, so a standard "
        "error over seeds leaves them out; dropout, augmentation and the order of the data do follow the seed. "
        "Leave the seed out: autobatch seeds each trial"
    )


@contextmanager
def _warning_of_lost(findings: Findings, model: nn.Module) -> Iterator[None]:
    """A warning about what a step inside changes and no checkpoint can keep, or may change."""
    watched = Watched(findings.task, model, {})
    yield
    lost = watched.lost()
    findings.is_pausable = not lost
    findings.warnings += [_not_paused(told) for told in lost]
    findings.warnings += watched.too_large()


def _not_paused(told: str) -> str:
    return (
        f"{told} changes in training and cannot be kept in a checkpoint, so `tune` pauses no trial: each is trained in "
        f"one go, and so fewer are tried. {REMEDY_FOR_LOST}"
    )


@contextmanager
def _borrowed(task: Task, model: nn.Module) -> Iterator[None]:
    """Give the model back unchanged: it may be the user's live object."""
    if task.path is not None:
        yield
        return
    with preserve(model):
        yield


def _train_batch(findings: Findings, samples: list[Any], batch_size: int) -> Any:
    """A few training samples as one batch; None if there is none."""
    task = findings.task
    if task.train_loader is not None:
        with findings.attempt("train_loader(batch_size, seed)"):
            return checked_loader_batch(task, _few(batch_size))
    elif samples:
        return collate_samples(task, samples[: _few(batch_size)])
    return None


def _few(batch_size: int) -> int:
    """The number of samples of the batch on which the check takes a step."""
    return max(2, min(MOST_SAMPLES, batch_size))


def _whole_batch(task: Task, data: Any, batch_size: int) -> Any:
    """A training batch of the baseline's own size."""
    if task.train_loader is not None:
        return checked_loader_batch(task, batch_size)
    is_stream = isinstance(data, IterableDataset)
    samples = list(islice(data, batch_size)) if is_stream else [data[index] for index in range(batch_size)]
    return collate_samples(task, samples)


def _warn(findings: Findings, model: nn.Module, batch_size: int) -> None:
    task = findings.task
    if batch_size == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        findings.warnings.append(
            "the model has batch norm and the baseline a batch of 1: one sample has no variance, and "
            "torch refuses to normalise a vector by it"
        )
    if task.direction == "minimize" and task.evaluate is None and task.metric is accuracy:
        findings.warnings.append(
            'direction is "minimize" and the metric is the default, accuracy: the worst classifier would win'
        )
