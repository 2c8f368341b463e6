"""Look at the first samples of a task's data: can they be fetched, collated and, if not, which one is to blame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from numbers import Real
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from ..devices.oom import is_device_lost, is_out_of_memory
from ..errors import TaskError
from ..tasks.data import collate_samples, goes_on, num_samples
from ..tasks.fixed_seeds import seeds_set, told
from ..tasks.task import Task, blame
from .data_state import told_changes
from .remedies import known_remedy

# Samples looked at in each dataset. Assumed: a few dozen meet an odd shape where odd shapes are common, and take about
# a second where a sample is an image to decode.
_SAMPLES = 32

_END = object()


@dataclass(slots=True)
class Findings:
    """What a check of `task` has found so far: problems that stop it, and warnings that do not.

    `load` gives a dataset by the name of its function. `is_pausable` says whether a checkpoint keeps what a step
    changes.
    """

    task: Task
    load: Callable[[str], Any]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_pausable: bool = True

    @contextmanager
    def attempt(self, what: str, hint: Callable[[BaseException], str] = lambda error: "") -> Iterator[None]:
        """Run a block that calls the user's code; what it raises becomes a problem, and the check goes on.

        A device that is lost ends the check.

        Args:
            what: the part of the task that the block calls, such as "model()".
            hint: a line to add to the problem, from the error.
        """
        try:
            yield
        except TaskError as error:
            self.problems.append(str(error))
        except (Exception, SystemExit) as error:
            if is_device_lost(error):  # nothing more can be checked here, and it may be the device that is at fault
                raise
            # Too little memory is no fault of the task: the memory probe says so, with figures.
            if is_out_of_memory(error):
                self.warnings.append(f"{what} ran out of memory in the check with a few samples and was not checked")
            else:
                remedy = known_remedy(error)
                told = (str(remedy or blame(what, error, self.task.path)), "" if remedy else hint(error))
                problem = "\n".join(filter(None, told))
                if problem not in self.problems:  # the step and the evaluation fail alike
                    self.problems.append(problem)


@contextmanager
def told_seeds(findings: Findings, what: str, *, given: int | None = None) -> Iterator[None]:
    """A warning where what runs inside sets a seed.

    Args:
        findings: where it goes.
        what: runs inside, for the warning.
        given: a seed that it was handed and may well use.
    """
    with seeds_set() as found:
        yield
    own = {name: value for name, value in found.items() if given is None or value != given}
    if own:
        findings.warnings.append(
            f"{what} sets a seed itself, {told(own)}: what is drawn after it is the same each time, whatever the seed "
            "of the trial. Leave the seed out, or draw from a generator of its own (torch.Generator, random.Random, "
            "np.random.default_rng)"
        )


def describe_batch(batch: Any) -> str:
    """Types and shapes of a sample or a batch in one line: `(float32 (4, 64), int64 (4,))`."""
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {describe_batch(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (tuple, list)) and len(batch) <= 8:
        return "(" + ", ".join(map(describe_batch, batch)) + ")"
    if isinstance(batch, (tuple, list)):
        return f"{type(batch).__name__} of {len(batch)}"
    if isinstance(batch, torch.Tensor) and batch.is_nested:  # it may refuse to tell a shape
        return f"nested {str(batch.dtype).removeprefix('torch.')} of {batch.size(0)}"
    shape, dtype = getattr(batch, "shape", None), getattr(batch, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"
    return type(batch).__name__


def check_dataset(findings: Findings, name: str, *, at_least: int = 1) -> tuple[Any, list[Any]]:
    """The dataset that the function `name` of the task returns and its first samples, which can be collated.

    No samples where there is a problem; it is in `findings` then. Samples are fetched in this process, whatever
    `loader` says, so that an error has the user's own frames.

    Args:
        findings: where problems go.
        name: "train_data", "val_data" or "test_data".
        at_least: samples that the dataset must have for a batch of the baseline.
    """
    task, data = findings.task, None
    with findings.attempt(f"{name}()"):
        data = findings.load(name)
        _require_dataset(name, data)
        seeds = told_seeds(findings, f"a sample of {name}()") if name == "train_data" else nullcontext()
        with seeds, told_changes(findings.warnings, name, data):
            samples = _first_samples(task, name, data)
        if isinstance(data, IterableDataset) and samples:
            _check_begins_anew(name, data)
        size = num_samples(data)
        if size is None and len(samples) < _SAMPLES:
            size = len(samples)
        if not samples or size == 0:
            raise TaskError(f"{name}() must give at least one sample; the {type(data).__name__} it returned is empty")
        require_a_batch(task, name, size, at_least)
        _check_collate(task, name, samples)
        if task.sample_size is not None:
            _check_sample_size(task, name, samples)
        return data, samples
    return data, []


def require_a_batch(task: Task, name: str, size: int | None, at_least: int) -> None:
    """Refuse data of a known size that does not fill one batch of the baseline."""
    if size is not None and size < at_least:
        whose = "the baseline's" if task.baseline else "the default baseline's"
        raise TaskError(
            f"{name}() has {size} samples, fewer than {whose} batch of {at_least}: declare a baseline with a "
            f"batch_size of at most {size}, or give more data"
        )


def _require_dataset(name: str, data: Any) -> None:
    found = f"{name}() must return a Dataset; it returned "
    if isinstance(data, DataLoader):
        raise TaskError(
            f"{found}a DataLoader: return its dataset, since autobatch chooses the batch size; other arguments go into "
            f"`loader`, the collate_fn into collate(samples)"
        )
    if data is None:
        raise TaskError(f"{found}None: is its `return` missing?")
    if isinstance(data, (Mapping, str, bytes)):
        raise TaskError(f"{found}a {type(data).__name__}, whose entries are no samples")
    if hasattr(data, "__next__") and not isinstance(data, IterableDataset):
        raise TaskError(
            f"{found}a {type(data).__name__}, which can be read only once: return a Dataset, or a "
            f"torch.utils.data.IterableDataset whose __iter__ begins anew each time"
        )
    if not isinstance(data, IterableDataset) and not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TaskError(
            f"{found}a {type(data).__name__}, which has not both __len__ and __getitem__: define them, or derive from "
            f"torch.utils.data.IterableDataset"
        )


def _first_samples(task: Task, name: str, data: Any) -> list[Any]:
    samples: list[Any] = []
    try:
        if isinstance(data, IterableDataset):
            for sample in islice(data, _SAMPLES):
                samples.append(sample)
        else:
            for index in range(min(_SAMPLES, len(data))):
                samples.append(data[index])
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise blame(f"sample {len(samples)} of {name}()", error, task.path) from error
    return samples


def _check_begins_anew(name: str, data: IterableDataset[Any]) -> None:
    """Each epoch, each evaluation and each look at the data calls `__iter__`; some samples have been taken before.

    Raises:
        TaskError: it hands out one iterator again and again, or none that has something left.
    """
    one, other = iter(data), iter(data)
    own: object = data
    # One that is its own iterator may well begin anew each time it is asked.
    if (one is other and other is not own) or next(other, _END) is _END:
        raise TaskError(f"{name}() must return data that can be read more than once: {goes_on(data)}")


def _check_collate(task: Task, name: str, samples: list[Any]) -> None:
    """Find a sample that does not go into a batch with the others.

    Raises:
        TaskError: the samples cannot be collated; names the sample where one is to blame.
    """
    whose = "collate(samples)" if task.collate else "torch's default collate"
    try:
        collate_samples(task, samples)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):  # so many at once need not fit: how many do is the memory probe's to say
            return
        odd = _odd_sample(task, samples)
        if odd is None:
            raise blame(f"{whose} on the first {len(samples)} samples of {name}()", error, task.path) from error
        raise TaskError(f"{odd.format(name=f'{name}()')}\n{blame(whose, error, task.path)}") from error


def _collates(task: Task, samples: list[Any]) -> bool:
    try:
        collate_samples(task, samples)
    except (Exception, SystemExit):  # noqa: BLE001 - which error it was is told by the caller, who saw it over all samples
        return False
    return True


def _odd_sample(task: Task, samples: list[Any]) -> str | None:
    """A sentence about why these samples do not collate, with `{name}` for the dataset; None where none stands out."""
    shapes = [describe_batch(sample).replace("{", "{{").replace("}", "}}") for sample in samples]
    usual, times = Counter(shapes).most_common(1)[0]
    model = samples[shapes.index(usual)]
    if times == 1 and len(samples) > 2:
        listed = "; ".join(f"sample {index}: {shape}" for index, shape in enumerate(shapes[:3]))
        return f"the samples of {{name}} differ in shape ({listed}; ...): bring them to one shape in collate(samples)"
    for index, sample in enumerate(samples):
        # With a sample of the usual shape beside it, since many a collate fails only where two samples differ.
        if _collates(task, [model, sample]):
            continue
        if shapes[index] != usual:
            return f"sample {index} of {{name}} cannot be collated: {shapes[index]} where the others are {usual}"
        if not _collates(task, [sample]) and _collates(task, [model]):
            return f"sample {index} of {{name}} cannot be collated: {shapes[index]}, as the others"
    return None


def _check_sample_size(task: Task, name: str, samples: list[Any]) -> None:
    assert task.sample_size is not None
    for index, sample in enumerate(samples):
        try:
            size = task.sample_size(sample)
        except (Exception, SystemExit) as error:
            raise blame(f"sample_size(sample) on sample {index} of {name}()", error, task.path) from error
        if not isinstance(size, (Real, torch.Tensor)) or (isinstance(size, torch.Tensor) and size.numel() != 1):
            raise TaskError(
                f"sample_size(sample) must return a number; for sample {index} of {name}() it returned "
                f"{describe_batch(size)}"
            )
