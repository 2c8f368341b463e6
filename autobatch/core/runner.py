"""The seam: a `Runner` takes questions (`Plan`, `TrainSegment`) and gives answers (`Measurement`, `SegmentResult`).

Above this module are torch, hardware and the user's code; below it is arithmetic on frozen data. Running out of memory
is an answer here, not an exception: a `Runner` returns an outcome and raises only for what no other size would mend.
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
    def advance(self, segment: TrainSegment) -> SegmentResult:
        """Train one segment, evaluate it, keep a checkpoint of its last step beside that of its first.

        On the disk when this returns, and the same however often it is asked for, until the first one is forgotten.

        Raises:
            CheckpointError: the trial has no checkpoint of the segment's first step.
            StorageError: there is no room for the checkpoint.
        """

    @abstractmethod
    def test_score(self, segment: TrainSegment) -> float | None:
        """The score on the test data of the checkpoint that `segment` left; None where the task has no test data."""

    @abstractmethod
    def forget(self, trial: int, before: int | None = None) -> None:
        """Delete what is kept of a trial: it will not be resumed. With `before`, only what lies before that step."""

    @abstractmethod
    def close(self) -> None:
        """Give back the device, the workers and the temporary files."""
