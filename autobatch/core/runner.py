"""The seam: a `Runner` gets questions (`Plan`, `TrainSegment`) and gives answers (`Measurement`, `SegmentResult`).

On one side of it are torch, hardware and the user's code; on the other is arithmetic on frozen data. Running out of
memory is an answer here, not an exception: a `Runner` returns an outcome, and raises only errors that no other size
would avoid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from .facts import DeviceInfo, MemoryLimit, TaskFacts
from .measurement import Energy, LrSweep, Measurement, Workload
from .plan import Plan
from .segment import SegmentResult, TrainSegment


class Prober(ABC):
    """The part of a `Runner` that finding the largest batch needs: it tells whether a plan fits.

    Answers are data: running out of memory is an outcome. Errors that no other size would avoid are raised: `TaskError`
    for the user's code, `DeviceError` for the device.
    """

    @abstractmethod
    def facts(self) -> TaskFacts:
        """What is known about the task without training it."""

    @abstractmethod
    def memory(self) -> MemoryLimit:
        """The memory that a step may use; the same for every probe."""

    @abstractmethod
    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        """Peak memory of whole optimizer steps on worst-case samples.

        A probe takes two steps, the evaluation batch, the short last batch, and a step after them. A final probe, whose
        size may become the answer, takes more steps, in a process that ran nothing else if the runner has one.
        """


class Runner(Prober):
    """Turns questions about one task on one device into measurements.

    Answers are data: an out-of-memory, a diverged trial and a crashed worker are outcomes. Errors that no other size or
    rate would avoid are raised: `TaskError` for the user's code, `DeviceError` for the device.
    """

    def learn(self, facts: TaskFacts) -> None:  # most runners do not need it
        """Take facts that another runner of this task has gathered, instead of gathering them again."""

    @abstractmethod
    def device(self) -> DeviceInfo:
        """The device that plans run on."""

    @abstractmethod
    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        """Synchronised times of whole optimizer steps, of the loader alone and of the compute alone.

        Repeats until the median is settled or about `budget_s` seconds are spent, and takes at least three steps.

        Args:
            plan: the plan to time.
            budget_s: about how many seconds to spend.
            loader: DataLoader arguments that replace those of the task, such as "num_workers".
            parts: whether to time the compute alone, the loader alone and the parts of a step too. Without them, all
                the time goes to whole steps.
        """

    def energy(self, plan: Plan, *, budget_s: float) -> Energy | None:
        """The energy of one optimizer step, from steps repeated for `budget_s` seconds or a little more.

        None if the device does not measure it, or if the time is too short for its counter.
        """
        return None

    def workload(self) -> Workload | None:
        """What the model demands of a device; None if this runner has no model."""
        return None

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        """The speed of one large matrix product on this device in the task's precision; None if it has none."""
        return None

    def see_evaluation_end(self, limit_s: float) -> None:  # a runner without data has nothing to check
        """Check that an iteration over the validation and the test data ends, if they have no length.

        Args:
            limit_s: seconds for each, without a model.

        Raises:
            TaskError: one did not end in time.
        """

    @abstractmethod
    def time_evaluation(self, batch_size: int) -> float:
        """Seconds of one evaluation of the validation data. If it is long, a part of it is timed."""

    @abstractmethod
    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        """A range test on its own model. No trial's weights are touched."""

    @abstractmethod
    def advance(self, segment: TrainSegment) -> SegmentResult:
        """Train one segment, evaluate it, and write a checkpoint of its last step beside that of its first step.

        The checkpoint is on the disk when this returns. A repeated call gives the same result, until the first
        checkpoint is deleted.

        Raises:
            CheckpointError: the trial has no checkpoint of the segment's first step.
            StorageError: there is no room for the checkpoint.
        """

    @abstractmethod
    def test_score(self, segment: TrainSegment) -> float | None:
        """The test score of the checkpoint that `segment` wrote; None if the task has no test data."""

    @abstractmethod
    def forget(self, trial: int, before: int | None = None) -> None:
        """Delete the checkpoints of a trial that will not be resumed; with `before`, only those before that step."""

    @abstractmethod
    def close(self) -> None:
        """Give back the device, the workers and the temporary files."""
