"""A runner without torch that reads a table of trials that were run, on which search strategies are judged."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from ..core.facts import DeviceInfo, MemoryLimit, TaskFacts
from ..core.lr_sweep import drive
from ..core.measurement import LrSweep, Measurement
from ..core.plan import Config, Plan
from ..core.runner import Runner
from ..core.segment import SegmentResult, TrainSegment
from ..errors import CheckpointError, ReportError
from .recording import Recording, ReplayProber
from .sim import VirtualClock

_MIB = 1 << 20

Value = TypeVar("Value", float, float | None)
_Curve = Sequence[float | None]  # the scores of one seed, one per rung

_RANGE_TEST = "lr_range_test_min_over_10_at_128"  # null or missing if there was no test, or no suggestion
_TABLE_KEYS = ("name", "full_trial_s", "direction", "batch_sizes", "lrs", "rungs", "step_time_s", "baseline", "score")


@dataclass(slots=True, kw_only=True)
class ReplayRunner(Runner):
    """A runner that reads a table of trials that were run: score over batch size, learning rate, seed and rung.

    Only tabulated batch sizes have scores: another effective batch size reads the nearest one by its logarithm. The
    learning rate is interpolated linearly in its logarithm, and so is the share of the schedule; both are clamped. A
    score of null is a trial that diverged. Between it and a number, whether a trial diverges depends on its distance
    and on its seed.

    Cells may have different numbers of seeds. If a cell has more than `truth_seeds`, no trial sees the last
    `truth_seeds` of them, and the truth is their mean. In other cells, and without that key, both use all seeds. Seed s
    reads the column s modulo the number of visible seeds, so that neighbouring seeds differ.

    Step times are the table's, of the micro-batch. What a table does not have is invented and simple: memory (unless
    there is a recording) of 1 MiB per sample, with room for the largest tabulated batch; an evaluation of `eval_s`; a
    range test (see `sweep_lr`).

    Attributes:
        table: as in its JSON file; `load` checks it.
        recording: probes of the same task, from which `memory` and `probe` then answer.
    """

    table: dict[str, Any]
    clock: VirtualClock = field(default_factory=VirtualClock)
    eval_s: float = 0.0
    recording: Recording | None = None
    kept: dict[int, set[int]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, *, eval_s: float = 0.0) -> ReplayRunner:
        """The runner of the table in a JSON file.

        Raises:
            ReportError: it cannot be read, lacks a key, or has a list or a number that cannot be used.
        """
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ReportError(f"a table is a readable JSON file; {path}: {error}") from error
        problems = _table_problems(table)
        if problems:
            raise ReportError(f"{path} is not a table of trials: {'; '.join(problems)}")
        return cls(table=table, eval_s=eval_s)

    def truth(self, config: Config) -> float:
        """The mean score at the end of the schedule over the seeds that no trial sees.

        A seed that diverged counts as the worst score.
        """
        means = [self._mean_end(cell) for cell in self._row(config)]
        return _interpolate([math.log(lr) for lr in self.table["lrs"]], means, math.log(config.lr))

    def truths(self) -> dict[tuple[int, float], float]:
        """The `truth` of each tabulated cell, by batch size and rate.

        If seeds are held back, only cells that have such seeds are included.
        """
        return {
            (batch, lr): self._mean_end(cell)
            for batch, row in zip(self.table["batch_sizes"], self.table["score"], strict=True)
            for lr, cell in zip(self.table["lrs"], row, strict=True)
            if len(cell) > self._truth_seeds or not self._truth_seeds
        }

    def best(self) -> float:
        """The best of the `truths`."""
        means = self.truths().values()
        return max(means) if self.table["direction"] == "maximize" else min(means)

    def worst(self) -> float:
        """The worst finite score at the end of the schedule."""
        ends: list[float] = [
            seed[-1] for row in self.table["score"] for cell in row for seed in cell if seed[-1] is not None
        ]
        return min(ends) if self.table["direction"] == "maximize" else max(ends)

    @property
    def _truth_seeds(self) -> int:
        return int(self.table.get("truth_seeds", 0))

    def shown(self, cell: Sequence[_Curve]) -> Sequence[_Curve]:
        """The seeds of a cell that trials see."""
        return cell[: -self._truth_seeds] if 0 < self._truth_seeds < len(cell) else cell

    def _mean_end(self, cell: Sequence[_Curve]) -> float:
        """The mean score at the end over the seeds of the truth."""
        ends = [seed[-1] for seed in cell[-self._truth_seeds :]]  # all seeds if none are held back
        return fmean(self.worst() if end is None else end for end in ends)

    def _row(self, config: Config) -> Sequence[Sequence[_Curve]]:
        """The cells of the tabulated batch size closest to the effective one, as a ratio: one for each rate."""
        sizes, log_batch = self.table["batch_sizes"], math.log(config.plan.effective_batch_size)
        row: Sequence[Sequence[_Curve]] = self.table["score"][
            min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i]) - log_batch))
        ]
        return row

    def facts(self) -> TaskFacts:
        baseline = self.table["baseline"]
        return TaskFacts(
            name=self.table["name"],
            train_size=None,
            val_size=None,
            direction=self.table["direction"],
            baseline=Config(plan=Plan(batch_size=baseline["batch_size"]), lr=baseline["lr"]),
            baseline_is_users=True,
            peak_lr_fraction=self.table.get("peak_lr_fraction", 0.0),
        )

    def device(self) -> DeviceInfo:
        return DeviceInfo(name="a table", kind="cpu", notes=("step times and scores are read from a table",))

    def memory(self) -> MemoryLimit:
        if self.recording is not None:
            return self.recording.limit
        limit = self.table["batch_sizes"][-1] * _MIB
        return MemoryLimit(capacity_bytes=limit, budget_bytes=limit, source="the end of the table, 1 MiB a sample")

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        if self.recording is not None:
            replayed = ReplayProber(self.recording, self.facts()).probe(plan, final=final)
            self.clock.advance(replayed.seconds)
            return replayed
        peak = plan.batch_size * _MIB
        if peak > self.memory().capacity_bytes:
            return Measurement(plan=plan, outcome="oom", fresh=final, message="simulated: past the end of the table")
        seconds = (3 if final else 2) * self._step_s(plan)
        self.clock.advance(seconds)
        return Measurement(plan=plan, outcome="ok", peak_bytes=peak, seconds=seconds, fresh=final)

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        step = self._step_s(plan)
        repeats = max(3, min(20, int(budget_s / step)))
        self.clock.advance(repeats * step)
        return Measurement(plan=plan, outcome="ok", step_s=(step,) * repeats, seconds=repeats * step)

    def time_evaluation(self, batch_size: int) -> float:
        self.clock.advance(self.eval_s)
        return self.eval_s

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        """An invented range test with the table's answer, since no losses are tabulated.

        The loss falls up to ten times the tabulated min/10, scaled from batch 128 by the square root, and blows up at
        the next step, so that every smoothing has its lowest loss there. Without a tabulated value it stays constant,
        and the test suggests nothing.
        """
        hint = self.table.get(_RANGE_TEST)
        turn = math.inf if hint is None else 10 * hint * math.sqrt(plan.effective_batch_size / 128)
        falls = repeat(2.0) if hint is None else (2.0 - step / steps for step in count())

        def loss_at(lr: float) -> float:
            return next(falls) if lr <= turn else 1000.0

        lrs, losses, diverged = drive(loss_at, lowest=lowest, highest=highest, steps=steps)
        seconds = len(lrs) * self._step_s(plan)
        self.clock.advance(seconds)
        return LrSweep(plan=plan, lrs=lrs, losses=losses, diverged=diverged, seconds=seconds)

    def advance(self, segment: TrainSegment) -> SegmentResult:
        if segment.start_step and segment.start_step not in self.kept.get(segment.trial, ()):
            raise CheckpointError(f"trial {segment.trial} has no checkpoint at step {segment.start_step} to go on from")
        train_s = (segment.until_step - segment.start_step) * self._step_s(segment.config.plan)
        if segment.limit_s is not None and train_s + self.eval_s > segment.limit_s:
            self.clock.advance(segment.limit_s)
            return SegmentResult(
                segment=segment, outcome="timeout", seconds=segment.limit_s, message="simulated: out of time"
            )
        seconds = train_s + self.eval_s
        self.clock.advance(seconds)
        self.kept.setdefault(segment.trial, set()).add(segment.until_step)
        score = self.score(segment.config, segment.until_step / segment.total_steps, segment.seed)
        if score is None:
            return SegmentResult(
                segment=segment, outcome="diverged", train_s=train_s, seconds=seconds, message="tabulated as diverged"
            )
        return SegmentResult(
            segment=segment, outcome="ok", score=score, train_s=train_s, eval_s=self.eval_s, seconds=seconds
        )

    def test_score(self, segment: TrainSegment) -> float | None:
        return None

    def forget(self, trial: int, before: int | None = None) -> None:
        steps = self.kept.pop(trial, set())
        if before is not None and (left := {step for step in steps if step >= before}):
            self.kept[trial] = left

    def close(self) -> None:
        self.kept.clear()

    def _step_s(self, plan: Plan) -> float:
        sizes, seconds = self.table["batch_sizes"], self.table["step_time_s"]
        beyond: float = max(1.0, plan.batch_size / sizes[-1])
        step_s: float = _interpolate(sizes, seconds, plan.batch_size)
        return plan.accumulation_steps * beyond * step_s

    def score(self, config: Config, share: float, seed: int) -> float | None:
        """The score of a trial under `seed` after `share` of its schedule, in (0, 1]; None if it has diverged."""
        shares = [math.log(rung) for rung in self.table["rungs"]]
        shown = [self.shown(cell) for cell in self._row(config)]
        at_share = [_interpolate(shares, curves[seed % len(curves)], math.log(share)) for curves in shown]
        # A border between the two rates that differs between seeds: over many seeds, the chance to diverge is linear.
        border = (0.5 + seed * 0.6180339887498949) % 1.0
        return _interpolate([math.log(lr) for lr in self.table["lrs"]], at_share, math.log(config.lr), border)


def _interpolate(xs: Sequence[float], ys: Sequence[Value], x: float, border: float = 0.5) -> Value:
    """Linear between the rising `xs`, constant beyond them.

    Beside a None, it is the value on this side of the `border`, the share of the way to the next.
    """
    place = bisect_left(xs, x)
    if place == 0 or place == len(xs) or xs[place] == x:  # exact if it is tabulated
        return ys[min(place, len(xs) - 1)]
    low, high = ys[place - 1], ys[place]
    share = (x - xs[place - 1]) / (xs[place] - xs[place - 1])
    if low is None or high is None:
        return low if share < border else high
    return low + share * (high - low)


def _table_problems(table: object) -> list[str]:
    """What is wrong with a table, in one phrase each; of the scores, only the first problem."""
    if not isinstance(table, dict):
        return [f"it holds a {type(table).__name__} instead of an object"]
    missing = [key for key in _TABLE_KEYS if key not in table]
    if missing:
        return [f"it lacks {', '.join(missing)}"]
    problems = []
    if table["direction"] not in ("maximize", "minimize"):
        problems.append(f'direction must be "maximize" or "minimize", not {table["direction"]!r}')
    for key in ("batch_sizes", "lrs", "rungs", "step_time_s"):
        values = table[key]
        if not isinstance(values, list) or not values or not all(_is_number(v) and v > 0 for v in values):
            problems.append(f"{key} must be a list of numbers above 0")
        elif key != "step_time_s" and values != sorted(set(values)):
            problems.append(f"{key} must rise")
    if not (_is_number(table["full_trial_s"]) and table["full_trial_s"] > 0):
        problems.append(f"full_trial_s must be a number above 0, not {table['full_trial_s']!r}")
    hint = table.get(_RANGE_TEST)
    if hint is not None and not (_is_number(hint) and hint > 0):
        problems.append(f"{_RANGE_TEST} must be a number above 0, or null, not {hint!r}")
    baseline = table["baseline"]
    if not isinstance(baseline, dict) or not all(_is_number(baseline.get(key)) for key in ("batch_size", "lr")):
        problems.append("baseline must hold the numbers batch_size and lr")
    if problems:
        return problems
    if len(table["step_time_s"]) != len(table["batch_sizes"]):
        return ["step_time_s must have one number for each of batch_sizes"]
    truth_seeds = table.get("truth_seeds", 0)
    if not isinstance(truth_seeds, int) or truth_seeds < 0:
        return [f"truth_seeds must be a whole number from 0 up, not {truth_seeds!r}"]
    # None for the seeds: a cell may have any number of them.
    problems = _score_problems(
        table["score"], (len(table["batch_sizes"]), len(table["lrs"]), None, len(table["rungs"])), "score"
    )
    if problems:
        return problems
    cells = [cell for row in table["score"] for cell in row]
    held = [cell for cell in cells if len(cell) > truth_seeds or not truth_seeds]
    if not held:
        return [f"score has no cell with more than truth_seeds = {truth_seeds} seeds"]
    ends = [seed[-1] for cell in held for seed in cell[-truth_seeds:]]
    return [] if any(end is not None for end in ends) else ["score holds no trial that came to its end"]


def _score_problems(values: object, shape: tuple[int | None, ...], name: str) -> list[str]:
    if not shape:
        known = values is None or _is_number(values)
        return [] if known else [f"{name} is {values!r}, neither a finite number nor null for a trial that diverged"]
    if not isinstance(values, list) or len(values) != (shape[0] or max(1, len(values))):
        found = len(values) if isinstance(values, list) else type(values).__name__
        return [f"{name} must be a list of {shape[0] or 'at least 1'}, not {found}"]
    for index, value in enumerate(values):
        problems = _score_problems(value, shape[1:], f"{name}[{index}]")
        if problems:
            return problems
    return []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
