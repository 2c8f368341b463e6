"""What a race is made of, as frozen data: trials, their rungs, the settings, and the events of its progress.

Everything here is a pure function of the race's data, so that one process, many workers or a resumed run decide alike.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ..core.plan import Config, Direction, Plan, Precision
from ..core.progress import Standing
from ..core.segment import GradNorms, SegmentOutcome, TrainSegment
from ..errors import SettingError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Role = Literal["baseline", "warm start", "search", "confirmation"]
EventKind = Literal["segment started", "segment finished", "confirming"]
State = Literal["running", "paused", "complete", "dropped", "failed"]

# Outcomes that say something about the task or the machine rather than about a configuration.
ERRORS = ("raised", "crashed")

# A training of fewer optimizer steps is not worth comparing. Assumed. It also keeps the rungs of every schedule within
# 1/64 of their nominal share, so that scores at one rung are comparable at any batch size.
MIN_STEPS = 32


class StepTimes(Protocol):
    """What the search needs from a throughput profile."""

    @property
    def knee_batch_size(self) -> int:
        """The smallest batch size that reaches 80 % of the highest samples per second."""

    def step_s(self, batch_size: int) -> float:
        """Seconds of one forward, backward and optimizer step at `batch_size`, data loading included."""

    def plan_for(self, effective_batch: int, max_batch: int, precision: Precision, max_micro_batch: int) -> Plan | None:
        """The fastest plan of this effective batch size; None if there is none.

        It has at most `max_batch` samples at once, and at most `max_micro_batch` if it accumulates.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration under one seed, and how far it was trained.

    Attributes:
        number: names the trial and its checkpoint. Trials are numbered in the order in which they were started.
        total_steps: optimizer steps of the whole schedule, fixed when the trial starts.
        role: "baseline", "warm start", "search", or "confirmation" for a fresh seed of a configuration tried before.
        origin: the reason why it was tried, in one sentence.
        state: a "paused" trial may be resumed, a "complete" one was trained to the end, a "dropped" one could have gone
            on but was not worth it, and a "failed" one cannot go on.
        scores: (optimizer steps done, validation score) at each rung.
        outcome: of the last segment; "ok" before the first.
        message: of the last segment, if it did not end well.
        grad_norms: of each segment that recorded some, including the last one of a failed trial.
        seconds: wall seconds spent.
        predicted_s: seconds that the profile predicted for the same work.
    """

    number: int
    config: Config
    seed: int
    total_steps: int
    role: Role
    origin: str
    state: State = "running"
    scores: tuple[tuple[int, float], ...] = ()
    outcome: SegmentOutcome = "ok"
    message: str | None = None
    grad_norms: tuple[GradNorms, ...] = ()
    seconds: float = 0.0
    predicted_s: float = 0.0

    @property
    def steps_done(self) -> int:
        """Optimizer steps at the last score, where the trial would be resumed."""
        return self.scores[-1][0] if self.scores else 0

    @property
    def is_challenger(self) -> bool:
        """Whether it was tried because it might beat the baseline. A fresh seed is no challenger."""
        return self.role in ("warm start", "search")

    @property
    def final_score(self) -> float | None:
        """The score at the end of the schedule; None if the trial did not get there."""
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
class Ladder:
    """The rungs of a schedule, as rising shares of it. The last one is 1.

    Raises:
        SettingError: a share is not a multiple of a sixteenth, the shares do not rise, or the last is not 1.
    """

    shares: tuple[float, ...] = (1 / 8, 1 / 2, 1.0)

    def __post_init__(self) -> None:
        sixteenths = [16 * share for share in self.shares]
        if not sixteenths or sixteenths[-1] != 16 or any(share != round(share) or share < 1 for share in sixteenths):
            raise SettingError(f"rungs are multiples of 1/16 of a schedule, and the last is 1; found {self.shares}")
        if any(low >= high for low, high in zip(self.shares, self.shares[1:], strict=False)):
            raise SettingError(f"rungs rise from one to the next; found {self.shares}")

    def beyond(self, peak_lr_fraction: float) -> Ladder:
        """The ladder without the rungs before twice the share at which the learning rate peaks.

        Measured: the leader at a rung inside the warm-up was up to 19.7 points worse at the end; beyond it, at most
        0.3.
        """
        return Ladder(shares=tuple(s for s in self.shares if s == 1.0 or s >= 2 * peak_lr_fraction))

    def repeats(self, *, resumes: bool) -> float:
        """Times that a trial through all its rungs trains its whole length: more than once where none is resumed."""
        return 1.0 if resumes else sum(self.shares)

    def until(self, level: int, total_steps: int) -> int:
        """The optimizer step at which rung `level` of a schedule ends."""
        return max(1, round(self.shares[level] * total_steps))

    def eta(self, level: int) -> float:
        """The number of trials at rung `level` out of which one goes on: the ratio of the shares, so that all rungs
        cost the same.
        """
        return self.shares[level + 1] / self.shares[level]


DEFAULT_LADDER = Ladder()
IN_ONE_GO = Ladder(shares=(1.0,))  # of trials that a pause would change


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """The settings of a race.

    Attributes:
        seed: of the proposals and, with a trial's number, of its training.
        ladder: the rungs; those inside the warm-up are left out.
        confirmations: full trials reserved for fresh seeds. It is one if the budget is below six full trials or the
            lead over the baseline is beyond doubt, and more if the lead is close and the budget long
            (`reserve.TRIALS_A_PAIR`).
        most_paused: the most paused trials that keep a checkpoint, which bounds the disk. The worst on the lowest rung
            goes first. Assumed: successive halving hardly ever returns to a trial beyond the best sixteen.
        most_trials: the most configurations to try; None for as many as the time and the space allow.
        keep_checkpoints: how many of the best complete trials keep their checkpoints when the race is over.
        sampler: the name of a search (schedulers/table.py), or any Optuna sampler for successive halving.
        lrs: the only learning rates to propose, in rising order; empty for any.
        earlier: the choices of earlier runs, each with its source. They are tried first, if memory holds them.
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
    """Something that a person who watches the race wants to know.

    Attributes:
        kind: "segment started", "segment finished", or "confirming" when the search is over and the fresh seeds begin.
        trial: its state after the event; None for "confirming".
        elapsed_s: of the whole run, by the ledger.
        predicted_s: predicted seconds of a segment that has just started; 0 for one that has finished.
        standing: how the race stands then; None before anything has a score.
    """

    kind: EventKind
    trial: Trial | None
    elapsed_s: float
    predicted_s: float = 0.0
    standing: Standing | None = None


