"""Configurations check their numbers, wherever these come from, and before anything is trained with them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from autobatch.core.json_reader import Reader
from autobatch.core.plan import LEAST_LR, MOST_LR, MOST_SAMPLES, Config, Plan
from autobatch.devices import open_device
from autobatch.errors import ReportError, SettingError, TaskError
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.measuring.profiling import profile
from autobatch.reports.report import Report
from autobatch.runs.settings import TuneSettings
from autobatch.searching.space import rounded_lr
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tasks.task import Task, load_task
from autobatch.worker.torch_runner import TorchRunner

from ..helpers.reports import example
from ..searching.test_search import race

RATES = [0, -1, 1e308, 1e31, 1e-31, -0.0]
SIZES = [(10**18, 1, 1), (0, 1, 1), (2**20, 2**12, 1), (1024, 1024, 4096), (1, 10**12, 1)]


@pytest.mark.parametrize("rate", [*RATES, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"a learning rate lies between 1e-30 and 1e\+30; got"):
        Config(plan=Plan(batch_size=32), lr=rate)


@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_cannot_be_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1; got|at most 2,147,483,647 samples; got"):
        Plan(batch_size=size[0], accumulation_steps=size[1], ranks=size[2])


@given(st.floats(0, math.inf))
def test_what_is_proposed_can_always_be_tried(rate: float) -> None:
    assert LEAST_LR <= Config(plan=Plan(batch_size=MOST_SAMPLES), lr=rounded_lr(rate)).lr <= MOST_LR


@pytest.mark.parametrize("rate", RATES)
def test_a_report_with_such_a_rate_is_refused(rate: float) -> None:
    data = json.loads(json.dumps(example().to_json()))
    data["plan"]["lr"] = rate
    with pytest.raises(ReportError, match="'plan' of the report cannot be: a learning rate lies between"):
        Report.from_json(data)


@pytest.mark.parametrize("size", SIZES)
def test_a_report_or_a_run_with_such_a_size_is_refused(size: tuple[int, int, int]) -> None:
    plan = dict(zip(("batch_size", "accumulation_steps", "ranks"), size, strict=True))
    data = json.loads(json.dumps(example().to_json()))
    data["plan"] |= plan
    with pytest.raises(ReportError, match="'plan' of the report cannot be: "):
        Report.from_json(data)
    settings = TuneSettings(name="digits").to_json()
    earlier = {"plan": data["plan"], "created": "2026-01-02T03:04:05+00:00", "task": "digits"}
    with pytest.raises(ReportError, match="'plan' of an earlier run cannot be: "):
        TuneSettings.from_json(Reader(settings | {"earlier": [earlier]}, "the settings"))


def test_a_run_with_such_a_rate_is_refused() -> None:
    plan = example().to_json()["plan"] | {"lr": -1.0}
    earlier = {"plan": plan, "created": "2026-01-02T03:04:05+00:00", "task": "digits"}
    with pytest.raises(ReportError, match=r"cannot be: a learning rate lies between .* got -1\.0"):
        TuneSettings.from_json(Reader(TuneSettings(name="digits").to_json() | {"earlier": [earlier]}, "the settings"))


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("{'batch_size': 32, 'lr': 1e308}", r"'lr' must lie between 1e-30 and 1e\+30; found 1e\+308"),
        ("{'batch_size': 32, 'lr': 1e-300}", r"'lr' must lie between"),
        ("{'batch_size': 32, 'lr': -1}", r"'lr' must be a number above zero; found -1"),
        ("{'batch_size': 10**18, 'lr': 0.1}", "'batch_size' must be at most 2147483647"),
        ("{'batch_size': 2**20, 'accumulation_steps': 2**12, 'lr': 0.1}", "batch_size x accumulation_steps must be at"),
    ],
)
def test_a_task_with_such_a_baseline_is_refused(baseline: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        f"baseline = {baseline}\ndef model(): ...\ndef train_data(): ...\ndef val_data(): ...\n", encoding="utf-8"
    )
    with pytest.raises(TaskError, match=message):
        load_task(path)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1e-40, 1.0), (1e-7, 1e300), (1.0, 0.1)])
def test_a_range_test_keeps_to_rates_that_can_be(low: float, high: float) -> None:
    with pytest.raises(SettingError, match="a range test goes from a rate to a higher one"):
        find_lr_curve(SimRunner(), Plan(batch_size=64), lowest=low, highest=high)


def test_the_largest_batch_there_may_be_is_split_at_once() -> None:
    """By its divisors up to the root: counting to it takes hours."""
    curve = profile(SimRunner(), Plan(batch_size=1), max_batch=512, budget_s=5.0)
    plan = curve.plan_for(2**30, 512, "fp32")
    assert plan is not None
    assert plan.effective_batch_size == 2**30


@pytest.mark.parametrize("lr", [LEAST_LR, 1e7, MOST_LR])
def test_the_outermost_rates_are_raced_like_any_other(lr: float) -> None:
    baseline = Config(plan=Plan(batch_size=32), lr=lr)
    found = race(SimRunner(known=sim_facts(baseline=baseline)), budget_s=300.0).result
    assert not found.chose_baseline
    assert all(LEAST_LR <= trial.config.lr <= MOST_LR for trial in found.trials)


def test_a_warm_start_of_the_largest_size_is_left_out_and_says_so() -> None:
    huge: Any = Config(plan=Plan(batch_size=2**30, accumulation_steps=1), lr=1e-3)
    found = race(SimRunner(), budget_s=300.0, earlier=((huge, "the answer of an earlier run"),)).result
    assert any("the answer of an earlier run was not tried: batch 1073741824" in reason for reason in found.why)


class Short(IterableDataset[Any]):
    """Twenty samples, and no length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.zeros(2), 0)] * 20)


def test_a_stream_that_ends_before_one_batch_of_the_baseline_is_refused_before_training() -> None:
    samples = TensorDataset(torch.zeros(20, 2), torch.zeros(20, dtype=torch.long))
    made = Task(
        model=lambda: nn.Linear(2, 2),
        train_data=Short,
        val_data=lambda: samples,
        baseline={"batch_size": 10_000_000, "lr": 1e-3},
    )
    runner = TorchRunner(made, open_device("cpu"))
    with pytest.raises(TaskError, match="has 20 samples, fewer than the baseline's batch of 10000000: declare a base"):
        runner.facts()
    runner.close()
