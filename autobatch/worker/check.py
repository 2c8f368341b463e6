"""Call every part of a task once, on a few samples, and tell everything that is wrong with it together.

What is checked is what would otherwise fail in the middle of a search: the model, the data, one training step, one
evaluation, the optimizer, the schedule and what else sets the rate. Not checked: torch.compile and loader workers.
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
from ..tasks.fixed_seeds import seeds_set, told
from ..tasks.state import preserve, preserve_generators
from ..tasks.task import Task, accuracy, blame
from ..tasks.task_file import gather
from ..tasks.worst_case import checked_loader_batch
from .carried_state import REMEDY_FOR_LOST, Watched
from .check_data import Findings, check_dataset, told_seeds
from .check_evaluation import check_evaluation
from .check_model import check_model
from .check_optimizer import check_optimizer, made_optimizer
from .check_rates import DRY_RUN_STEPS, scheduled_rates
from .check_step import MOST_SAMPLES, check_any_step
from .left_out import left_out_warning
from .shares import weight_of
from .split_check import split_warnings

# Assumed: no task sets this seed. By it one that was set and put back, as by `fork_rng`, is told from one that stays.
_NOBODYS_SEED = 1_629_113_837
# Seconds of the processor's time for one step on that batch, above which it is not compared with its halves: that takes
# two or three such steps. Assumed: the start of a command bears them.
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

    The model is freshly made and thrown away (a task without a file may hand out a live one: that is given back as it
    was), and the random generators are put back.

    Args:
        task: what to check.
        device: where the step runs.
        batch_size: of the baseline, which the training data must be able to fill.
        load: gives a dataset by the name of its function, where the caller keeps them; by default the function is run.

    Raises:
        TaskError: listing every independent problem.
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
        # A stand-in for data is of a model that nobody trains.
        if train is not None and train is val and not isinstance(train, SampleDataset):
            findings.warnings.append(
                "train_data() and val_data() return the same object: scores are of data trained on"
            )
        with told_seeds(findings, "train_loader" if task.train_loader else "collate", given=0):
            train_batch = _train_batch(findings, train_samples, batch_size)
        with seeds_set() as found:
            model = check_model(findings)
        if found:
            findings.warnings.append(_of_model(found))
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
                with told_seeds(findings, "a training step"), _told_lost(findings, model):
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
                    # What `before_step` tells a loss of the whole step cannot be told of halves of a batch.
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
    """Warnings about a task whose model only has to run forward, maybe frozen, maybe without an optimizer.

    Args:
        task: what to check.
        load: gives a dataset by the name of its function.

    Raises:
        TaskError: listing every problem of the training data and of what `model()` returns.
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
    """Where in the schedule the learning rate first reaches its peak, in [0, 1); 0.0 for a constant or falling rate.

    The user's scheduler is run over `total_steps` on an optimizer that never sees a gradient.

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
            if is_out_of_memory(error):  # no fault of the task: the memory probe says so, with figures
                raise
            raise blame("scheduler(optimizer, total_steps)", error, task.path) from error
    rates = [sum(groups) for groups in held_rates]
    peak = max(rates)
    # Within rounding of the peak counts, so that a plateau is dated from its beginning.
    return next(step for step, rate in enumerate(rates) if rate >= peak * (1 - 1e-6)) / total_steps


def _of_model(found: dict[str, int | None]) -> str:
    """A seed in model() is set anew after it, but what was drawn until then is drawn."""
    same = "the initial weights are" if "torch.manual_seed" in found else "what it draws from that generator is"
    return (
        f"model() sets a seed itself, {told(found)}: {same} the same under every seed, so a standard error over seeds "
        "leaves them out; dropout, augmentation and the order of the data do follow the seed. Leave the seed out: "
        "autobatch seeds each trial"
    )


@contextmanager
def _told_lost(findings: Findings, model: nn.Module) -> Iterator[None]:
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
    """Whatever is done to the model meanwhile, one that may be the user's live object is given back as it was."""
    if task.path is not None:
        yield
        return
    with preserve(model):
        yield


def _train_batch(findings: Findings, samples: list[Any], batch_size: int) -> Any:
    """A few training samples as one batch; None where there is none to be had."""
    task = findings.task
    if task.train_loader is not None:
        with findings.attempt("train_loader(batch_size, seed)"):
            return checked_loader_batch(task, _few(batch_size))
    elif samples:
        return collate_samples(task, samples[: _few(batch_size)])
    return None


def _few(batch_size: int) -> int:
    """Samples of the batch that the check takes a step on."""
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
