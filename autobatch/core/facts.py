"""What is known before anything is trained: about the task, the device and its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .plan import Config, Direction, Plan, Precision
from .progress import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """Where the largest samples of a dataset are: their indices, or their positions in iterable data.

    Attributes:
        largest: samples of equal size, to fill a batch.
        widest: other samples, each with the largest extent of some dimension. A worst-case batch has one of each.
        num_scanned: how many samples were looked at.
        num_samples: how many samples there are; None if the data has no length.
        varies: whether samples of different sizes were seen.
        seconds: how long the scan took.
    """

    largest: tuple[int, ...]
    widest: tuple[int, ...] = ()
    num_scanned: int
    num_samples: int | None
    varies: bool
    seconds: float = 0.0

    @property
    def assumption(self) -> str | None:
        """One sentence if a larger sample may have been missed; None if all were seen."""
        if self.num_scanned == self.num_samples:
            return None
        of = "of data without a length" if self.num_samples is None else f"of {self.num_samples}"
        if not self.varies:
            return f"all samples have the size of the {self.num_scanned} {of} that were looked at"
        return (
            f"the largest sample is among the {self.num_scanned} {of} that were looked at in {self.seconds:.0f} s: "
            "another may need more memory"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What is known about a task without training it.

    Attributes:
        name: the task's name, for titles and folders.
        train_size, val_size: the number of samples; None for an iterable dataset or a custom loader without a length.
        direction: whether a higher or a lower score is better.
        baseline: the user's configuration, or the default that the report states.
        baseline_is_users: False if the task declares no baseline, so that a default takes its place.
        precision: of the task.
        accumulates: False if the loss couples the samples of a batch, so that a batch must not be split.
        has_test_data: whether there is a test set, to score the winner and the baseline once.
        peak_lr_fraction: where in the schedule the learning rate peaks, in [0, 1]; 0 for a constant or falling one.
        is_pausable: whether a checkpoint keeps all that a training step changes.
        warnings: what the check of the task found that does not stop it.
        worst_cases: the largest samples, by the function that gives the data: "train_data", "val_data". None for the
            training data of a task that makes its own batches.
        loader: "num_workers" and "pin_memory" of its DataLoader; None for a task that makes its own batches.
        leaves_out: whether a step gives a trainable parameter no gradient; only looked at where ranks train together.
        without: the stages that this task cannot have, each with the reason: "profile", "range test".
        resumes: False where a trial cannot go on from a checkpoint, so that each of its segments begins from nothing.
        has_seeds: False where nothing can tell the training which seed to take.
        least_s: seconds of training before which there is no score; 0 for a task that is evaluated at any step.
        rung_s: seconds that a rung has to train for to be worth what beginning it costs; 0 where that costs little.
        own_length_s: seconds that the training takes by itself, where its length is not ours to choose.
        typed: the task as a command line to fill in, where it is one; see `tasks/command.py`.
    """

    name: str
    train_size: int | None
    val_size: int | None
    direction: Direction
    baseline: Config
    baseline_is_users: bool
    precision: Precision = "fp32"
    accumulates: bool = True
    has_test_data: bool = False
    peak_lr_fraction: float = 0.0
    is_pausable: bool = True
    warnings: tuple[str, ...] = ()
    worst_cases: Mapping[str, WorstCase] = field(default_factory=dict)
    loader: Mapping[str, Any] | None = None
    leaves_out: bool = False
    without: Mapping[Stage, str] = field(default_factory=dict)
    resumes: bool = True
    has_seeds: bool = True
    least_s: float = 0.0
    rung_s: float = 0.0
    own_length_s: float | None = None
    typed: str | None = None

    @property
    def smallest_plan(self) -> Plan:
        """One sample on each rank, in the task's precision."""
        return Plan(batch_size=1, precision=self.precision, ranks=self.baseline.plan.ranks)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """A sentence for each dataset in which a larger sample may have been missed."""
        cases = [(name, worst_case.assumption) for name, worst_case in self.worst_cases.items()]
        sentences = [f"in {name}(), {sentence}" for name, sentence in cases if sentence is not None]
        if self.worst_cases and "train_data" not in self.worst_cases:
            sentences.append("the first batch of train_loader() needs as much memory as any other")
        return tuple(sentences)


DeviceKind = Literal["cuda", "rocm", "xpu", "mps", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """The facts that make two runs comparable. None is unknown, and `notes` says why a fact is missing.

    Attributes:
        name: the vendor's name, "NVIDIA H200", or the processor's model name.
        kind: the kind of device, as in `devices/backend.py`.
        index: its number among the devices that this process sees; None for a kind of which there is only one.
        memory_bytes: the memory of the whole device, whoever uses it.
        free_bytes: its free memory when it was opened.
        threads: CPU threads that a training step may use.
        driver, runtime: versions of the driver and of CUDA, ROCm or Metal.
        torch, python: their versions.
        uuid: the vendor's identifier of this card.
        power_limit_w: enforced limit in watts.
        notes: for each fact that could not be read, one sentence that says why.
    """

    name: str
    kind: DeviceKind
    index: int | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    threads: int | None = None
    driver: str | None = None
    runtime: str | None = None
    torch: str | None = None
    python: str | None = None
    uuid: str | None = None
    power_limit_w: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """The memory that a step may use.

    Attributes:
        capacity_bytes: the memory above which the allocator refuses.
        budget_bytes: the capacity less the headroom. A peak above it is `over_limit`. Never above the capacity.
        source: where the capacity comes from, in words ("--memory-limit", "free on the device", ...).
    """

    capacity_bytes: int
    budget_bytes: int
    source: str
