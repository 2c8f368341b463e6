"""Batch sizes that a task's own code refuses: which are tried in their place, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Plan
from autobatch.devices import open_device
from autobatch.errors import DoesNotFit, TaskError
from autobatch.measuring.memory import MaxBatch, find_max_batch_size
from autobatch.measuring.profiling import profile
from autobatch.measuring.taken import Rule, rule_for, rules_for, sure_for
from autobatch.simulated.sim import SimRunner
from autobatch.tasks.task import Task
from autobatch.worker.torch_runner import TorchRunner

Takes = Callable[[int], bool]


@dataclass(slots=True, kw_only=True)
class Picky(SimRunner):
    """A task whose loss raises at the sizes that it does not take."""

    takes: Takes
    asked: list[int] = field(default_factory=list)

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self.asked.append(plan.batch_size)
        if not self.takes(plan.batch_size):
            raise TaskError(f"a training step at batch size {plan.batch_size} failed: ValueError: not so many")
        return SimRunner.probe(self, plan, final=final)


def find(takes: Takes, ceiling: int, own: int = 32, **options: Any) -> tuple[MaxBatch, list[int]]:
    runner = Picky(takes=takes)
    return find_max_batch_size(
        runner, Plan(batch_size=1), ceiling=ceiling, ceiling_is="dataset", own=own, **options
    ), runner.asked


RULES: dict[str, Takes] = {
    "even": lambda size: size % 2 == 0,
    "triplets": lambda size: size % 3 == 0,
    "quadruples": lambda size: size % 4 == 0,
    "eights": lambda size: size % 8 == 0,
    "powers of two": lambda size: size.bit_count() == 1,
    "two at least": lambda size: size >= 2,
    "twenty at least": lambda size: size >= 20,
    "a hundred at most": lambda size: size <= 100,
    "its own at most": lambda size: size <= 48,
    "even, fifty at most": lambda size: size % 2 == 0 and size <= 50,
    "quadruples, twenty at least": lambda size: size % 4 == 0 and size >= 20,
}
MOST_THAT_FIT = 2527


@pytest.mark.parametrize("ceiling", [125, 1000, 4096, 131_072])
@pytest.mark.parametrize("name", RULES)
def test_the_answer_is_the_largest_size_that_fits_and_that_the_task_takes(name: str, ceiling: int) -> None:
    takes = RULES[name]
    own = 32 if name == "powers of two" else 48
    answer, asked = find(takes, ceiling, own, prove=True)
    assert answer == max(size for size in range(1, min(ceiling, MOST_THAT_FIT) + 1) if takes(size))
    assert len(asked) <= 16
    assert len(set(refused := [size for size in asked if not takes(size)])) == len(refused)  # none is tried twice
    larger = [size for size in range(answer + 1, ceiling + 1) if takes(size)]
    assert answer.limited_by == ("dataset" if not larger else "memory") or (
        answer.limited_by == "task" and not larger and name.endswith("most")
    )


def test_what_was_refused_and_what_was_tried_then_is_told() -> None:
    answer, _ = find(RULES["even"], 125)
    assert answer.assumed == (
        "the task does not take every batch size (a training step at batch size 125 failed: ValueError: not so many): "
        "only multiples of 2 were tried after that",
    )
    assert find(lambda size: True, 125)[0].assumed == ()


@given(
    rule=st.builds(
        Rule,
        multiple_of=st.sampled_from([1, 2, 3, 4, 6, 8]),
        power_of_two=st.just(False),
        least=st.integers(1, 24),
        most=st.none() | st.integers(48, 5000),
    )
    | st.builds(Rule, power_of_two=st.just(True), least=st.integers(1, 24), most=st.none() | st.integers(64, 5000)),
    ceiling=st.integers(64, 5000),
    prove=st.booleans(),
)
@example(rule=Rule(multiple_of=2, least=3), ceiling=206, prove=False)  # multiples of 3 take 48 and not 2 either
def test_any_rule_ends_the_search_with_a_size_that_it_takes(rule: Rule, ceiling: int, prove: bool) -> None:
    own = 32 if rule.power_of_two else 48
    answer, asked = find(rule.takes, ceiling, own, prove=prove)
    assert rule.takes(int(answer))
    assert answer <= ceiling
    assert len(asked) <= 60
    if rule.most is None:
        assert answer == max(size for size in range(1, min(ceiling, MOST_THAT_FIT) + 1) if rule.takes(size))


@given(took=st.sets(st.integers(1, 300), min_size=1), refused=st.sets(st.integers(1, 300)))
def test_a_rule_takes_what_was_taken_and_nothing_that_was_refused(took: set[int], refused: set[int]) -> None:
    rule = rule_for(took, refused - took)
    if rule is not None:
        assert all(map(rule.takes, took))
        assert not any(map(rule.takes, refused - took))


@given(took=st.sets(st.integers(1, 300), min_size=1), refused=st.sets(st.integers(1, 300)), size=st.integers(1, 300))
def test_a_size_is_sure_where_all_rules_that_agree_take_it(took: set[int], refused: set[int], size: int) -> None:
    sure, likely = sure_for(took, refused - took), rule_for(took, refused - took)
    assert all(map(sure.takes, took))
    if likely is None:
        assert sure == Rule()
        return
    assert not any(map(sure.takes, refused - took))
    assert likely.takes(size) or not sure.takes(size)
    # Two rules with the same bounds: what is sure is what both take.
    for other in rules_for(took, refused - took):
        if (other.least, other.most) == (likely.least, likely.most):
            assert other.takes(size) or not sure.takes(size)


def test_multiples_of_four_and_of_six_are_told_apart_by_taking_neither_for_sure() -> None:
    took, refused = {12, 372}, {2, 375}
    assert rule_for(took, refused) == Rule(multiple_of=4)
    assert sure_for(took, refused) == Rule(multiple_of=12)


def test_a_task_that_fails_at_any_size_is_at_fault_itself() -> None:
    runner = Picky(takes=lambda size: False)
    with pytest.raises(TaskError, match="at batch size 2 failed"):
        find_max_batch_size(runner, Plan(batch_size=1), ceiling=1000, ceiling_is="dataset", own=32)
    assert len(runner.asked) <= 3


def test_sizes_that_were_asked_for_and_are_not_taken_are_an_error() -> None:
    with pytest.raises(TaskError, match="not so many"):
        find(RULES["powers of two"], 1000, multiple_of=24)
    answer, _ = find(RULES["eights"], 1000, multiple_of=12)
    assert answer == 984


@pytest.mark.parametrize(
    ("takes", "room", "own"),
    [
        (lambda size: size >= 20, 25, 32),
        (lambda size: size >= 20, 20, 40),
        (lambda size: size >= 3, 3, 32),  # multiples of four are what it seems to take
        (lambda size: size % 5 == 0, 5, 40),
        (lambda size: size % 7 == 0, 7, 56),
        (lambda size: size % 16 == 0, 16, 48),
    ],
)
def test_what_fits_is_found_where_nothing_of_the_guessed_rule_does(takes: Takes, room: int, own: int) -> None:
    runner = Picky(takes=takes, peak_bytes=lambda size: size << 20, capacity_bytes=room << 20, headroom=0.0)
    found = find_max_batch_size(runner, Plan(batch_size=1), ceiling=500, ceiling_is="dataset", own=own)
    assert found == room


@pytest.mark.parametrize(("least", "room"), [(2, 1), (8, 1), (8, 7), (64, 1), (64, 7), (64, 30), (64, 63)])
def test_where_nothing_fits_the_error_is_of_memory_whatever_was_refused(least: int, room: int) -> None:
    runner = Picky(
        takes=lambda size: size % least == 0,
        peak_bytes=lambda size: size << 20,
        capacity_bytes=room << 20,
        headroom=0.0,
    )
    with pytest.raises(DoesNotFit, match=rf"a batch of {least} must fit in .*A batch of \d+ does not train"):
        find_max_batch_size(runner, Plan(batch_size=1), ceiling=500, ceiling_is="dataset", own=64)
    assert len(runner.asked) < 40


def test_a_task_that_takes_no_single_sample_and_has_no_room_for_two_says_both() -> None:
    runner = Picky(takes=lambda size: size > 1, peak_bytes=lambda batch: (8 << 30) * batch)
    with pytest.raises(DoesNotFit, match=r"a batch of 2 must fit.*A batch of 1 does not train: .*not so many"):
        find_max_batch_size(runner, Plan(batch_size=1), ceiling=1000, ceiling_is="dataset", own=32)


def task_that_takes(takes: Takes, own: int = 32) -> Task:
    def data() -> TensorDataset:
        x = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
        return TensorDataset(x, x[:, :3].argmax(1))

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        if model.training and not takes(len(batch[0])):
            raise ValueError("the batch has a wrong size")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return Task(
        name="picky",
        model=lambda: nn.Linear(20, 3),
        train_data=data,
        val_data=data,
        loss=loss,
        baseline={"batch_size": own, "lr": 1e-3},
    )


@pytest.mark.parametrize(
    ("name", "ceiling", "expected"),
    [("even", 125, 124), ("quadruples", 125, 124), ("eights", 125, 120), ("powers of two", 125, 64)],
)
def test_real_losses_that_refuse_sizes_are_checked_probed_and_profiled(name: str, ceiling: int, expected: int) -> None:
    runner = TorchRunner(task_that_takes(RULES[name]), open_device("cpu"))
    try:
        own = runner.facts().baseline.plan.batch_size
        found = find_max_batch_size(runner, Plan(batch_size=1), ceiling=ceiling, ceiling_is="dataset", own=own)
        assert found == expected
        curve = profile(runner, Plan(batch_size=1), max_batch=int(found), budget_s=0.01, include=[own], refine=True)
        assert own in [measured.plan.batch_size for measured in curve.timed]
        assert all(RULES[name](measured.plan.batch_size) for measured in curve.timed)
    finally:
        runner.close()


def test_an_error_says_at_which_batch_size_it_came() -> None:
    runner = TorchRunner(task_that_takes(lambda size: size <= 40), open_device("cpu"))
    try:
        runner.facts()
        with pytest.raises(TaskError, match=r"a training step at batch size 41 .*failed: ValueError: the batch has"):
            runner.probe(Plan(batch_size=41))
        with pytest.raises(TaskError, match=r"a training step at batch size 64 .*failed: ValueError"):
            runner.time(Plan(batch_size=64), budget_s=0.01)
        with pytest.raises(TaskError, match=r"a training step at batch size 50 .*failed: ValueError"):
            runner.sweep_lr(Plan(batch_size=50), lowest=1e-5, highest=1.0, steps=10, seed=0)
    finally:
        runner.close()


def test_a_task_that_takes_neither_few_samples_nor_its_own_batch_is_refused_by_the_check() -> None:
    runner = TorchRunner(task_that_takes(lambda size: size > 100), open_device("cpu"))
    with pytest.raises(TaskError, match="the batch has a wrong size"):
        runner.facts()
    runner.close()


def test_a_task_that_takes_only_batches_of_its_own_size_and_more_is_checked_with_one() -> None:
    runner = TorchRunner(task_that_takes(lambda size: size >= 64, own=64), open_device("cpu"))
    assert runner.facts().baseline.plan.batch_size == 64
    runner.close()
