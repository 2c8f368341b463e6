"""A runner without torch: `SimRunner` is a formula (`ReplayRunner`, in replay.py, reads a measured table).

Both are part of the package and not hidden in the tests: a new search strategy can be debugged with them, in
milliseconds. They use a `VirtualClock`, so that an hour of training passes at once and a ledger on the same clock
charges it exactly.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.facts import DeviceInfo, MemoryLimit, TaskFacts
from ..core.lr_sweep import drive
from ..core.measurement import Energy, LrSweep, Measurement
from ..core.plan import Config, Plan
from ..core.runner import Runner
from ..core.segment import SegmentResult, TrainSegment
from ..errors import CheckpointError

_MIB = 1 << 20


@dataclass(slots=True)
class VirtualClock:
    """Seconds that pass only on request. Call it to read it, like `time.monotonic`."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        if seconds < 0:
            raise ValueError(f"time runs forward; got {seconds} s")
        self.now_s += seconds


def draw(*key: object) -> random.Random:
    """A random generator that is a function of `key`: the same in every process and in every run."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def sim_facts(**changes: object) -> TaskFacts:
    """Facts of a made-up task, with `changes` to any of them."""
    facts: dict[str, object] = {
        "name": "simulated",
        "train_size": 50_000,
        "val_size": 10_000,
        "direction": "maximize",
        "baseline": Config(plan=Plan(batch_size=32), lr=1e-3),
        "baseline_is_users": True,
    }
    return TaskFacts(**(facts | changes))  # type: ignore[arg-type]  # the dataclass itself rejects a wrong name


@dataclass(slots=True, kw_only=True)
class Landscape:
    """A score over (batch, learning rate, share of the schedule), with a cliff at high rates.

    It is best at `best_lr * (batch / best_batch) ** alpha` for each batch, and at `best_batch` overall. It falls off by
    `lr_curvature` for each squared e-fold of the rate, and by `batch_curvature` for each squared doubling of the batch.
    """

    best_score: float = 0.95
    best_batch: int = 256
    best_lr: float = 3e-3
    alpha: float = 0.5
    lr_curvature: float = 0.01
    batch_curvature: float = 0.004
    unlearned: float = 0.4
    noise: float = 0.003
    diverges_at: float = 30.0

    def __call__(self, config: Config, share: float, seed: int) -> float | None:
        """The score after `share` of the schedule, in (0, 1]; None if training diverges."""
        batch = config.plan.effective_batch_size
        optimum = self.best_lr * (batch / self.best_batch) ** self.alpha
        off = math.log(config.lr / optimum)
        if config.lr > self.diverges_at * optimum:
            return None
        score = self.best_score - self.lr_curvature * off**2
        score -= self.batch_curvature * math.log2(batch / self.best_batch) ** 2
        score -= self.unlearned * (1 - share) ** 2 * math.exp(-0.1 * off)
        return score + draw(seed, batch, config.lr, share).gauss(0, self.noise)


@dataclass(slots=True, kw_only=True)
class SimRunner(Runner):
    """A runner that consists of formulas.

    Attributes:
        peak_bytes: peak memory of a step over its batch size.
        step_s: seconds of one micro-batch over its batch size.
        watts: average power over the batch size; None for a device that does not measure energy.
        loader_share: the part of `step_s` that the loader costs.
        landscape: score over (config, share of the schedule, seed); None if training diverges.
        capacity_bytes, headroom: as in `MemoryLimit`.
        eval_s: seconds of one evaluation.
        slowdown: what training really costs over what `time` reported, for a profile that proves wrong.
        reads_peak: False for a device without a peak counter.
        faults: outcomes of `advance` in place of the formula's, by (trial, until_step).
    """

    known: TaskFacts = field(default_factory=sim_facts)
    clock: VirtualClock = field(default_factory=VirtualClock)
    peak_bytes: Callable[[int], int] = lambda batch: (200 + 3 * batch) * _MIB
    step_s: Callable[[int], float] = lambda batch: 0.002 + 2e-5 * batch
    watts: Callable[[int], float] | None = None
    loader_share: float = 0.1
    landscape: Callable[[Config, float, int], float | None] = field(default_factory=Landscape)
    capacity_bytes: int = 8 << 30
    headroom: float = 0.05
    eval_s: float = 0.05
    slowdown: float = 1.0
    reads_peak: bool = True
    faults: Callable[[TrainSegment], SegmentResult | None] = lambda segment: None
    probes: list[Plan] = field(default_factory=list)
    segments: list[TrainSegment] = field(default_factory=list)
    kept: dict[int, set[int]] = field(default_factory=dict)

    def facts(self) -> TaskFacts:
        return self.known

    def device(self) -> DeviceInfo:
        return DeviceInfo(name="a formula", kind="cpu", memory_bytes=self.capacity_bytes, notes=("nothing is real",))

    def memory(self) -> MemoryLimit:
        budget = int(self.capacity_bytes * (1 - self.headroom))
        return MemoryLimit(capacity_bytes=self.capacity_bytes, budget_bytes=budget, source="a formula")

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self.probes.append(plan)
        steps = 3 if final else 2
        seconds = steps * plan.accumulation_steps * self.step_s(plan.batch_size)
        self.clock.advance(seconds)
        peak, limit = self.peak_bytes(plan.batch_size), self.memory()
        if peak > limit.capacity_bytes:
            return Measurement(
                plan=plan, outcome="oom", seconds=seconds, fresh=final, message="simulated: out of memory"
            )
        return Measurement(
            plan=plan,
            outcome="ok" if peak <= limit.budget_bytes else "over_limit",
            step_s=(plan.accumulation_steps * self.step_s(plan.batch_size),),
            peak_bytes=peak if self.reads_peak else None,
            alloc_retries=0,
            seconds=seconds,
            fresh=final,
        )

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        step = plan.accumulation_steps * self.step_s(plan.batch_size)
        repeats = max(3, min(20, int(budget_s / step)))
        self.clock.advance(repeats * step)
        return Measurement(
            plan=plan,
            outcome="ok",
            step_s=(step,) * repeats,
            compute_s=(step * (1 - self.loader_share),) * repeats,
            loader_s=(step * self.loader_share,) * repeats,
            seconds=repeats * step,
        )

    def energy(self, plan: Plan, *, budget_s: float) -> Energy | None:
        step = plan.accumulation_steps * self.step_s(plan.batch_size)
        if self.watts is None:
            return None
        self.clock.advance(budget_s)
        return Energy(joules=step * self.watts(plan.batch_size), watts=self.watts(plan.batch_size), seconds=budget_s)

    def time_evaluation(self, batch_size: int) -> float:
        self.clock.advance(self.eval_s)
        return self.eval_s

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        seconds = steps * plan.accumulation_steps * self.step_s(plan.batch_size)
        self.clock.advance(seconds)
        loss, learned = 2.3, False

        def loss_at(lr: float) -> float:
            nonlocal loss, learned
            before, score = loss, self.landscape(Config(plan=plan, lr=lr), 1.0, seed)
            if score is None:
                loss = math.inf
            else:
                learned = (
                    learned or score > 0
                )  # a rate that is too low leaves the loss unchanged, and one that is too high raises it
                loss = loss * 1.5 if learned and score <= 0 else max(0.1, loss - 0.1 * max(0.0, score))
            return before

        lrs, losses, diverged = drive(loss_at, lowest=lowest, highest=highest, steps=steps)
        return LrSweep(plan=plan, lrs=lrs, losses=losses, diverged=diverged, seconds=seconds)

    def advance(self, segment: TrainSegment) -> SegmentResult:
        if segment.start_step and segment.start_step not in self.kept.get(segment.trial, ()):
            raise CheckpointError(f"trial {segment.trial} has no checkpoint at step {segment.start_step} to go on from")
        self.segments.append(segment)
        plan = segment.config.plan
        train_s = (segment.until_step - segment.start_step) * plan.accumulation_steps * self.step_s(plan.batch_size)
        train_s *= self.slowdown
        if segment.limit_s is not None and train_s + self.eval_s > segment.limit_s:
            self.clock.advance(segment.limit_s)
            return SegmentResult(
                segment=segment, outcome="timeout", seconds=segment.limit_s, message="simulated: out of time"
            )
        fault = self.faults(segment)
        if fault is not None:
            self.clock.advance(fault.seconds)
            return fault
        self.clock.advance(train_s + self.eval_s)
        score = self.landscape(segment.config, segment.until_step / segment.total_steps, segment.seed)
        if score is None:
            return SegmentResult(
                segment=segment, outcome="diverged", train_s=train_s, seconds=train_s, message="simulated: diverged"
            )
        self.kept.setdefault(segment.trial, set()).add(segment.until_step)
        return SegmentResult(
            segment=segment,
            outcome="ok",
            score=score if self.known.direction == "maximize" else -score,
            train_s=train_s,
            eval_s=self.eval_s,
            seconds=train_s + self.eval_s,
        )

    def test_score(self, segment: TrainSegment) -> float | None:
        if not self.known.has_test_data:
            return None
        return self.landscape(segment.config, 1.0, segment.seed + 1)

    def forget(self, trial: int, before: int | None = None) -> None:
        steps = self.kept.pop(trial, set())
        if before is not None and (left := {step for step in steps if step >= before}):
            self.kept[trial] = left

    def close(self) -> None:
        self.kept.clear()
