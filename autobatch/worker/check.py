"""Call every part of a task once, on a few samples, and tell everything that is wrong with it together.

What is checked is what would otherwise fail in the middle of a search: the model, the data, one training step, one
evaluation, the optimizer, the schedule and what else sets the rate. Not checked: torch.compile and loader workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from time import process_time
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import IterableDataset

from ..devices.oom import is_out_of_memory
from ..errors import TaskError, text_of
from ..tasks.data import (
    Collated,
    DeviceLoader,
    SampleDataset,
    collate_samples,
    load_data,
    rows_of,
    seed_everything,
    to_device,
)
from ..tasks.defaults import right_and_counted
from ..tasks.fixed_seeds import seeds_set, told
from ..tasks.state import preserve, preserve_generators
from ..tasks.task import Task, accuracy, blame
from ..tasks.task_file import gather
from ..tasks.worst_case import checked_loader_batch
from .carried_state import Watched
from .check_data import (
    Findings,
    check_dataset,
    describe_batch,
    told_seeds,
)
from .check_rates import (
    DRY_RUN_STEPS,
    check_schedule,
    check_steps,
    has_writers,
    scheduled_rates,
)
from .gradients import clip_norm, held
from .left_out import left_out_warning
from .made import (
    NO_CLOSURES,
    arguments_of_step,
    hint_on_step,
    not_an_optimizer,
)
from .modes import to_train
from .shares import weight_of
from .split_check import split_warnings
from .training import autocast

# Samples of the batch that the model is run on: several, so that a vector of per-sample losses is told from a scalar.
_BATCH = 4

# Assumed: no task sets this seed. By it one that was set and put back, as by `fork_rng`, is told from one that stays.
_NOBODYS_SEED = 1_629_113_837
# Seconds of the processor's time for one step on that batch, above which it is not compared with its halves: that takes
# two or three such steps. Assumed: the start of a command bears them.
_LONGEST_STEP_S = 1.0

# Parts of the messages torch raises when tensors do not fit each other or the layer they meet (torch 2.6 to 2.13).
_SHAPE_WORDS = (
    "shape",
    "size",
    "channels",
    "dimension",
    "expected input",
    "out of range",
    "dtype",
    "scalar type",
    "target",
    "out of bounds",
)


def check_task(
    task: Task, device: torch.device, batch_size: int, load: Callable[[str], Any] | None = None
) -> tuple[str, ...]:
    """Warnings about the task, which do not stop it; it has no problem that a batch of a few samples could show.

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
            model = _check_model(findings)
        if found:
            findings.warnings.append(_of_model(found))
        if model is not None:
            with _borrowed(task, model):
                model = model.to(device)
                _check_evaluation(findings, model, val_samples, device)
                if task.weight is not None and train_batch is not None:
                    with findings.attempt("weight(batch)"):
                        weight_of(task.weight, train_batch)
                # Before the step, as in training: a task may keep it for its training_step.
                optimizer = _made_optimizer(findings, model)
                began = process_time()
                with told_seeds(findings, "a training step"), _told_lost(findings, model):
                    batch = (
                        None
                        if train_batch is None
                        else _check_any_step(
                            findings,
                            model,
                            to_device(train_batch, device),
                            lambda: _whole_batch(task, train, batch_size),
                        )
                    )
                if batch is not None and process_time() - began < _LONGEST_STEP_S:
                    findings.warnings += left_out_warning(task, model, batch, device)
                    if task.accumulation:
                        few = _few(batch_size)
                        findings.warnings += split_warnings(task, model, train_samples, train_batch, few, device)
                if optimizer is not None:
                    _check_optimizer(findings, model, optimizer, batch)
            _warn(findings, model, batch_size)
    if findings.problems:
        raise _gathered(findings)
    return tuple(findings.warnings)


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
        _check_model(findings, trains=False)
    if findings.problems:
        raise _gathered(findings)
    return tuple(findings.warnings)


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
    """A warning about what a step inside changes and no checkpoint can keep."""
    watched = Watched(findings.task, model, {})
    yield
    findings.warnings += watched.warnings()


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
    return max(2, min(_BATCH, batch_size))


