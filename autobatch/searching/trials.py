"""What a search is made of, as frozen data: settings, space, rungs, trials, events, and the rule of promotion.

Everything here is a pure function of what was seen, so that one process, many workers or a resumed run decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from ..core.facts import TaskFacts
from ..core.plan import (
    LEAST_LR,
    MOST_LR,
    Config,
    Direction,
    Plan,
    Precision,
)
from ..core.segment import GradNorms, Rung, RungOutcome
from ..errors import SettingError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Role = Literal["baseline", "warm start", "search", "confirmation"]
EventKind = Literal["rung started", "rung finished", "confirming"]
Number = TypeVar("Number", int, float)
State = Literal["running", "paused", "complete", "dropped", "failed"]

# Fewer optimizer steps than this are no training run to compare. Assumed. It also makes the rungs of every schedule
# fall within 1/64 of their nominal share, so that scores at one rung are comparable whatever the batch size.
MIN_STEPS = 32

# How the best learning rate moves with the batch size, as an exponent. Measured on six tables of two tasks (96 cells of
# batch and rate, 5 seeds each): 0.60-0.82 for SGD and 0.27-0.40 for AdamW; 0.5 is the safest single one.
LR_EXPONENT = 0.5

# Decades of learning rate on either side of the hints. Assumed: with hints a decade apart, a space of five decades.
LR_DECADES = 2.0

# Batch sizes start here, or at the baseline's, where the knee is well above it, and a space of fewer sizes than that is
# no search. Both assumed; the tables measured have their knees at 128 and above, where the first says nothing.
FEWEST_SAMPLES = 8
FEWEST_SIZES = 3

# Two learning rates closer than this factor are one configuration. Assumed: far inside the narrowest basin measured
# (0.4 of a decade within one point of accuracy).
SAME_LR = 1.1


class StepTimes(Protocol):
    """What the search needs of a throughput profile."""

    @property
    def knee_batch_size(self) -> int:
        """The smallest batch size that reaches 80 % of the highest samples per second."""

    def step_s(self, batch_size: int) -> float:
        """Seconds of one forward, backward and optimizer step at `batch_size`, data loading included."""

    def plan_for(self, effective_batch: int, max_batch: int, precision: Precision, max_micro_batch: int) -> Plan | None:
        """The fastest plan of this effective batch size, if there is one: at most `max_batch` samples at once, at most
        `max_micro_batch` where it accumulates.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration under one seed, and how far it was trained.

    Attributes:
        number: names the trial and its checkpoint; trials are numbered in the order they were started.
        total_steps: optimizer steps of the whole schedule, fixed when the trial starts.
        role: "baseline", "warm start", "search", or "confirmation" for a fresh seed of a configuration tried before.
        origin: one sentence, why it was tried.
        state: "paused" trials may be resumed; "complete" ones were trained to the end; "dropped" ones could have gone
            on and were not worth it; "failed" ones cannot.
        scores: (optimizer steps done, validation score) at each rung.
        outcome: of the last rung; "ok" before the first.
        message: what the last rung said, where it did not end well.
        grad_norms: of each rung that was run and had some, the last of a failed trial included.
        seconds: wall seconds spent.
        predicted_s: seconds that the profile gave for the same work.
    """

    number: int
    config: Config
    seed: int
    total_steps: int
    role: Role
    origin: str
    state: State = "running"
    scores: tuple[tuple[int, float], ...] = ()
    outcome: RungOutcome = "ok"
    message: str | None = None
    grad_norms: tuple[GradNorms, ...] = ()
    seconds: float = 0.0
    predicted_s: float = 0.0

    @property
    def steps_done(self) -> int:
        """Optimizer steps behind the last score; where the trial would be resumed."""
        return self.scores[-1][0] if self.scores else 0

    @property
    def is_challenger(self) -> bool:
        """Whether it was tried because it might be better than the baseline; not a fresh seed."""
        return self.role in ("warm start", "search")

    @property
    def final_score(self) -> float | None:
        """The score at the end of the schedule; None for a trial that did not get there."""
        return self.scores[-1][1] if self.state == "complete" else None

    def to_json(self) -> dict[str, object]:
        """The trial as plain data, its plan spelled out."""
        plan = self.config.plan
        return {
            "number": self.number,
            "role": self.role,
            "origin": self.origin,
            "state": self.state,
            "batch_size": plan.batch_size,
            "accumulation_steps": plan.accumulation_steps,
            "ranks": plan.ranks,
            "effective_batch_size": plan.effective_batch_size,
            "precision": plan.precision,
            "lr": self.config.lr,
            "seed": self.seed,
            "total_steps": self.total_steps,
            "scores": [list(score) for score in self.scores],
            "outcome": self.outcome,
            "message": self.message,
            "grad_norms": [asdict(norms) for norms in self.grad_norms],
            "seconds": self.seconds,
            "predicted_s": self.predicted_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be tried.

    Attributes:
        effective_batch_sizes: rising.
        lr_low, lr_high: bounds of the learning rate *at the reference batch*; at another batch they move with it.
        reference_batch: the effective batch size at the knee of the throughput curve.
        lrs: the only learning rates to propose, rising; any between the bounds where it is empty.
    """

    effective_batch_sizes: tuple[int, ...]
    lr_low: float
    lr_high: float
    reference_batch: int
    lrs: tuple[float, ...] = ()

    def lr_at(self, batch: int, scaled_lr: float) -> float:
        """The learning rate at `batch` for one given at the reference batch, or the closest to it of those allowed."""
        lr = scaled_lr * scale(self.reference_batch, batch)
        return closest(self.lrs, lr) if self.lrs else lr

    def scaled_lr(self, config: Config) -> float:
        """A configuration's learning rate carried over to the reference batch."""
        return config.lr * scale(config.plan.effective_batch_size, self.reference_batch)

    def nearest(self, batch: int) -> int:
        """The batch size of the space that is closest to `batch`, as a ratio."""
        return closest(self.effective_batch_sizes, batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The rungs of a schedule, as rising shares of it; the last is 1.

    Raises:
        SettingError: a share is not a sixteenth, they do not rise, or the last is not 1.
    """

    shares: tuple[float, ...] = (1 / 8, 1 / 2, 1.0)

    def __post_init__(self) -> None:
        sixteenths = [16 * share for share in self.shares]
        if not sixteenths or sixteenths[-1] != 16 or any(share != round(share) or share < 1 for share in sixteenths):
            raise SettingError(f"rungs are multiples of 1/16 of a schedule, and the last is 1; found {self.shares}")
        if any(low >= high for low, high in zip(self.shares, self.shares[1:], strict=False)):
            raise SettingError(f"rungs rise from one to the next; found {self.shares}")

    def beyond(self, peak_lr_fraction: float) -> Ladder:
        """The ladder without the rungs that end before twice the share where the learning rate peaks.

        Measured: at a rung inside the warm-up the leader was up to 19.7 points worse at the end, beyond it at most 0.3.
        """
        return Ladder(shares=tuple(s for s in self.shares if s == 1.0 or s >= 2 * peak_lr_fraction))

    def until(self, level: int, total_steps: int) -> int:
        """The optimizer step at which rung `level` of a schedule ends."""
        return max(1, round(self.shares[level] * total_steps))

    def eta(self, level: int) -> float:
        """Of how many trials at rung `level` one goes on: the ratio of the shares, so that all rungs cost alike."""
        return self.shares[level + 1] / self.shares[level]


DEFAULT_LADDER = Ladder()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How the race is run.

    Attributes:
        seed: of the proposals and, with a trial's number, of its training.
        ladder: the rungs; those inside the warm-up are left out.
        confirmations: full trials reserved for fresh seeds; one where the budget is below six full trials, or the
            lead over the baseline beyond doubt; more where it is close and the budget long (`race.TRIALS_A_PAIR`).
        most_paused: checkpoints kept of paused trials, which bounds the disk; the worst on the lowest rung goes first.
            Assumed: successive halving hardly ever returns to a trial beyond the best sixteen.
        most_trials: configurations tried at most; None for what the time and the space allow.
        keep_checkpoints: so many of the best complete trials keep theirs when the race is over.
        sampler: the name of a search (schedulers/table.py), or any Optuna sampler for successive halving.
        lrs: the only learning rates to propose, rising; any where it is empty.
        earlier: what earlier runs found, each with where it comes from: tried first, as far as memory holds it.
    """

    seed: int = 0
    ladder: Ladder = DEFAULT_LADDER
    confirmations: int = 2
    most_paused: int = 16
    most_trials: int | None = None
    keep_checkpoints: int = 0
    sampler: str | BaseSampler = "auto"
    lrs: tuple[float, ...] = ()
    earlier: tuple[tuple[Config, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a person watching would want to know.

    Attributes:
        kind: "rung started", "rung finished", or "confirming" when the search is over and the fresh seeds begin.
        trial: as it stands after the event; None for "confirming".
        elapsed_s: of the whole run, by the ledger.
        predicted_s: how long what has just started should take; 0 for what has finished.
    """

    kind: EventKind
    trial: Trial | None
    elapsed_s: float
    predicted_s: float = 0.0


def closest(values: Sequence[Number], to: float) -> Number:
    """The one of `values`, all above zero and at least one, whose ratio to `to` is closest to 1."""
    return min(values, key=lambda value: abs(math.log(value / to)))


def scale(batch: int, target_batch: int) -> float:
    """The factor on a learning rate that moves from `batch` to `target_batch`."""
    return float((target_batch / batch) ** LR_EXPONENT)


def has_blown_up(trial: Trial) -> bool:
    """Whether it is taken to have diverged: also where the task raised, as many do when the loss is no number."""
    return trial.outcome in ("diverged", "raised")


def same_config(one: Config, other: Config) -> bool:
    """Whether two configurations are too close to be told apart by training them."""
    close = abs(math.log(one.lr / other.lr)) <= math.log(SAME_LR)
    return one.plan.effective_batch_size == other.plan.effective_batch_size and close


def oriented(score: float, direction: Direction) -> float:
    """The score with its sign turned so that higher is better."""
    return score if direction == "maximize" else -score


def total_steps(plan: Plan, times: StepTimes, horizon_s: float) -> int:
    """Optimizer steps that `plan` takes in `horizon_s` seconds of training, by the profile."""
    return max(1, math.floor(horizon_s / optimizer_step_s(plan, times)))


def optimizer_step_s(plan: Plan, times: StepTimes) -> float:
    """Seconds of one optimizer step of `plan`, by the profile."""
    return plan.accumulation_steps * times.step_s(plan.batch_size)


def space_for(
    facts: TaskFacts,
    times: StepTimes,
    *,
    max_batch: int,
    max_micro_batch: int,
    horizon_s: float,
    baseline: Config,
    lr_hint: float | None = None,
    lr_diverged: float | None = None,
    earlier: Sequence[Config] = (),
) -> Space:
    """The space around a profile and the hints about the learning rate; it holds at least one batch size.

    Batch sizes are the powers of two, times the processes, in [knee / 8, 4 knee] (measured: the best one under equal
    time was within [knee / 4, 2 knee] on eight of eight tables), from `FEWEST_SAMPLES` up where that cuts nothing off
    the measured range, at most an eighth of the training data (assumed: fewer than eight steps an epoch are hardly a
    stochastic method). The range reaches to the baseline's own size wherever that is: somebody trains with it, and a
    knee far above says what the device is good for, not what the data are (NOTES.md, 2026-11-23). Taken are those
    that fit and take at least `MIN_STEPS` steps in the horizon. Where these are under `FEWEST_SIZES`, half and twice
    the baseline's size come in too, as far as they can be run. A task that takes no power of two gets the baseline's
    own size, which it takes, and what that is after doublings and halvings.

    Args:
        facts, times: the task and its throughput profile.
        max_batch, max_micro_batch: the most samples that fit in one forward and backward pass, and in one of several
            that a step accumulates.
        horizon_s: seconds of training of one full trial.
        baseline: its learning rate is a hint, its batch size the last resort where no power of two fits.
        lr_hint: the range test's suggestion at the knee; None without one.
        lr_diverged: the rate at which the range test at the knee blew up, believed where it also suggests one; None
            where it did not.
        earlier: configurations that earlier runs found; their rates lie in the space.
    """
    ranks = facts.baseline.plan.ranks
    knee, batch = ranks * times.knee_batch_size, baseline.plan.effective_batch_size
    most = math.inf if facts.train_size is None else facts.train_size / 8
    own = ranks * 2 ** max(0, round(math.log2(batch / ranks)))
    at_most = max(most, batch)  # what the user trains with is not too much for the data, whatever share of them it is
    low = min(max(knee / 8, min(FEWEST_SAMPLES, knee / 4)), own)
    high = max(min(4 * knee, most), min(own, at_most))

    def can_run(size: int) -> bool:
        plan = times.plan_for(size, max_batch, facts.precision, max_micro_batch)
        return plan is not None and total_steps(plan, times, horizon_s) >= MIN_STEPS

    exponents = range(1 + math.floor(math.log2(max(high, ranks) / ranks)))
    sizes = {size for exponent in exponents if low <= (size := ranks * 2**exponent) <= high and can_run(size)}
    if len(sizes) < FEWEST_SIZES:
        sizes |= {size for size in (own // 2, own, 2 * own) if ranks <= size <= at_most and can_run(size)}
    if not sizes:
        powers = [2**exponent for exponent in range(math.ceil(high).bit_length())]
        near = {batch * power for power in powers} | {batch // power for power in powers if batch % power == 0}
        sizes = {size for size in near if min(low, batch) <= size <= max(high, batch) and can_run(size)}
    hints = [baseline.lr * scale(batch, knee)] + ([lr_hint] if lr_hint else [])
    lr_low, lr_high = min(hints) / 10**LR_DECADES, max(hints) * 10**LR_DECADES
    # Where the loss never fell, nothing shows that the test trained at all: what ended it may be a bad batch at a rate
    # far too low. A bound too high costs trials that diverge on their first rung, one too low the best rates.
    if lr_diverged is not None and lr_hint is not None:
        # A rate that somebody trains with, or that the test itself suggests, stays inside whatever the test says.
        lr_high = max(min(lr_high, lr_diverged), 2 * max(hints))
    found = [config.lr * scale(config.plan.effective_batch_size, knee) for config in earlier]
    lr_low, lr_high = min([lr_low, *found]), max([lr_high, *found])
    return Space(
        effective_batch_sizes=tuple(sorted(sizes)) or (batch,), lr_low=lr_low, lr_high=lr_high, reference_batch=knee
    )


def rounded_lr(lr: float) -> float:
    """The learning rate to three digits: what is printed is then what was run. What cannot be is the next that can."""
    return float(f"{min(max(lr, LEAST_LR), MOST_LR):.3g}")


def last_rung(trial: Trial, eval_batch_size: int) -> Rung:
    """The rung that left the checkpoint at the end of a complete trial."""
    start = trial.scores[-2][0] if len(trial.scores) > 1 else 0
    return Rung(
        trial=trial.number,
        config=trial.config,
        seed=trial.seed,
        start_step=start,
        until_step=trial.total_steps,
        total_steps=trial.total_steps,
        eval_batch_size=eval_batch_size,
    )
