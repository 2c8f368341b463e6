"""What many ranks agree on, without any: rules as properties, and ranks that are threads over formulas."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar, final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.facts import MemoryLimit
from autobatch.core.measurement import Measurement, Outcome
from autobatch.core.plan import Plan
from autobatch.engines.ranks.agreement import (
    Exchange,
    RankInfo,
    Ranks,
    agreed,
    agreed_limit,
    among,
    blamed,
    gathered,
    started_by_torchrun,
)
from autobatch.errors import AutobatchError, DeviceError, DoesNotFit, RankLost, SettingError, TaskError, WorkerDied
from autobatch.measuring.bracket import fits
from autobatch.measuring.memory import MaxBatch, find_max_batch_size
from autobatch.simulated.sim import SimRunner, sim_facts

T = TypeVar("T")
MIB = 1 << 20
PLAN = Plan(batch_size=8)
ORDER: tuple[Outcome, ...] = ("ok", "nonfinite", "over_limit", "oom", "crashed")


@final
class ThreadExchange(Exchange):
    """Ranks that are threads, with a line from each to each."""

    _GONE = object()

    def __init__(self, rank_info: RankInfo, lines: dict[tuple[int, int], queue.SimpleQueue[Any]]) -> None:
        self.rank_info, self._lines = rank_info, lines

    def gather(self, value: Any) -> list[Any]:
        self._send(value)
        values = [self._lines[other, self.rank_info.rank].get(timeout=60) for other in range(self.rank_info.size)]
        if any(value is self._GONE for value in values):
            raise RankLost("a rank left")
        return values

    def leave(self) -> None:
        self._send(self._GONE)

    def _send(self, value: Any) -> None:
        for other in range(self.rank_info.size):
            self._lines[self.rank_info.rank, other].put(value)


def on_ranks(size: int, work: Callable[[ThreadExchange], T]) -> list[T | Exception]:
    """What `work` returned or raised on each rank."""
    lines = {(giver, taker): queue.SimpleQueue[Any]() for giver in range(size) for taker in range(size)}

    def run(rank: int) -> T | Exception:
        exchange = ThreadExchange(RankInfo.on_one_machine(rank, size), lines)
        try:
            return work(exchange)
        except Exception as error:  # noqa: BLE001  # it is what this rank ended with
            exchange.leave()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


# -- one measurement from many


@st.composite
def seen_by_ranks(draw: st.DrawFn) -> tuple[list[Measurement], list[MemoryLimit]]:
    """What some ranks, each with its own limit, saw of one plan; each as a runner would tell it."""
    measurements, limits = [], []
    for _ in range(draw(st.integers(1, 5))):
        budget = draw(st.integers(1, 1000))
        limit = MemoryLimit(capacity_bytes=budget + draw(st.integers(0, 100)), budget_bytes=budget, source="drawn")
        outcome = draw(st.sampled_from(ORDER))
        peak = {
            "ok": st.integers(0, budget),
            "nonfinite": st.integers(0, budget),
            "over_limit": st.integers(budget + 1, budget + 200),
        }.get(outcome, st.none())
        measurements.append(
            Measurement(
                plan=PLAN,
                outcome=outcome,
                peak_bytes=draw(peak),
                alloc_retries=draw(st.none() | st.integers(0, 3)),
                seconds=draw(st.floats(0, 10)),
                fresh=draw(st.booleans()),
                message=draw(st.none() | st.just("refused")) if outcome in ("oom", "crashed") else None,
            )
        )
        limits.append(limit)
    return measurements, limits


@given(seen_by_ranks())
def test_the_worst_of_all_ranks_is_what_they_agree_on(seen: tuple[list[Measurement], list[MemoryLimit]]) -> None:
    measurements, limits = seen
    together, limit = agreed(measurements, limits), agreed_limit(limits)
    assert together.outcome == max((m.outcome for m in measurements), key=ORDER.index)
    assert together.seconds == max(m.seconds for m in measurements)
    assert together.fresh == all(m.fresh for m in measurements)
    retries = [m.alloc_retries for m in measurements if m.alloc_retries is not None]
    assert together.alloc_retries == max(retries, default=None)
    assert limit.budget_bytes == min(each.budget_bytes for each in limits)
    assert limit.budget_bytes <= limit.capacity_bytes


@given(seen_by_ranks(), st.booleans())
def test_it_fits_exactly_where_it_fits_on_every_rank(
    seen: tuple[list[Measurement], list[MemoryLimit]], final: bool
) -> None:
    measurements, limits = seen
    each = [fits(m, limit, final=final) for m, limit in zip(*seen, strict=True)]
    assert fits(agreed(measurements, limits), agreed_limit(limits), final=final) == all(each)


@given(seen_by_ranks())
def test_the_peak_leaves_the_room_of_the_fullest_rank(seen: tuple[list[Measurement], list[MemoryLimit]]) -> None:
    measurements, limits = seen
    together, limit = agreed(measurements, limits), agreed_limit(limits)
    if any(m.peak_bytes is None for m in measurements):
        assert together.peak_bytes is None
        return
    rooms = [b.budget_bytes - (m.peak_bytes or 0) for m, b in zip(measurements, limits, strict=True)]
    assert together.peak_bytes is not None
    assert limit.budget_bytes - together.peak_bytes == min(rooms)
    assert together.peak_bytes >= 0


@given(seen_by_ranks())
def test_no_rank_would_have_run_past_the_wall_that_is_agreed_on(
    seen: tuple[list[Measurement], list[MemoryLimit]],
) -> None:
    _, limits = seen
    limit = agreed_limit(limits)
    for each in limits:
        at_its_wall = replace(_ran(each.capacity_bytes), outcome="ok")
        others = [replace(_ran(0), outcome="ok")] * (len(limits) - 1)
        index = limits.index(each)
        together = agreed([*others[:index], at_its_wall, *others[index:]], limits)
        assert together.peak_bytes is not None
        assert together.peak_bytes >= limit.capacity_bytes


def _ran(peak_bytes: int) -> Measurement:
    return Measurement(plan=PLAN, outcome="ok", peak_bytes=peak_bytes)


def test_what_other_processes_hold_of_any_card_is_kept() -> None:
    seen = [replace(_ran(0), others_bytes=others) for others in (None, 5, 3)]
    limits = [MemoryLimit(capacity_bytes=100, budget_bytes=95, source="free")] * 3
    assert agreed(seen, limits).others_bytes == 5


@given(seen_by_ranks(), st.randoms(use_true_random=False))
def test_the_order_of_ranks_changes_only_names(seen: tuple[list[Measurement], list[MemoryLimit]], random: Any) -> None:
    pairs = list(zip(*seen, strict=True))
    random.shuffle(pairs)
    shuffled = agreed([m for m, _ in pairs], [limit for _, limit in pairs])
    assert replace(shuffled, message=None) == replace(agreed(*seen), message=None)


@given(seen_by_ranks())
def test_one_rank_agrees_with_itself(seen: tuple[list[Measurement], list[MemoryLimit]]) -> None:
    measurements, limits = seen
    assert agreed(measurements[:1], limits[:1]) == measurements[0]
    assert agreed_limit(limits[:1]) == limits[0]


def test_the_message_names_the_ranks_that_decide_unless_all_do() -> None:
    limit = MemoryLimit(capacity_bytes=64 * MIB, budget_bytes=60 * MIB, source="free")
    ok, over = _ran(10), Measurement(plan=PLAN, outcome="over_limit", peak_bytes=62 * MIB)
    refused = Measurement(plan=PLAN, outcome="oom", message="OutOfMemoryError: no")
    assert agreed([ok, refused, ok], [limit] * 3).message == "rank 1: OutOfMemoryError: no"
    assert agreed([refused, ok, refused], [limit] * 3).message == "ranks 0 and 2: OutOfMemoryError: no"
    assert agreed([ok, over], [limit] * 2).message == "rank 1: a peak of 62 MiB, above 60 MiB"
    assert agreed([refused, refused], [limit] * 2).message == "OutOfMemoryError: no"
    assert agreed([ok, ok], [limit] * 2).message is None
    assert blamed([ok, replace(ok, peak_bytes=20)], [limit] * 2) == [1]  # where all fit, the fullest


def test_the_smallest_limit_says_whose_it_is() -> None:
    large = MemoryLimit(capacity_bytes=100, budget_bytes=95, source="free on the device")
    small = MemoryLimit(capacity_bytes=60, budget_bytes=57, source="the memory limit that was set")
    assert agreed_limit([large, small]).source == "the memory limit that was set, on rank 1"
    assert agreed_limit([small, small]).source == "the memory limit that was set"


def test_ranks_in_words() -> None:
    assert [among(ranks, 4) for ranks in ([2], [0, 3], [0, 1, 3], [0, 1, 2, 3])] == [
        "rank 2",
        "ranks 0 and 3",
        "ranks 0, 1 and 3",
        "every rank",
    ]


# -- telling


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_is_raised_on_all_and_names_it(failing: int) -> None:
    def work(exchange: ThreadExchange) -> list[int]:
        def step() -> int:
            if exchange.rank_info.rank == failing:
                raise TaskError("the loss has no gradient")
            return 1

        return gathered(exchange, "a step", step)

    raised = on_ranks(3, work)
    assert [type(error) for error in raised] == [TaskError] * 3
    assert {str(error) for error in raised} == {f"rank {failing}: the loss has no gradient"}


def test_an_error_that_all_ranks_have_is_told_as_it_is() -> None:
    def work(exchange: ThreadExchange) -> list[int]:
        def step() -> int:
            raise DeviceError("there is no cuda:9")

        return gathered(exchange, "opening", step)

    raised = on_ranks(2, work)
    assert [(type(error), str(error)) for error in raised] == [(DeviceError, "there is no cuda:9")] * 2


def test_a_bug_of_ours_stays_itself_where_it_is_and_is_told_to_the_others() -> None:
    def work(exchange: ThreadExchange) -> list[float]:
        return gathered(exchange, "a step", lambda: 1 / exchange.rank_info.rank)

    broken, told = on_ranks(2, work)
    assert isinstance(broken, ZeroDivisionError)
    assert isinstance(told, WorkerDied)
    assert str(told) == "rank 0: ZeroDivisionError: division by zero"


def test_ranks_that_do_different_things_are_refused() -> None:
    def work(exchange: ThreadExchange) -> list[None]:
        return gathered(exchange, f"a probe of {exchange.rank_info.rank}", lambda: None)

    raised = on_ranks(2, work)
    assert [type(error) for error in raised] == [SettingError] * 2
    assert "every rank must do the same; rank 0 was at: a probe of 0; rank 1 was at: a probe of 1" in str(raised[0])


def test_every_error_of_ours_travels() -> None:
    """By its class's name: each must be one that a message alone makes."""
    kinds: list[type[AutobatchError]] = [AutobatchError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    for kind in kinds:
        raised = on_ranks(2, lambda exchange, kind=kind: gathered(exchange, "x", lambda: _raise(kind("why"))))  # type: ignore[misc]
        assert [(type(error), str(error)) for error in raised] == [(kind, "why")] * 2


def _raise(error: Exception) -> None:
    raise error


# -- searching


def search(exchange: Exchange, runner: SimRunner, **settings: Any) -> MaxBatch:
    ranks = Ranks(exchange, runner)
    ceiling = min(100_000, ranks.facts().train_size or 100_000)
    known: dict[str, Any] = {"ceiling": ceiling, "ceiling_is": "ceiling"} | settings
    return ranks.settle(find_max_batch_size(ranks, PLAN, **known))


@st.composite
def runners(draw: st.DrawFn) -> list[Callable[[], SimRunner]]:
    """Ranks with memories of their own, that grow with the batch: a maximum of lines each."""
    made: list[Callable[[], SimRunner]] = []
    for _ in range(draw(st.integers(2, 4))):
        flat, fixed = draw(st.integers(0, 900)), draw(st.integers(0, 500))
        slope, capacity = draw(st.integers(1, 40)), draw(st.integers(1000, 60_000))

        reads = draw(st.booleans())

        def make(
            flat: int = flat, fixed: int = fixed, slope: int = slope, capacity: int = capacity, reads: bool = reads
        ) -> SimRunner:
            return SimRunner(
                peak_bytes=lambda batch: max(flat, fixed + slope * batch) * MIB,
                capacity_bytes=capacity * MIB,
                reads_peak=reads,
            )

        made.append(make)
    return made


@given(runners(), st.booleans())
def test_all_ranks_get_the_smallest_of_what_each_gets_alone(made: list[Callable[[], SimRunner]], prove: bool) -> None:
    alone = []
    for make in made:
        alone.append(int(find_max_batch_size(make(), PLAN, ceiling=50_000, ceiling_is="dataset", prove=prove)))
    here = [make() for make in made]
    found = on_ranks(len(made), lambda exchange: search(exchange, here[exchange.rank_info.rank], prove=prove))
    answers = [answer for answer in found if isinstance(answer, MaxBatch)]
    assert [int(answer) for answer in answers] == [min(alone)] * len(made), found
    assert all(answer.probes == answers[0].probes for answer in answers)
    assert all(runner.probes == here[0].probes for runner in here)  # in lockstep


def test_the_answer_says_which_rank_had_no_room() -> None:
    def work(exchange: ThreadExchange) -> MaxBatch:
        return search(exchange, SimRunner(capacity_bytes=(2 - exchange.rank_info.rank) << 30))

    for found in on_ranks(2, work):
        assert isinstance(found, MaxBatch)
        assert found.limited_by == "memory"
        assert found.assumed == (f"the smallest answer over 2 ranks: rank 1 had no room for {found + 1}",)
        assert found.limit.source == "a formula, on rank 1"


def test_the_rank_with_the_least_data_ends_the_search() -> None:
    def work(exchange: ThreadExchange) -> MaxBatch:
        runner = SimRunner(known=sim_facts(train_size=(70, 40)[exchange.rank_info.rank]))
        return search(exchange, runner, ceiling_is="dataset")

    for found in on_ranks(2, work):
        assert isinstance(found, MaxBatch)
        assert (int(found), found.limited_by) == (40, "dataset")
        assert found.assumed == ("the smallest answer over 2 ranks: rank 1 has the least training data",)


def test_one_rank_on_which_nothing_fits_ends_it_for_all() -> None:
    def work(exchange: ThreadExchange) -> MaxBatch:
        return search(exchange, SimRunner(capacity_bytes=(8 << 30, 1 << 20)[exchange.rank_info.rank]))

    raised = on_ranks(2, work)
    assert [type(error) for error in raised] == [DoesNotFit] * 2
    assert "a formula, on rank 1" in str(raised[0])


def test_ranks_with_different_settings_do_not_wait_for_each_other() -> None:
    def work(exchange: ThreadExchange) -> MaxBatch:
        runner = SimRunner(capacity_bytes=2 << 30)
        return search(exchange, runner, ceiling=64 if exchange.rank_info.rank else 128)

    raised = on_ranks(2, work)
    assert [type(error) for error in raised] == [SettingError] * 2
    assert "Plan(batch_size=64" in str(raised[0])


def test_a_rank_that_searches_on_is_told_that_the_others_have_ended() -> None:
    def work(exchange: ThreadExchange) -> MaxBatch:
        return search(exchange, SimRunner(capacity_bytes=2 << 30), prove=exchange.rank_info.rank == 0)

    raised = on_ranks(2, work)
    assert [type(error) for error in raised] == [SettingError] * 2
    assert "rank 1 was at: the answer" in str(raised[0])


def test_a_rank_that_leaves_is_noticed() -> None:
    def work(exchange: ThreadExchange) -> MaxBatch:
        def told(probe: Measurement) -> None:
            if exchange.rank_info.rank == 1:
                raise KeyError("a listener of the user's")

        return search(exchange, SimRunner(), on_probe=told)

    raised = on_ranks(2, work)
    assert [type(error) for error in raised] == [RankLost, KeyError]


# -- torchrun's variables

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("changes", "is_one"),
    [({}, True), ({"WORLD_SIZE": "1"}, False), ({"WORLD_SIZE": "two"}, False), ({"WORLD_SIZE": ""}, False)],
)
def test_a_rank_is_known_by_what_torchrun_gives_it(changes: dict[str, str], is_one: bool) -> None:
    assert started_by_torchrun(TORCHRUN | changes) == is_one


@pytest.mark.parametrize("missing", sorted(TORCHRUN))
def test_a_part_of_them_does_not_make_a_rank(missing: str) -> None:
    assert not started_by_torchrun({name: value for name, value in TORCHRUN.items() if name != missing})