def _whole_batch(task: Task, data: Any, batch_size: int) -> Any:
    """A training batch of the baseline's own size."""
    if task.train_loader is not None:
        return checked_loader_batch(task, batch_size)
    is_stream = isinstance(data, IterableDataset)
    samples = list(islice(data, batch_size)) if is_stream else [data[index] for index in range(batch_size)]
    return collate_samples(task, samples)


def _check_model(findings: Findings, *, trains: bool = True) -> nn.Module | None:
    task = findings.task
    with findings.attempt("model()"):
        model: Any = task.model()
        if not isinstance(model, nn.Module):
            hint = ": is its `return` missing?" if model is None else ": write `return Net()`, with the brackets"
            found = "None" if model is None else f"a {type(model).__name__}"
            raise TaskError(
                f"model() must return a torch.nn.Module; it returned {found}{hint if _explains(model) else ''}"
            )
        if trains and any(value is model for value in _reachable(task.model)):
            raise TaskError(
                "model() must return a new module at each call; it returned one that is kept outside the function, so "
                "every trial would go on training the weights of the trial before"
            )
        if trains and not any(parameter.requires_grad for parameter in model.parameters()):
            frozen = sum(1 for _ in model.parameters())
            raise TaskError(
                f"model() must return a module with a trainable parameter; {type(model).__name__} has "
                f"{f'{frozen}, all with requires_grad=False' if frozen else 'none'}"
            )
        return model
    return None


def _explains(model: object) -> bool:
    return model is None or (isinstance(model, type) and issubclass(model, nn.Module))


def _reachable(function: Any) -> Iterator[object]:
    """Values that a function holds on to between calls: globals of its file, and what it closes over."""
    if type(function) is MethodType:
        function = function.__func__
    if type(function) is not FunctionType:  # an object that is called: what it answers to other names is its own affair
        return
    yield from function.__globals__.values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the cell is empty: a name assigned later
            continue


