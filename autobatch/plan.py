"""The seam: questions go in (`Plan`, `Rung`), answers come out (`Measurement`, `RungResult`), a `Runner` is between.

Above this module are torch, hardware and the user's code; below it is arithmetic on frozen data. Running out of memory
is an answer here, not an exception: a `Runner` returns an outcome and raises only for what no other size would mend.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from .sweep import blew_up

Direction = Literal["maximize", "minimize"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Mode = Literal["training", "inference"]

# ok          ran, and its peak is within the budget
# over_limit  ran, but its peak is above the budget (limit less headroom): measured, and kept as evidence
# oom         the allocator refused, or the kernel killed the worker for its memory
# nonfinite   ran, but the loss was not a number
# crashed     the worker ended for another reason at this size, and ran at smaller ones
Outcome = Literal["ok", "over_limit", "oom", "nonfinite", "crashed"]


# Rates that single precision holds, and what a search makes of them with it, which is a few decades to either side. A
# batch of more samples than a 32-bit index counts is a mistake or a damaged file. Both assumed.
LEAST_LR, MOST_LR = 1e-30, 1e30
MOST_SAMPLES = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one optimizer step is taken.

    Attributes:
        batch_size: samples in one forward and backward pass (the micro-batch) of one process.
        accumulation_steps: micro-batches whose gradients are summed before the optimizer steps.
        precision: "fp32", "tf32" (float32 whose matrix products may be rounded to 10 bits first), or the type that
            autocast computes in.
        ranks: processes that take the step together, each with a batch of its own (data parallelism).
    """

    batch_size: int
    accumulation_steps: int = 1
    precision: Precision = "fp32"
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulation_steps < 1 or self.ranks < 1:
            raise ValueError(
                f"batch_size, accumulation_steps and ranks are at least 1; got {self.batch_size}, "
                f"{self.accumulation_steps} and {self.ranks}"
            )
        if self.effective_batch_size > MOST_SAMPLES:
            raise ValueError(
                f"an optimizer step averages over at most {MOST_SAMPLES:,} samples; got {self.batch_size} x "
                f"{self.accumulation_steps} x {self.ranks}"
            )

    @property
    def effective_batch_size(self) -> int:
        """Samples that one optimizer step averages over."""
        return self.batch_size * self.accumulation_steps * self.ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the search chooses: a plan and its learning rate, within `LEAST_LR` and `MOST_LR`."""

    plan: Plan
    lr: float

    def __post_init__(self) -> None:
        if not LEAST_LR <= self.lr <= MOST_LR:
            raise ValueError(f"a learning rate lies between {LEAST_LR:g} and {MOST_LR:g}; got {self.lr}")


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
        warnings: what the check of the task found that does not stop it.
        worst_cases: the largest samples, by the function that gives the data: "train_data", "val_data". None for the
            training data of a task that makes its own batches.
        loader: "num_workers" and "pin_memory" of its DataLoader; None for a task that makes its own batches.
        leaves_out: whether a step gives a trainable parameter no gradient; only looked at where ranks train together.
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
    warnings: tuple[str, ...] = ()
    worst_cases: Mapping[str, WorstCase] = field(default_factory=dict)
    loader: Mapping[str, Any] | None = None
    leaves_out: bool = False

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What makes two runs comparable. Unknown is None; `notes` says why a fact is missing.

    Attributes:
        name: as the vendor writes it, "NVIDIA H200" or the processor's model name.
        kind: "cuda", "rocm", "mps" or "cpu".
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
    kind: Literal["cuda", "rocm", "mps", "cpu"]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What running a plan showed.

    Attributes:
        plan: what was run.
        outcome: see `Outcome`.
        step_s: wall seconds of each timed optimizer step as training takes it, data loading included; of a probe,
            of one step on a batch that was there.
        compute_s: the same steps on batches already on the device.
        loader_s: seconds to get the samples of one optimizer step from the loader alone, onto the device.
        peak_bytes: highest memory in use over what was in use before the model was built; None where it cannot be read.
        allocated_bytes: the most of it that was in tensors; None where nothing counts them apart.
        others_bytes: what other processes held of the device when the run had ended; None where nobody says.
        alloc_retries: times the allocator had to give memory back and ask again: "fits, but thrashes".
        visits_s: the median step at each moment, where the plan was timed at several; a moment that was slow is in it.
        phases_s: median seconds of the parts of an optimizer step, each waited for: "copy" of the batch to the device,
            "forward", "backward", "optimizer". Their sum may exceed a step, whose parts overlap.
        joules: energy of one optimizer step.
        watts: average power while steps were timed.
        remarks: what makes the times doubtful: one sentence each.
        seconds: what this measurement cost in wall time.
        fresh: it ran in a process that had run no other plan.
        message: the error's own first line, where there was one.
    """

    plan: Plan
    outcome: Outcome
    step_s: tuple[float, ...] = ()
    compute_s: tuple[float, ...] = ()
    loader_s: tuple[float, ...] = ()
    visits_s: tuple[float, ...] = ()
    peak_bytes: int | None = None
    allocated_bytes: int | None = None
    others_bytes: int | None = None
    alloc_retries: int | None = None
    phases_s: Mapping[str, float] = field(default_factory=dict)
    joules: float | None = None
    watts: float | None = None
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0
    fresh: bool = False
    message: str | None = None

    @property
    def median_step_s(self) -> float:
        """Median seconds of one optimizer step, loading included. Only where `step_s` is not empty."""
        return median(self.step_s)

    @property
    def undisturbed_step_s(self) -> float:
        """Median seconds of one optimizer step when little else went on. Only where `step_s` is not empty.

        What disturbs a machine makes it slower and never faster, so that of several moments the fastest says most of
        the plan itself; from eight on the second, as one may have been lucky. Measured (an LSTM on one core of a shared
        AMD EPYC, eight visits of 0.1 s in a restless minute): the medians of visits to one size differed by up to 38 %,
        their least was within 3 % of what a quiet minute gave, for all of twelve sizes.
        """
        return sorted(self.visits_s)[len(self.visits_s) // 8] if self.visits_s else self.median_step_s

    @property
    def step_beside_parts_s(self) -> float:
        """Median seconds of one optimizer step at the moment at which its parts were timed, which was the first."""
        return self.visits_s[0] if self.visits_s else self.median_step_s

    @property
    def samples_per_s(self) -> float:
        """Samples per second at the median step. Only where `step_s` is not empty."""
        return self.plan.effective_batch_size / self.median_step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSweep:
    """One learning-rate range test: the rate rises geometrically, one optimizer step at each.

    Attributes:
        plan: the steps that were taken.
        lrs: the learning rates, rising.
        losses: the training loss at each rate before its step was taken; cut where the loss blew up.
        diverged: the sweep ended early because the loss was not finite or far above its lowest.
        seconds: what the test cost.
        without_schedule: the task has a schedule, which was left out, as the test sets the rate at each step.
    """

    plan: Plan
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool
    seconds: float
    without_schedule: bool = False

    @property
    def diverged_step(self) -> int | None:
        """The step, counted from 1, at which the loss blew up; None where it did not.

        A loss that is far above the lowest is the last one told; one that is not finite is not told.
        """
        if not self.diverged:
            return None
        return len(self.losses) + (not blew_up(self.losses))


# Work that takes this many times its prediction hangs; but nothing is called hung before the second figure, since what
# a process does first may compile. Both assumed.
HANG_FACTOR = 5.0
HANG_LEAST_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One leg of one trial: train `config` from `start_step` to `until_step` of a schedule of `total_steps`.

    Attributes:
        trial: the number that names the trial's checkpoint.
        start_step: 0, or the `until_step` of the rung before, whose checkpoint is then read.
        until_step: optimizer steps done when the rung ends; at most `total_steps`.
        total_steps: the length of the whole schedule, fixed when the trial starts.
        eval_batch_size: samples in one evaluation batch.
        limit_s: wall seconds after which the rung gives up, outcome "timeout"; None for no limit.
        may_give_up: it ends, outcome "diverged", where the loss rises from where the trial began and stays up.
        fresh: it is to be trained in a process that has run nothing before.
    """

    trial: int
    config: Config
    seed: int
    start_step: int
    until_step: int
    total_steps: int
    eval_batch_size: int
    limit_s: float | None = None
    may_give_up: bool = False
    fresh: bool = False


# diverged  the loss was not finite, or stayed above where it began
# timeout   the rung's `limit_s` passed, or the worker hung
# raised    the task raised an exception or exited
RungOutcome = Literal["ok", "diverged", "oom", "crashed", "timeout", "raised"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradNorms:
    """The norms of the whole gradient before clipping, over those steps of a rung at which it was looked at.

    Attributes:
        median, largest: of the finite ones.
        clipped: the share of those steps at which it was above the task's clip; None for a task that does not clip.
    """

    median: float
    largest: float
    clipped: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RungResult:
    """What a rung showed.

    Attributes:
        score: on the validation data after `until_step` steps; None unless the outcome is "ok".
        grad_norms: of this rung's steps; None where there are none, as on a runner without gradients.
        train_s, eval_s: wall seconds of the optimizer steps, and of the evaluation.
        seconds: wall seconds of everything, checkpoints and start-up of the trial included; not those in which a worker
            was started and loaded the data.
        is_first: of its process, which warmed up in it: kernels were compiled, caches filled.
        fresh: its process had run nothing before, so that it ran out of memory by itself; False where nobody knows.
        message: the error's own first line, where there was one.
    """

    rung: Rung
    outcome: RungOutcome
    score: float | None = None
    grad_norms: GradNorms | None = None
    train_s: float = 0.0
    eval_s: float = 0.0
    seconds: float = 0.0
    is_first: bool = False
    fresh: bool = False
    message: str | None = None

    def __post_init__(self) -> None:
        if (self.outcome == "ok") != (self.score is not None and math.isfinite(self.score)):
            raise ValueError(
                f"a score is finite and there exactly when the outcome is ok: {self.outcome}, {self.score}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What an optimizer step takes of a device's energy.

    Attributes:
        joules: of one step.
        watts: average power while steps were repeated.
        seconds: what measuring it cost in wall time.
    """

    joules: float
    watts: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model asks of a device.

    Attributes:
        parameters: numbers that are trained.
        flops_per_sample: operations of the matrix products and convolutions of one forward and backward pass, a
            multiplication and an addition counting two; None where they could not be counted.
    """

    parameters: int
    flops_per_sample: float | None


class Prober(ABC):
    """The part of a `Runner` that the search for the largest batch needs: it asks whether a plan fits.

    Answers are data: running out of memory comes back as an outcome. What no other size would mend is raised:
    `TaskError` for the user's code, `DeviceError` for the device.
    """

    @abstractmethod
    def facts(self) -> TaskFacts:
        """What is known about the task without training it."""

    @abstractmethod
    def memory(self) -> MemoryLimit:
        """What a step may use; the same for every probe."""

    @abstractmethod
    def probe(self, plan: Plan, *, verdict: bool = False) -> Measurement:
        """Peak memory of whole optimizer steps on worst-case samples.

        Two steps to explore and more for a verdict, the evaluation batch, the short last batch, and a step after them.
        A verdict is found in a process that ran nothing else, wherever the runner has one to give.
        """


class Runner(Prober):
    """Turns questions about one task on one device into measurements.

    Answers are data: an out-of-memory, a diverged trial, a crashed worker come back as outcomes. What no other size or
    rate would mend is raised: `TaskError` for the user's code, `DeviceError` for the device.
    """

    def learn(self, facts: TaskFacts) -> None:  # most need not be told
        """Take the facts that another runner of this task has found, so that they are not looked for again."""

    @abstractmethod
    def device(self) -> DeviceInfo:
        """The device that plans run on."""

    @abstractmethod
    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        """Synchronised times of whole optimizer steps, of the loader alone and of the compute alone.

        Repeats until the median is settled or about `budget_s` seconds are spent; never fewer than three steps.

        Args:
            plan: whose steps are timed.
            budget_s: seconds for it, about.
            loader: DataLoader arguments to change from what the task says, such as "num_workers".
            parts: also the compute alone, the loader alone and the parts of a step; without them whole steps are all
                there is, and the time is theirs.
        """

    def energy(self, plan: Plan, *, budget_s: float) -> Energy | None:
        """The energy of one optimizer step, from steps repeated for `budget_s` seconds or a little more.

        None where the device tells of none, or the seconds are too few for what it tells it by.
        """
        return None

    def workload(self) -> Workload | None:
        """What the model asks of a device; None where this runner has no model."""
        return None

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        """What one large matrix product reaches on this device in the task's precision; None where there is none."""
        return None

    def see_evaluation_end(self, limit_s: float) -> None:  # a runner without data has nothing to see
        """See that going through the validation and the test data comes to an end, where they do not say their size.

        Args:
            limit_s: seconds for each, without a model.

        Raises:
            TaskError: one did not end in that time.
        """

    @abstractmethod
    def time_evaluation(self, batch_size: int) -> float:
        """Seconds that one evaluation of the validation data takes, from a timed part of it where it is long."""

    @abstractmethod
    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        """A range test on a model of its own: no trial's weights are touched."""

    @abstractmethod
    def advance(self, rung: Rung) -> RungResult:
        """Train one rung, evaluate it, keep a checkpoint of its last step beside that of its first.

        On the disk when this returns, and the same however often it is asked for, until the first one is forgotten.

        Raises:
            CheckpointError: the trial has no checkpoint of the rung's first step.
            StorageError: there is no room for the checkpoint.
        """

    @abstractmethod
    def test_score(self, rung: Rung) -> float | None:
        """The score on the test data of the checkpoint that `rung` left; None where the task has no test data."""

    @abstractmethod
    def forget(self, trial: int, before: int | None = None) -> None:
        """Delete what is kept of a trial: it will not be resumed. With `before`, only what lies before that step."""

    @abstractmethod
    def close(self) -> None:
        """Give back the device, the workers and the temporary files."""
