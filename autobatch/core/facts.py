"""What is known before anything is trained: of the task, of the device and of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .plan import Config, Direction, Plan, Precision
from .progress import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """Where the largest samples of a dataset are: its indices, or positions in data that is iterated.

    Attributes:
        largest: of equal size, to fill a batch with.
        widest: others, each of which has the largest extent of some dimension; one of each belongs in a batch.
        num_scanned: samples that were looked at.
        num_samples: samples that there are; None for data that does not say.
        varies: whether the sizes that were seen differ.
        seconds: that the look took.
    """

    largest: tuple[int, ...]
    widest: tuple[int, ...] = ()
    num_scanned: int
    num_samples: int | None
    varies: bool
    seconds: float = 0.0

    @property
    def assumption(self) -> str | None:
        """One sentence where a larger sample may have been missed; None where all were seen."""
        if self.num_scanned == self.num_samples:
            return None
        of = "of data that does not say its size" if self.num_samples is None else f"of {self.num_samples}"
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
        name: of the task, for titles and folders.
        train_size, val_size: samples; None where an iterable dataset or a custom loader does not say.
        direction: whether a higher or a lower score is better.
        baseline: what the user trains with today, or the stated default.
        baseline_is_users: False where the task declares no baseline and a default stands in.
        precision: the task's own.
        accumulates: False where the loss couples the samples of a batch, so that a batch must not be split.
        has_test_data: whether a test set is there to score the winner and the baseline once.
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
        """One sample in each process, as the task is computed."""
        return Plan(batch_size=1, precision=self.precision, ranks=self.baseline.plan.ranks)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """A sentence for each dataset in which a larger sample may have been missed."""
        said = [(name, found.assumption) for name, found in self.worst_cases.items()]
        told = [f"in {name}(), {sentence}" for name, sentence in said if sentence is not None]
        if self.worst_cases and "train_data" not in self.worst_cases:
            told.append("the first batch of train_loader() needs as much memory as any other")
        return tuple(told)


DeviceKind = Literal["cuda", "rocm", "xpu", "mps", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What makes two runs comparable. Unknown is None; `notes` says why a fact is missing.

    Attributes:
        name: as the vendor writes it, "NVIDIA H200" or the processor's model name.
        kind: what it is, as `devices/backend.py` lists them.
        index: among the devices that this process sees; None for a device there is one of.
        memory_bytes: of the whole device, whoever uses it.
        free_bytes: when it was opened.
        threads: CPU threads that a training step may use.
        driver, runtime: versions of the driver and of CUDA, ROCm or Metal.
        torch, python: versions.
        uuid: the vendor's identifier of this very card.
        power_limit_w: enforced limit in watts.
        notes: one sentence for each fact that could not be read, and why.
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
    """What a step may use.

    Attributes:
        capacity_bytes: where the allocator refuses.
        budget_bytes: capacity less headroom; a peak above it is `over_limit`. Never above the capacity.
        source: in words, where the capacity came from ("--memory-limit", "free on the device", ...).
    """

    capacity_bytes: int
    budget_bytes: int
    source: str