def _first_layer(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            return f"{name}: {module!r}" if name else repr(module)
    return type(model).__name__


def _shape_hint(model: nn.Module, batch: Any, error: BaseException) -> str:
    """The batch's shapes and the model's first layer, where the error is about tensors that do not fit each other."""
    if not any(word in text_of(error).lower() for word in _SHAPE_WORDS):
        return ""
    return f"the batch is {describe_batch(batch)}; the model's first layer is {_first_layer(model)}"


def _check_any_step(findings: Findings, model: nn.Module, few: Any, whole: Callable[[], Any]) -> Any:
    """A step on a few samples; on a batch of the baseline's size where only that one is what the task takes.

    The batch of which there are gradients now; None where there are none.

    A loss over groups of eight refuses four samples, and nobody trains with four.
    """
    before = len(findings.problems)
    stepped = _check_step(findings, model, few)
    if len(findings.problems) == before:
        return few if stepped else None
    again = Findings(findings.task, findings.load)
    with again.attempt("a batch of the baseline's size"):
        batch = to_device(whole(), next(model.parameters()).device)
        stepped = _check_step(again, model, batch)
    if again.problems or (again.warnings and not stepped):
        return None  # what a few samples show is quicker to look into
    del findings.problems[before:]
    findings.warnings += again.warnings
    return batch if stepped else None


def _check_step(findings: Findings, model: nn.Module, batch: Any) -> bool:
    """Forward and backward on one batch; whether gradients are there to step with."""
    task = findings.task
    model.train()
    model.zero_grad(set_to_none=True)
    if task.training_step is not None:
        with findings.attempt("training_step(model, batch, scale)", lambda error: _shape_hint(model, batch, error)):
            task.training_step(model, batch, 1.0)
            _check_gradients(findings, model, "training_step(model, batch, scale)")
            return True
        return False
    with findings.attempt("loss(model, batch)", lambda error: _shape_hint(model, batch, error)):
        device = next(model.parameters()).device
        with autocast(device, task.precision):
            loss: Any = task.loss(model, batch)
        _require_loss(loss, batch)
        loss.backward()
        _check_gradients(findings, model, "loss(model, batch)")
        return True
    return False


def _require_loss(loss: Any, batch: Any) -> None:
    rule = "loss(model, batch) must return a scalar tensor, the mean over the batch; it returned "
    if loss is None:
        raise TaskError(f"{rule}None: is its `return` missing?")
    if not isinstance(loss, Tensor):
        has_loss = isinstance(getattr(loss, "loss", None), Tensor)  # as transformers' outputs have
        remedy = "return its .loss" if has_loss else "return the tensor itself, without .item() or float()"
        raise TaskError(f"{rule}a {type(loss).__name__}: {remedy}")
    if loss.ndim:
        raise TaskError(f"{rule}a tensor of shape {tuple(loss.shape)}: reduce it with .mean()")
    if not math.isfinite(float(loss.detach())):
        raise TaskError(
            f"loss(model, batch) must be finite; it is {float(loss.detach())} on the first batch, before any training: "
            f"{_nonfinite_cause(batch)}"
        )
    if not loss.requires_grad:
        raise TaskError(
            "loss(model, batch) must depend on the model's parameters; no gradient flows back from it: look for "
            ".detach(), torch.no_grad() or a tensor built anew from numbers"
        )


def _nonfinite_cause(batch: Any) -> str:
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else (batch,)
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and not bool(torch.isfinite(part).all()):
            return f"the batch itself holds values that are not finite ({describe_batch(batch)})"
    return "the batch is finite, so look for log(0), a division by zero or an initialisation that overflows"


def _check_gradients(findings: Findings, model: nn.Module, what: str) -> None:
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    without = [name for name, parameter in trainable.items() if parameter.grad is None]
    if len(without) == len(trainable):
        raise TaskError(
            f"{what} gives no parameter of model() a gradient: does it use the model it is handed, or catch an error, "
            "such as too little memory?"
        )
    if without:
        findings.warnings.append(
            f"{len(without)} of {len(trainable)} trainable parameters get no gradient from {what} ({_some(without)})"
        )
    broken = [
        name
        for name, parameter in trainable.items()
        if parameter.grad is not None and not bool(torch.isfinite(held(parameter.grad)).all())
    ]
    # In fp16 the first steps may overflow; the scaler is there to find a scale that does not.
    if broken and findings.task.precision != "fp16":
        raise TaskError(
            f"the gradients of {what} must be finite; on the first batch, before any training, those of "
            f"{_some(broken)} are not"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _made_optimizer(findings: Findings, model: nn.Module) -> torch.optim.Optimizer | None:
    task = findings.task
    with findings.attempt("optimizer(model, lr)"):
        optimizer = _require_optimizer(task.optimizer(model, task.baseline_config()[0].lr))
        to_train(optimizer)
        return optimizer
    return None


def _check_optimizer(findings: Findings, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """Take a step and run the schedule, at two rates.

    `batch` is the one of which the parameters have gradients; None where they have none.
    """
    task = findings.task
    lr = task.baseline_config()[0].lr
    with findings.attempt("optimizer(model, lr)"):
        groups, doubled = optimizer.param_groups, _require_optimizer(task.optimizer(model, 2 * lr)).param_groups
        if [group.get("lr") for group in groups] == [group.get("lr") for group in doubled]:
            raise TaskError(
                f"optimizer(model, lr) must use the lr it is given; its groups have lr = "
                f"{', '.join(str(group.get('lr')) for group in groups)} for lr = {lr} as for lr = {2 * lr}"
            )
        covered = {id(parameter) for group in groups for parameter in group["params"]}
        left_out = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in covered]
        if left_out:
            findings.warnings.append(f"optimizer(model, lr) leaves out {len(left_out)} parameters ({_some(left_out)})")
    has_stepped = False
    with findings.attempt("optimizer.step()", lambda error: hint_on_step(error, model)):
        if batch is not None and task.clip_grad_norm is not None:
            clip_norm(model.parameters(), task.clip_grad_norm)
        optimizer.step()
        has_stepped = True
    if not has_stepped:
        return

    def make(rate: float) -> torch.optim.Optimizer:
        made = _require_optimizer(task.optimizer(model, rate))
        to_train(made)
        return made

    scheduled = None
    if task.scheduler is not None:
        with findings.attempt("scheduler(optimizer, total_steps)", hint_on_step):
            scheduled = check_schedule(findings, make, lr)
        if scheduled is None:
            return
    if batch is not None and has_writers(task, optimizer):
        what = "training_step(model, batch, scale)" if task.after_step is None else "after_step(model, step)"
        with findings.attempt(what):
            check_steps(findings, model, make, lr, partial(_backward, task, model, batch), scheduled)


def _backward(task: Task, model: nn.Module, batch: Any) -> None:
    if task.training_step is not None:
        task.training_step(model, batch, 1.0)
        return
    with autocast(next(model.parameters()).device, task.precision):
        loss = task.loss(model, batch)
    loss.backward()


def _require_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TaskError(not_an_optimizer(optimizer))
    if needs := arguments_of_step(optimizer):
        raise TaskError(f"{type(optimizer).__name__}.step() needs {needs}: {NO_CLOSURES}")
    return optimizer


def _check_evaluation(findings: Findings, model: nn.Module, samples: list[Any], device: torch.device) -> None:
    if not samples:
        return
    task = findings.task
    model.eval()
    batch = to_device(collate_samples(task, samples[:_BATCH]), device)
    with torch.no_grad(), autocast(device, task.precision):
        if task.evaluate is None:
            with findings.attempt("metric(model, batch)", lambda error: _shape_hint(model, batch, error)):
                if task.metric is accuracy:
                    right_and_counted(model, batch)
                else:
                    _require_scores(task.metric(model, batch), len(samples[:_BATCH]), rows_of(batch))
            return
        parts = [samples[at : at + _BATCH] for at in range(0, len(samples), _BATCH)]
        batches = [Collated(collate_samples(task, part), len(part)) for part in parts]
        with findings.attempt("evaluate(model, loader)", lambda error: _shape_hint(model, batch, error)):
            try:
                score: Any = task.evaluate(model, DeviceLoader(batches, device))
            except ValueError as error:
                # Many a score does not exist on a few samples, such as an area under the curve of one class.
                findings.warnings.append(
                    f"evaluate(model, loader) could not be checked: on the first {len(samples)} validation samples it "
                    f"raised ValueError: {text_of(error)}"
                )
                return
            if isinstance(score, (str, bytes)) or not _is_one_number(score):
                found = f"a tensor of shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
                raise TaskError(f"evaluate(model, loader) must return a float; it returned {found}")


def _is_one_number(score: Any) -> bool:
    try:
        float(score)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _require_scores(scores: Any, count: int, rows: int | None) -> None:
    rule = f"metric(model, batch) must return one score per sample, shape ({count},), or their mean, (); it returned "
    try:
        values = torch.as_tensor(scores)
    except (TypeError, ValueError, RuntimeError):
        found = "None: is its `return` missing?" if scores is None else f"a {type(scores).__name__}"
        raise TaskError(f"{rule}{found}") from None
    if values.shape not in {(), (count,), (rows,)}:
        raise TaskError(f"{rule}shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise TaskError(f"metric(model, batch) must be finite; on the first batch it is {values.tolist()}")


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
