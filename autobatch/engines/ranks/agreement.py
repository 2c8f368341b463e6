"""One answer from many ranks: each probes by itself, then they exchange the results.

A collective that one rank does not reach, because it ran out of memory on the way, leaves all others waiting. So a
probe has no collective: each rank takes its steps alone (see `stand_in.py`), and afterwards they exchange the results,
including out-of-memory and errors. The next size is a function of the results, so all ranks try the same sizes in the
same order and end with the same number: what fits on the rank with the least room.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

from ... import errors
from ...core.facts import MemoryLimit, TaskFacts
from ...core.measurement import Measurement, Outcome
from ...core.plan import Plan
from ...core.runner import Prober
from ...core.units import format_size
from ...errors import AutobatchError, SettingError, WorkerDied
from ...measuring.memory import MaxBatch

T = TypeVar("T")

# A crash comes first: no other rank's memory explains it.
_WORST_FIRST: tuple[Outcome, ...] = ("crashed", "oom", "over_limit", "nonfinite", "ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """The place of a process among those that train one model.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        local_rank: its number among those of its machine.
        local_size: the number of processes on its machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def on_one_machine(cls, rank: int, size: int) -> RankInfo:
        """The place of a process whose ranks all run on one machine."""
        return cls(rank=rank, size=size, local_rank=rank, local_size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where the processes that train one model find each other.

    Attributes:
        file: a file on this machine, a new one for each team.
        port: a free port of this machine, for task files that read MASTER_PORT.
        limit_s: seconds that a collective may wait for a rank.
    """

    file: Path
    port: int
    limit_s: float


def started_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether these variables are those of one of several ranks that torchrun started.

    WORLD_SIZE and RANK alone do not show it: clusters set them in every container, for any program.
    """
    size = environment.get("WORLD_SIZE", "")
    known = ("RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    return size.isdecimal() and int(size) > 1 and all(name in environment for name in known)


def in_process_group() -> bool:
    """Whether torch.distributed has connected this process with others. Imports no torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


class Exchange(ABC):
    """How ranks exchange values. Every rank calls `gather` the same number of times.

    Attributes:
        rank_info: that of this process.
    """

    rank_info: RankInfo

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The values that the ranks passed, in the order of ranks.

        Raises:
            RankLost: a rank ended, or did not arrive in time.
        """


def among(ranks: Sequence[int], size: int) -> str:
    """These ranks in words: "rank 1", "ranks 0 and 2", "every rank"."""
    if len(ranks) == size:
        return "every rank"
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def agreed_limit(limits: Sequence[MemoryLimit]) -> MemoryLimit:
    """The limit for the peaks of `agreed`: the smallest budget, and the nearest capacity above it."""
    tightest = min(limits, key=lambda limit: limit.budget_bytes)
    where = [rank for rank, limit in enumerate(limits) if limit.budget_bytes == tightest.budget_bytes]
    source = tightest.source
    if len(where) < len(limits):
        source = f"{source}, on {among(where, len(limits))}"
    cushion = min(limit.capacity_bytes - limit.budget_bytes for limit in limits)
    return MemoryLimit(
        capacity_bytes=tightest.budget_bytes + cushion, budget_bytes=tightest.budget_bytes, source=source
    )


def blamed(measurements: Sequence[Measurement], limits: Sequence[MemoryLimit]) -> list[int]:
    """The ranks that decide: those with the worst outcome or, if all fit, those with the least room left."""
    worst = min((_WORST_FIRST.index(measured.outcome) for measured in measurements), default=0)
    if _WORST_FIRST[worst] != "ok":
        return [rank for rank, m in enumerate(measurements) if m.outcome == _WORST_FIRST[worst]]
    rooms = _rooms(measurements, limits)
    return [rank for rank, room in rooms.items() if room == min(rooms.values())]


def _rooms(measurements: Sequence[Measurement], limits: Sequence[MemoryLimit]) -> dict[int, int]:
    """By rank, the bytes of the budget that were left; negative above the budget."""
    return {
        rank: limit.budget_bytes - measured.peak_bytes
        for rank, (measured, limit) in enumerate(zip(measurements, limits, strict=True))
        if measured.peak_bytes is not None
    }


def agreed(measurements: Sequence[Measurement], limits: Sequence[MemoryLimit]) -> Measurement:
    """The worst result of one plan over the ranks, as one measurement against `agreed_limit(limits)`.

    Its peak leaves as much room below the smallest budget as the fullest rank has below its own, so that the next size
    follows that rank's curve. It is unknown if that of one rank is. The message names the ranks with the worst outcome,
    unless all have it.
    """
    deciding = blamed(measurements, limits)
    first = measurements[deciding[0] if deciding else 0]
    rooms = _rooms(measurements, limits)
    retries = [measured.alloc_retries for measured in measurements if measured.alloc_retries is not None]
    message = first.message
    if first.outcome != "ok" and len(deciding) < len(measurements):
        message = f"{among(deciding, len(measurements))}: {message or _outcome_text(first, limits[deciding[0]])}"
    smallest = min(limit.budget_bytes for limit in limits)
    return Measurement(
        plan=first.plan,
        outcome=first.outcome,
        peak_bytes=None if len(rooms) < len(measurements) else smallest - min(rooms.values()),
        allocated_bytes=first.allocated_bytes,
        others_bytes=max((m.others_bytes for m in measurements if m.others_bytes is not None), default=None),
        alloc_retries=max(retries, default=None),
        seconds=max(measured.seconds for measured in measurements),
        fresh=all(measured.fresh for measured in measurements),
        message=message,
    )


def _outcome_text(measured: Measurement, limit: MemoryLimit) -> str:
    """The outcome in words, for a measurement without a message."""
    if measured.outcome == "over_limit" and measured.peak_bytes is not None:
        return f"a peak of {format_size(measured.peak_bytes)}, above {format_size(limit.budget_bytes)}"
    return measured.outcome


@dataclass(frozen=True, slots=True)
class _RankReport:
    """What one rank did: the question, and its answer or the class and text of its error."""

    question: str
    answer: Any = None
    error: tuple[str, str] | None = None


def gathered(exchange: Exchange, question: str, work: Callable[[], T]) -> list[T]:
    """Run `work` on every rank. Returns its values in the order of ranks, once all are done.

    Args:
        question: what is done, in words that are the same on every rank.
        work: its value is sent to the other ranks, so it must be picklable.

    Raises:
        AutobatchError: `work` raised it here or on another rank. It is the same on all ranks, and names the rank.
        SettingError: the ranks are not doing the same thing.
        RankLost: a rank ended, or did not arrive in time.
    """
    try:
        report = _RankReport(question, work())
    except AutobatchError as error:
        report = _RankReport(question, error=(type(error).__name__, str(error)))
    except Exception as error:  # the others learn of it, and here it is raised as it is
        exchange.gather(_RankReport(question, error=(WorkerDied.__name__, f"{type(error).__name__}: {error}")))
        raise
    reports: list[_RankReport] = exchange.gather(report)
    failed = [rank for rank, other in enumerate(reports) if other.error is not None]
    if failed:
        raise same_error([other.error for other in reports if other.error is not None], failed, len(reports))
    questions = [other.question for other in reports]
    odd = next((rank for rank, other in enumerate(questions) if other != questions[0]), None)
    if odd is not None:
        raise SettingError(
            f"every rank must do the same; rank 0 was at: {questions[0]}; rank {odd} was at: "
            f"{questions[odd]}. Call it on all ranks with the same model, data and arguments"
        )
    return [other.answer for other in reports]


def same_error(errors: Sequence[tuple[str, str]], failed: Sequence[int], size: int) -> AutobatchError:
    """The error of the first rank that failed. It names the failed ranks, unless all ranks have the same error."""
    kind, text = errors[0]
    if len(failed) == size and len({*errors}) == 1:
        return _class(kind)(text)
    return _class(kind)(f"{among(failed, size)}: {text}")


def _class(kind: str) -> type[AutobatchError]:
    error_class: type[AutobatchError] = getattr(errors, kind)
    return error_class


@final
class Ranks(Prober):
    """The probers of all ranks as one: each probes by itself, and all get the same answer.

    Args:
        exchange: the exchange with the other ranks.
        prober: that of this rank. Its limit and its data may differ from those of the others.
        assumed: sentences to keep in the answer.
    """

    def __init__(self, exchange: Exchange, prober: Prober, *, assumed: Sequence[str] = ()) -> None:
        self._exchange, self._prober, self._assumed = exchange, prober, assumed
        self._limits: list[MemoryLimit] | None = None
        self._train_sizes: list[int | None] = []
        self._blamed: dict[int, list[int]] = {}  # by batch size

    @property
    def rank_info(self) -> RankInfo:
        """The place of this rank among them."""
        return self._exchange.rank_info

    def facts(self) -> TaskFacts:
        """This rank's facts, with the training data of the rank that has the least."""
        everyone = gathered(self._exchange, "the task's facts", self._prober.facts)
        self._train_sizes = [facts.train_size for facts in everyone]
        return replace(
            everyone[self._exchange.rank_info.rank],
            train_size=min((size for size in self._train_sizes if size is not None), default=None),
        )

    def memory(self) -> MemoryLimit:
        if self._limits is None:
            self._limits = gathered(self._exchange, "the memory limit", self._prober.memory)
        return agreed_limit(self._limits)

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self.memory()
        assert self._limits is not None
        question = f"{'a final probe' if final else 'a probe'} of {plan}"
        measurements = gathered(self._exchange, question, lambda: self._prober.probe(plan, final=final))
        self._blamed[plan.batch_size] = blamed(measurements, self._limits)
        return agreed(measurements, self._limits)

    def settle(self, answer: MaxBatch) -> MaxBatch:
        """The answer, once every rank has it, with the rank that decided it among the assumptions.

        Raises:
            SettingError: the ranks have different answers, or one is not done.
        """
        size = self._exchange.rank_info.size
        gathered(self._exchange, f"the answer {int(answer)}", lambda: None)
        too_large = min((batch for batch in self._blamed if batch > answer), default=None)
        sentence = f"the smallest answer over {size} rank{'s' if size > 1 else ''}"
        if answer.limited_by == "memory" and too_large is not None:
            sentence = f"{sentence}: {among(self._blamed[too_large], size)} had no room for {too_large}"
        elif answer.limited_by == "dataset":
            fewest = [rank for rank, samples in enumerate(self._train_sizes) if samples == int(answer)]
            if 0 < len(fewest) < size:
                sentence = f"{sentence}: {among(fewest, size)} has the least training data"
        return MaxBatch(int(answer), **(vars(answer) | {"assumed": (*answer.assumed, *self._assumed, sentence)}))