def has_blown_up(trial: Trial) -> bool:
    """Whether it counts as diverged. That includes errors of the task, as many tasks raise when the loss is not a
    number.
    """
    return trial.outcome in ("diverged", "raised")


def oriented(score: float, direction: Direction) -> float:
    """The score with its sign turned so that higher is better."""
    return score if direction == "maximize" else -score


def total_steps(plan: Plan, times: StepTimes, horizon_s: float) -> int:
    """Optimizer steps that `plan` takes in `horizon_s` seconds of training, by the profile."""
    return max(1, math.floor(horizon_s / optimizer_step_s(plan, times)))


def optimizer_step_s(plan: Plan, times: StepTimes) -> float:
    """Seconds of one optimizer step of `plan`, by the profile."""
    return plan.accumulation_steps * times.step_s(plan.batch_size)


def last_segment(trial: Trial, eval_batch_size: int) -> TrainSegment:
    """The segment that left the checkpoint at the end of a complete trial."""
    start = trial.scores[-2][0] if len(trial.scores) > 1 else 0
    return TrainSegment(
        trial=trial.number,
        config=trial.config,
        seed=trial.seed,
        start_step=start,
        until_step=trial.total_steps,
        total_steps=trial.total_steps,
        eval_batch_size=eval_batch_size,
    )
