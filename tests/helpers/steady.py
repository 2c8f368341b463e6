"""Steps that take what a formula says, in processes that are forked by ready_python.py; and a trial that is held.

A race plans by the times of its profile: how many steps a trial gets, and whether the fewest fit into a training time.
Where these are measured, a test has to give the time that the slowest machine needs, and waits for it on every other.
In an environment with `STEADY` a profile takes the same few steps everywhere, and a trial has as many as are wanted of
it. The steps and evaluations of the race are real. What a profile measures has tests of its own.

`Held` is for what is to happen while a trial is trained, however late it does: the trial waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.core.plan import Precision
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.devices import Device
from autobatch.tasks.data import Batch, training_batches
from autobatch.worker import torch_runner
from autobatch.worker.flops import matmul_flops_per_s
from autobatch.worker.timing import Timing
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.training import Trainer

from .ready_python import Forked, Started

IS_FORKED = Started is Forked  # elsewhere nothing here is in force, and times are real
_STEADY, _HELD = "TESTS_STEADY_STEPS", "TESTS_HELD"
STEADY = {_STEADY: "yes"}  # for an environment
_STEP_S, _SAMPLE_S = 1e-3, 1e-5  # of a step, and of each sample in it
_TAKEN, _TOLD = 2, 8  # steps that are taken, and times that are told of them: enough to be settled
_BATCHES_BEFORE = 3  # that training is held: it has begun, and no rung is as short


def train_time(steps: int) -> str:
    """For `--train-time`: so many steps of the minimal task's baseline; where times are real, time for 32 of them."""
    return f"{steps * (_STEP_S + 32 * _SAMPLE_S):.3f}s" if IS_FORKED else "1s"


@dataclass(frozen=True)
class Held:
    """Trials that are held in their first segment, when they have taken some steps, until they are let go or ended.

    Attributes:
        folder: of the processes, in which files say how far they are; what is held is held once.
        trials: their numbers.
    """

    folder: Path
    trials: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """To be added to that of the processes."""
        return {_HELD: f"{' '.join(map(str, self.trials))}:{self.folder}"}

    def begun(self, trial: int) -> Path:
        """What is there as soon as a trial is held."""
        return self.folder / f"held-{trial}"

    def let_go(self, trial: int) -> None:
        """Have a trial go on."""
        self.released(trial).touch()

    def released(self, trial: int) -> Path:
        """What a trial waits for."""
        return self.folder / f"held-{trial}.go"

    def wait(self, trial: int) -> None:
        """Hold a trial, unless it was before."""
        if trial in self.trials and not self.begun(trial).exists():
            self.begun(trial).touch()
            while not self.released(trial).exists():
                time.sleep(0.05)


def install() -> None:
    """Have the runner of this process, and of those forked from it, do as its environment says."""
    if os.environ.get(_STEADY):
        vars(torch_runner).update(time_step=_time_step, matmul_flops_per_s=_matmul_flops_per_s)
    if os.environ.get(_HELD):
        trials, _, folder = os.environ[_HELD].partition(":")
        _hold(Held(Path(folder), tuple(map(int, trials.split()))))


def _time_step(bench: Trainer, device: Device, batches: Iterator[Batch], *_: Any, parts: bool) -> Timing:
    plan = bench.config.plan
    for _step in range(_TAKEN):
        bench.step(batches)
    step_s = plan.accumulation_steps * (_STEP_S + plan.batch_size * _SAMPLE_S)
    shares = {"copy": 0.05, "forward": 0.3, "backward": 0.45, "optimizer": 0.2} if parts else {}
    return Timing(
        step_s=(step_s,) * _TOLD,
        compute_s=(0.9 * step_s,) * _TOLD if parts else (),
        loader_s=(0.1 * step_s,) * _TOLD if parts else (),
        phases_s={part: share * step_s for part, share in shares.items()},
        remarks=(),
    )


def _matmul_flops_per_s(device: Device, precision: Precision, budget_s: float) -> float | None:
    return matmul_flops_per_s(device, precision, 0.0)  # as few products as there may be


def _hold(held: Held) -> None:
    advance = TorchRunner.advance
    number = -1

    def noting(self: TorchRunner, segment: TrainSegment) -> SegmentResult:
        nonlocal number
        number = segment.trial
        return advance(self, segment)

    def waiting(*args: Any, **more: Any) -> Iterator[Batch]:
        for count, batch in enumerate(training_batches(*args, **more)):
            if count == _BATCHES_BEFORE:
                held.wait(number)
            yield batch

    vars(torch_runner)["training_batches"] = waiting
    TorchRunner.advance = noting  # type: ignore[method-assign]
