from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.facts import MemoryLimit
from autobatch.core.measurement import Measurement, Outcome
from autobatch.core.plan import Plan
from autobatch.errors import DoesNotFit, SettingError, TaskError, WorkerDied
from autobatch.measuring.bracket import most_probes
from autobatch.measuring.memory import MaxBatch, find_max_batch_size
from autobatch.simulated.sim import SimRunner, draw

MIB = 1 << 20
thorough = settings(max_examples=80)


def find(runner: SimRunner, ceiling: int = 1 << 20, **options: Any) -> MaxBatch:
    limits: dict[str, Any] = {"ceiling": ceiling, "ceiling_is": "ceiling"}
    return find_max_batch_size(runner, Plan(batch_size=1), **limits | options)


def sizes_run(answer: MaxBatch) -> list[int]:
    return [probe.plan.batch_size for probe in answer.probes]


@dataclass(slots=True, kw_only=True)
class Scripted(SimRunner):
    """A simulated runner whose probes `script` may change: (plan, final, what the formula says) -> what is told."""

    script: Callable[[Plan, bool, Measurement], Measurement] = field(default=lambda plan, final, said: said)

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        return self.script(plan, final, SimRunner.probe(self, plan, final=final))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A shape of peak memory that never falls: a maximum of lines, a square, and a step."""

    fixed: int
    floor: int
    per_sample: int
    per_pair: int
    rounding: int
    step: int
    step_at: int

    def __call__(self, batch: int) -> int:
        grows = self.per_sample * batch + self.per_pair * batch * batch
        rounded = -(-grows // self.rounding) * self.rounding
        return max(self.floor, self.fixed + rounded + (self.step if batch >= self.step_at else 0))


shapes = st.builds(
    Memory,
    fixed=st.integers(1, 2000 * MIB),
    floor=st.integers(0, 4000 * MIB),
    per_sample=st.integers(1, 400 * MIB),
    per_pair=st.sampled_from([0, 0, 1, 1000, MIB]),
    rounding=st.sampled_from([1, 512, 2 * MIB, 20 * MIB]),
    step=st.sampled_from([0, 0, 300 * MIB, 3000 * MIB]),
    step_at=st.integers(1, 100_000),
)


def largest_below(limit: int, peak: Callable[[int], int], ceiling: int) -> int:
    low, high = 0, ceiling + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= limit else (low, middle)
    return low


@thorough
@given(
    shape=shapes,
    headroom=st.sampled_from([0.0, 0.05, 0.2]),
    ceiling=st.sampled_from([1, 2, 3, 10, 200, 4096, 131_072]),
    reads_peak=st.booleans(),
    prove=st.booleans(),
)
def test_the_answer_is_exact_wherever_memory_is_monotone(
    shape: Memory, headroom: float, ceiling: int, reads_peak: bool, prove: bool
) -> None:
    runner = SimRunner(peak_bytes=shape, headroom=headroom, reads_peak=reads_peak)
    truth = largest_below(runner.memory().budget_bytes, shape, ceiling)
    if truth == 0:
        with pytest.raises(DoesNotFit, match="a batch of 1 must fit"):
            find(runner, ceiling)
    else:
        answer = find(runner, ceiling, prove=prove)
        assert int(answer) == truth
        assert answer.final_probe.fresh
        assert answer.limited_by == ("ceiling" if truth == ceiling else "memory")
        assert not (prove and truth < ceiling and answer.proof is None)
    assert len(runner.probes) <= most_probes(ceiling)


@thorough
@given(seed=st.integers(0, 10_000), ceiling=st.integers(1, 5000), prove=st.booleans(), power_of_two=st.booleans())
def test_whatever_a_runner_answers_the_search_ends_with_what_ran(
    seed: int, ceiling: int, prove: bool, power_of_two: bool
) -> None:
    """Outcomes and peaks are drawn at random for each size, separately for exploring and for final probes."""

    def anything(plan: Plan, final: bool, said: Measurement) -> Measurement:
        chance = draw(seed, plan.batch_size, final)
        outcomes: tuple[Outcome, ...] = ("ok", "ok", "ok", "over_limit", "oom", "nonfinite", "crashed")
        peak = chance.choice([None, chance.randrange(2 * runner.memory().budget_bytes)])
        return replace(
            said, outcome=chance.choice(outcomes), peak_bytes=peak, alloc_retries=chance.choice([0, 0, 0, 7])
        )

    runner = Scripted(script=anything)
    try:
        answer = find(runner, ceiling, prove=prove, power_of_two=power_of_two)
    except (DoesNotFit, WorkerDied):
        return
    finally:
        assert len(runner.probes) <= most_probes(ceiling)
    assert answer.final_probe.plan.batch_size == answer <= ceiling
    assert answer.final_probe.outcome in ("ok", "nonfinite")


@pytest.mark.parametrize("ceiling", [1, 10, 200, 131_072])
def test_a_ceiling_with_ample_memory_costs_two_probes(ceiling: int) -> None:
    answer = find(SimRunner(peak_bytes=lambda batch: 50_000 * batch), ceiling, ceiling_is="dataset", prove=True)
    assert (int(answer), answer.limited_by) == (ceiling, "dataset")
    assert sizes_run(answer) == ([2, ceiling] if ceiling > 2 else [ceiling])
    assert answer.why_not_proved == f"the batch is limited by the dataset, and no size above {ceiling} was to be tried"


def test_a_straight_line_is_solved_in_a_handful_of_probes_and_no_oom() -> None:
    answer = find(SimRunner())
    assert int(answer) == 2527
    assert len(answer.probes) <= 8
    assert {probe.outcome for probe in answer.probes} == {"ok", "over_limit"}


def test_one_sample_is_tried_only_when_two_do_not_fit() -> None:
    answer = find(SimRunner(peak_bytes=lambda batch: 5000 * MIB * batch))
    assert sizes_run(answer) == [2, 1]
    assert 1 not in sizes_run(find(SimRunner()))


def test_a_wall_at_the_budget_costs_few_ooms() -> None:
    answer = find(SimRunner(headroom=0.0))
    assert int(answer) == 2664
    assert sum(probe.outcome == "oom" for probe in answer.probes) <= 2


def test_without_a_peak_counter_it_doubles_and_bisects() -> None:
    answer = find(SimRunner(reads_peak=False))
    assert int(answer) == 2527
    assert sizes_run(answer)[:4] == [2, 4, 8, 16]
    assert answer.peak_bytes is None
    assert answer.curve == ()


@pytest.mark.parametrize(("options", "expected"), [({"multiple_of": 64}, 2496), ({"power_of_two": True}, 2048)])
def test_only_the_sizes_asked_for_are_tried(options: dict[str, Any], expected: int) -> None:
    answer = find(SimRunner(), prove=True, **options)
    assert int(answer) == expected
    step = options.get("multiple_of", 1)
    assert all(size % step == 0 and (step > 1 or size.bit_count() == 1) for size in sizes_run(answer))
    assert answer.proof is not None
    assert answer.proof.plan.batch_size == (2560 if step > 1 else 4096)


def test_a_dataset_that_is_no_multiple_ends_the_search_below_it() -> None:
    answer = find(SimRunner(), 100, ceiling_is="dataset", multiple_of=64)
    assert (int(answer), answer.limited_by) == (64, "dataset")


def test_the_proof_is_the_next_size_in_a_process_of_its_own() -> None:
    answer = find(SimRunner(), prove=True)
    assert answer.proof is not None
    assert (answer.proof.plan.batch_size, answer.proof.outcome, answer.proof.fresh) == (2528, "over_limit", True)
    assert answer.to_json()["proved"] is True
    assert answer.why_not_proved is None


def test_without_prove_the_next_size_failed_only_while_exploring() -> None:
    answer = find(SimRunner())
    assert answer.to_json()["proved"] is False
    assert answer.why_not_proved is not None
    assert "not run again" in answer.why_not_proved


@pytest.mark.parametrize("headroom", [0.0, 0.05])
@pytest.mark.parametrize("extra", [0.7, 0.99, 1.0, 1.01, 1.6])
def test_final_probes_overrule_exploring_in_both_directions(extra: float, headroom: float) -> None:
    """A final probe needs `extra` times what exploring showed; only final probes may decide."""
    runner = SimRunner(headroom=headroom)
    strict = replace(runner, peak_bytes=lambda batch: int(runner.peak_bytes(batch) * extra))
    asked = Scripted(
        headroom=headroom, script=lambda plan, final, said: strict.probe(plan, final=True) if final else said
    )
    answer = find(asked, prove=True)
    assert int(answer) == largest_below(runner.memory().budget_bytes, strict.peak_bytes, 1 << 20)
    assert len(answer.probes) <= 40


def test_a_final_probe_that_makes_the_allocator_try_again_does_not_count() -> None:
    def thrash(plan: Plan, final: bool, said: Measurement) -> Measurement:
        return replace(said, alloc_retries=3 if final and plan.batch_size > 2000 else 0)

    answer = find(Scripted(script=thrash))
    assert int(answer) == 2000
    assert any("try again 3 times; it is taken as too large" in sentence for sentence in answer.assumed)


def test_a_crash_above_a_size_that_ran_is_taken_as_too_large_and_said() -> None:
    def crash(plan: Plan, final: bool, said: Measurement) -> Measurement:
        if plan.batch_size <= 300:
            return said
        return Measurement(plan=plan, outcome="crashed", seconds=1.0, message="invalid configuration argument")

    answer = find(Scripted(script=crash), assumed=("an image of 224 x 224",))
    assert (int(answer), answer.limited_by) == (300, "memory")
    assert answer.assumed[0] == "an image of 224 x 224"
    assert "(invalid configuration argument); it is taken as too large" in answer.assumed[1]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_step_that_trains_on_less_where_memory_is_short_is_noticed_by_its_peak(share: float) -> None:
    """As one that catches its out-of-memory and takes the first samples of its batch instead."""

    def peak(batch: int) -> int:
        whole = 600 * MIB + 10 * MIB * batch
        return whole if batch <= 650 else 600 * MIB + int(10 * MIB * batch * share)

    answer = find(SimRunner(peak_bytes=peak))
    assert any("may catch an error" in sentence for sentence in answer.assumed), answer.assumed


def test_a_peak_that_wavers_is_no_such_sign() -> None:
    for shape in (
        lambda batch: 10 * MIB * batch - 200 * MIB * (batch % 3),
        lambda batch: MIB * (80 if batch < 9 else 2),
    ):
        answer = find(SimRunner(peak_bytes=shape), 4096)
        assert not any("may catch an error" in sentence for sentence in answer.assumed), answer.assumed


def test_a_loss_that_is_not_finite_leaves_the_memory_measured() -> None:
    def overflow(plan: Plan, final: bool, said: Measurement) -> Measurement:
        return replace(said, outcome="nonfinite")

    answer = find(Scripted(script=overflow), 1000)
    assert int(answer) == 1000
    assert "the loss at batch size 1000 was not finite; its memory was measured" in answer.assumed[-1]


def test_nothing_fits_says_what_one_sample_needs_and_where_the_limit_is_from() -> None:
    with pytest.raises(
        DoesNotFit, match=r"a batch of 1 must fit in 7\.6 GiB \(8 GiB from a formula.*it needs 7\.81 GiB\. Allow more"
    ):
        find(SimRunner(peak_bytes=lambda batch: 8000 * MIB * batch))


class NotOnOne(SimRunner):
    """A task with batch norm, which does not train on one sample."""

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        if plan.batch_size == 1:
            raise TaskError("Expected more than 1 value per channel when training")
        return SimRunner.probe(self, plan, final=final)


def test_what_does_not_train_on_one_sample_and_does_not_fit_with_two_does_not_fit() -> None:
    with pytest.raises(DoesNotFit, match=r"a batch of 2 must fit in 7\.6 GiB.* A batch of 1 does not train: Expected"):
        find(NotOnOne(peak_bytes=lambda batch: 8000 * MIB * batch))
    with pytest.raises(TaskError):  # nothing else was tried: it is the task
        find(NotOnOne(), 1)


def test_nothing_fits_and_nothing_was_measured_says_so() -> None:
    with pytest.raises(DoesNotFit, match=r"a batch of 4 must fit.*was refused by the allocator.*a multiple_of below 4"):
        find(SimRunner(peak_bytes=lambda batch: 9000 * MIB * batch), multiple_of=4)


def test_a_crash_at_the_smallest_size_is_not_called_memory() -> None:
    def crash(plan: Plan, final: bool, said: Measurement) -> Measurement:
        return Measurement(plan=plan, outcome="crashed", message="segmentation fault")

    with pytest.raises(WorkerDied, match=r"a batch of 1; it crashed \(segmentation fault\)"):
        find(Scripted(script=crash))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple_of": 8, "power_of_two": True}, "exclude each other; got multiple_of=8"),
        ({"multiple_of": 0}, "at least 1 and at most the ceiling of 1048576; got 0"),
        ({"multiple_of": 64, "ceiling": 10, "ceiling_is": "dataset"}, "at most the dataset of 10; got 64"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_runs(options: dict[str, Any], message: str) -> None:
    runner = SimRunner()
    with pytest.raises(SettingError, match=message):
        find(runner, **options)
    assert not runner.probes


def test_the_plan_is_a_template_and_each_probe_is_told() -> None:
    seen: list[Measurement] = []
    template = Plan(batch_size=77, accumulation_steps=4, precision="bf16")
    answer = find_max_batch_size(SimRunner(), template, ceiling=500, ceiling_is="ceiling", on_probe=seen.append)
    assert tuple(seen) == answer.probes
    assert {(p.plan.accumulation_steps, p.plan.precision) for p in seen} == {(4, "bf16")}


LIMIT = MemoryLimit(capacity_bytes=100, budget_bytes=95, source="a test")


def ran(size: int, outcome: Outcome = "ok", peak_bytes: int | None = 50) -> Measurement:
    return Measurement(plan=Plan(batch_size=size), outcome=outcome, peak_bytes=peak_bytes, seconds=0.5, fresh=True)


def max_batch(size: int = 8, **changes: Any) -> MaxBatch:
    final_probe = changes.pop("final_probe", ran(8))
    evidence: dict[str, Any] = {
        "final_probe": final_probe,
        "probes": (final_probe,),
        "limit": LIMIT,
        "limited_by": "memory",
    }
    return MaxBatch(size, **evidence | changes)


@pytest.mark.parametrize(
    "claim",
    [
        {"size": 9},
        {"final_probe": ran(8, "oom", None)},
        {"final_probe": ran(8, "over_limit", 97)},
        {"final_probe": ran(8, "nonfinite", 97)},
        {"final_probe": replace(ran(8), alloc_retries=1)},
        {"probes": (ran(4),)},
    ],
)
def test_a_number_that_did_not_run_cannot_be_an_answer(claim: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an answer only if it ran within the memory limit"):
        max_batch(**claim)


@pytest.mark.parametrize("proof", [ran(9), ran(8, "oom"), ran(4, "oom"), ran(9, "crashed", None)])
def test_what_fits_or_is_no_larger_is_no_proof(proof: Measurement) -> None:
    with pytest.raises(ValueError, match="a proof is a larger size that does not fit"):
        max_batch(proof=proof)


def test_an_answer_is_an_int_wherever_one_is_wanted() -> None:
    answer = max_batch()
    assert answer == 8
    assert f"{answer} {answer:>3}" == "8   8"
    assert list(range(20))[:answer] == list(range(8))
    assert json.dumps(answer) == "8"
    assert type(int(answer)) is int
    assert repr(answer) == "MaxBatch(8, limited by memory, peak 50 B of 95 B, 1 probes)"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda answer: pickle.loads(pickle.dumps(answer))])
def test_a_copy_keeps_the_evidence(copied: Callable[[MaxBatch], MaxBatch]) -> None:
    answer = max_batch(assumed=("AdamW",), proof=ran(9, "oom", None))
    again = copied(answer)
    assert type(again) is MaxBatch
    assert (again, again.to_json(), again.limit) == (answer, answer.to_json(), answer.limit)


def test_the_evidence_does_not_change() -> None:
    answer = max_batch()
    with pytest.raises(AttributeError, match="proof cannot be set"):
        answer.proof = ran(9, "oom")


def test_json_has_the_fields_that_users_parse() -> None:
    probes = (ran(2, peak_bytes=20), ran(16, "oom", None), ran(8))
    answer = max_batch(final_probe=probes[-1], probes=probes, assumed=("AdamW",))
    unknown = {"allocated_bytes": None, "alloc_retries": None, "seconds": 0.5, "fresh": True}
    assert json.loads(json.dumps(answer.to_json())) == {
        "batch_size": 8,
        "limited_by": "memory",
        "peak_bytes": 50,
        "allocated_bytes": None,
        "limit_bytes": 95,
        "probes": [
            {"batch_size": 2, "outcome": "ok", "peak_bytes": 20} | unknown,
            {"batch_size": 16, "outcome": "oom", "peak_bytes": None} | unknown,
            {"batch_size": 8, "outcome": "ok", "peak_bytes": 50} | unknown,
        ],
        "assumed": ["AdamW"],
        "proved": False,
        "warnings": [],
    }
    assert answer.curve == ((2, 20), (8, 50))


class Crowded(SimRunner):
    """A card that another process takes memory of while it is searched."""

    others = 1 << 30

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self.others += 200 << 20
        return replace(super().probe(plan, final=final), others_bytes=self.others)


def test_memory_that_others_took_meanwhile_is_told() -> None:
    answer = find(Crowded())
    told = [sentence for sentence in answer.assumed if "other processes" in sentence]
    assert len(told) == 1
    assert told[0].startswith("other processes held between 1.2 GiB and ")
    assert "the answer is for what was left" in told[0]


def test_memory_that_others_hold_all_the_time_is_told_too() -> None:
    class Shared(SimRunner):
        def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
            return replace(super().probe(plan, final=final), others_bytes=1 << 30)

    told = [sentence for sentence in find(Shared()).assumed if "other processes" in sentence]
    assert told == ["other processes held 1 GiB of the device: the answer is for what was left"]


def test_a_crash_is_taken_as_too_large_and_is_no_proof() -> None:
    class Crashing(SimRunner):
        def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
            if plan.batch_size > 40:
                return Measurement(plan=plan, outcome="crashed", message="the worker process ended by SIGSEGV")
            return super().probe(plan, final=final)

    answer = find(Crashing(peak_bytes=lambda batch: batch), prove=True)
    assert (int(answer), answer.proof) == (40, None)
    assert answer.why_not_proved == "the worker crashed at 41, and the cause may be something else than memory"
    assert "proved" not in repr(answer)
