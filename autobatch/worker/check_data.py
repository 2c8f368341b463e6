"""Look at the first samples of a task's data: can they be fetched and collated, and if not, which one is to blame?"""

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
from ..tasks.fixed_seeds import seeds_set, seeds_text
from ..tasks.task import Task, blame
from .data_state import warning_of_changes
from .remedies import known_remedy

# The number of samples looked at in each dataset. Assumed: a few dozen include an odd shape if odd shapes are common,
# and take about a second if a sample is an image to decode.
_SAMPLES = 32

_END = object()


@dataclass(slots=True)
class Findings:
    """The results of a check of `task` so far: problems that stop it, and warnings that do not.

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
        """Run a block that calls the user's code. An error in it becomes a problem, and the check goes on.

        A lost device ends the check.

        Args:
            what: the part of the task that the block calls, such as "model()".
            hint: makes a line to add to the problem, from the error.
        """
        try:
            yield
        except TaskError as error:
            self.problems.append(str(error))
        except (Exception, SystemExit) as error:
            if is_device_lost(error):  # nothing more can be checked, and the device may be at fault
                raise
            # Too little memory is not the task's fault: the memory probe reports it, with figures.
            if is_out_of_memory(error):
                self.warnings.append(f"{what} ran out of memory in the check with a few samples and was not checked")
            else:
                remedy = known_remedy(error)
                parts = (str(remedy or blame(what, error, self.task.path)), "" if remedy else hint(error))
                problem = "\n".join(filter(None, parts))
                if problem not in self.problems:  # the step and the evaluation may fail in the same way
                    self.problems.append(problem)


@contextmanager
def warning_of_seeds(findings: Findings, what: str, *, given: int | None = None) -> Iterator[None]:
    """Add a warning if the code inside sets a seed.

    Args:
        findings: gets the warning.
        what: the code inside, for the warning.
        given: a seed that the code was passed and may use.
    """
    with seeds_set() as seeds:
        yield
    own = {name: value for name, value in seeds.items() if given is None or value != given}
    if own:
        findings.warnings.append(
            f"{what} sets a seed itself, {seeds_text(own)}, so its random numbers are the same for every seed "
            "of a trial. Leave the seed out, or draw from a separate generator (torch.Generator, random.Random, "
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
    if isinstance(batch, torch.Tensor) and batch.is_nested:  # it may have no shape
        return f"nested {str(batch.dtype).removeprefix('torch.')} of {batch.size(0)}"
    shape, dtype = getattr(batch, "shape", None), getattr(batch, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"
    return type(batch).__name__


def check_dataset(findings: Findings, name: str, *, at_least: int = 1) -> tuple[Any, list[Any]]:
    """The dataset that the task's function `name` returns, and its first samples, which can be collated.

    There are no samples if there is a problem, which is then in `findings`. Samples are fetched in this process,
    whatever `loader` says, so that an error has the user's own frames.

    Args:
        findings: gets the problems.
        name: "train_data", "val_data" or "test_data".
        at_least: the number of samples that a batch of the baseline needs.
    """
    task, data = findings.task, None
    with findings.attempt(f"{name}()"):
        data = findings.load(name)
        _require_dataset(name, data)
        seeds = warning_of_seeds(findings, f"a sample of {name}()") if name == "train_data" else nullcontext()
        with seeds, warning_of_changes(findings.warnings, name, data):
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
    """Refuse data of a known length that does not fill one batch of the baseline."""
    if size is not None and size < at_least:
        whose = "the baseline's" if task.baseline else "the default baseline's"
        raise TaskError(
            f"{name}() has {size} samples, fewer than {whose} batch of {at_least}: declare a baseline with a "
            f"batch_size of at most {size}, or give more data"
        )


def _require_dataset(name: str, data: Any) -> None:
    rule = f"{name}() must return a Dataset; it returned "
    if isinstance(data, DataLoader):
        raise TaskError(
            f"{rule}a DataLoader: return its dataset, since autobatch chooses the batch size; other arguments go into "
            f"`loader`, the collate_fn into collate(samples)"
        )
    if data is None:
        raise TaskError(f"{rule}None: is its `return` missing?")
    if isinstance(data, (Mapping, str, bytes)):
        raise TaskError(f"{rule}a {type(data).__name__}, whose entries are no samples")
    if hasattr(data, "__next__") and not isinstance(data, IterableDataset):
        raise TaskError(
            f"{rule}a {type(data).__name__}, which can be read only once: return a Dataset, or a "
            f"torch.utils.data.IterableDataset whose __iter__ begins anew each time"
        )
    if not isinstance(data, IterableDataset) and not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TaskError(
            f"{rule}a {type(data).__name__}, which has not both __len__ and __getitem__: define them, or derive from "
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
    """Check that the data can be read again: each epoch, each evaluation and each scan calls `__iter__`.

    Some samples have been taken before.

    Raises:
        TaskError: it returns the same iterator each time, or one that is exhausted.
    """
    one, other = iter(data), iter(data)
    own: object = data
    # Data that is its own iterator may still begin again each time.
    if (one is other and other is not own) or next(other, _END) is _END:
        raise TaskError(f"{name}() must return data that can be read more than once: {goes_on(data)}")


def _check_collate(task: Task, name: str, samples: list[Any]) -> None:
    """Look for a sample that does not fit into a batch with the others.

    Raises:
        TaskError: the samples cannot be collated. It names the sample if one is to blame.
    """
    whose = "collate(samples)" if task.collate else "torch's default collate"
    try:
        collate_samples(task, samples)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):  # the memory probe finds out how many samples fit
            return
        odd = _odd_sample(task, samples)
        if odd is None:
            blamed = blame(f"{whose} on the first {len(samples)} samples of {name}()", error, task.path)
            raise (blamed if task.collate else TaskError(f"{blamed}\n{_OWN_COLLATE}")) from error
        raise TaskError(f"{odd.format(name=f'{name}()')}\n{blame(whose, error, task.path)}") from error


# Of graphs, data classes, images of PIL: the library whose samples they are has a loader, or a function, of its own.
_OWN_COLLATE = (
    "Make batches of such samples in collate(samples); for a model that is passed in, give as data= the DataLoader "
    "that you train with, whose collate_fn is used"
)


def _collates(task: Task, samples: list[Any]) -> bool:
    try:
        collate_samples(task, samples)
    except (Exception, SystemExit):  # noqa: BLE001 - the caller reports the error over all samples
        return False
    return True


def _odd_sample(task: Task, samples: list[Any]) -> str | None:
    """A sentence on why these samples do not collate, with `{name}` for the dataset; None if none stands out."""
    shapes = [describe_batch(sample).replace("{", "{{").replace("}", "}}") for sample in samples]
    usual, times = Counter(shapes).most_common(1)[0]
    model = samples[shapes.index(usual)]
    if times == 1 and len(samples) > 2:
        listed = "; ".join(f"sample {index}: {shape}" for index, shape in enumerate(shapes[:3]))
        return f"the samples of {{name}} differ in shape ({listed}; ...): bring them to one shape in collate(samples)"
    for index, sample in enumerate(samples):
        # Together with a sample of the usual shape: many collate functions fail only if two samples differ.
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
