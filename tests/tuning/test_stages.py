"""Each stage says what kind of thing happens and what it is about, so that nobody reads it from the words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autobatch.bench.run import _within
from autobatch.core.measurement import LrSweep
from autobatch.core.plan import Config, Plan
from autobatch.core.progress import Progress
from autobatch.errors import NoValidResult
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tuning.stages import (
    ceiling_of,
    largest_micro_batch,
    lr_curve_of,
    max_batch_of,
    profile_of,
    useful_ceiling,
)

ONE = Plan(batch_size=1)


def runner() -> SimRunner:
    return SimRunner(peak_bytes=lambda batch: batch << 20, capacity_bytes=100 << 20, headroom=0.0)


def test_a_probe_that_ran_is_found_and_one_that_did_not_has_failed() -> None:
    told: list[Progress] = []
    largest = max_batch_of(runner(), ONE, on_progress=told.append)
    assert largest == 100
    assert {progress.stage for progress in told} == {"memory"}
    for progress, probe in zip(told, largest.probes, strict=True):
        assert progress.kind == ("found" if probe.outcome == "ok" else "failed")
        assert progress.key == f"batch {probe.plan.batch_size}"
        assert progress.text.startswith(f"{progress.key}: ")
    assert [p.key for p in told if p.kind == "found"][-1] == "batch 100"
    told.clear()
    accumulated = largest_micro_batch(runner(), largest, on_progress=told.append)
    assert told[-1].kind == "found"
    assert told[-1].key == f"accumulating, batch {accumulated}"


def test_a_size_has_the_same_key_each_time_that_it_is_timed() -> None:
    told: list[Progress] = []
    curve = profile_of(runner(), ONE, 64, budget_s=5.0, on_progress=told.append)
    assert {progress.key for progress in told} == {f"batch {m.plan.batch_size}" for m in curve.measurements}
    assert {(progress.stage, progress.kind) for progress in told} == {("profile", "found")}
    assert len(told) > len(curve.measurements)


def test_a_bench_tells_each_size_once_and_every_probe() -> None:
    told: list[Progress] = []
    heard = _within("resnet50 in bf16", told.append)
    for stage, key in [("profile", "batch 8"), ("profile", "batch 8"), ("memory", "batch 8"), ("memory", "batch 8")]:
        heard(Progress(stage=stage, kind="found", key=key, text="more: of it: anything"))  # type: ignore[arg-type]
    for _ in range(2):
        heard(Progress(stage="profile", kind="note", text="about the whole"))
    assert [progress.text.removeprefix("resnet50 in bf16: ") for progress in told] == [
        *["more: of it: anything"] * 3,
        *["about the whole"] * 2,
    ]
    assert {progress.stage for progress in told} == {"bench"}
    assert not {progress.key for progress in told} & {None, "cell 1"}  # what is under way goes on


class Flat(SimRunner):
    """A range test whose loss does not fall."""

    def sweep_lr(self, plan: Plan, **how: Any) -> LrSweep:
        found = super().sweep_lr(plan, **how)
        return replace(found, losses=(1.0,) * len(found.losses), diverged=False)


class Fails(SimRunner):
    """A range test that cannot be run."""

    def sweep_lr(self, plan: Plan, **how: Any) -> LrSweep:
        raise NoValidResult("the range test ran out of memory")


def test_a_range_test_that_suggests_nothing_has_failed() -> None:
    told: list[Progress] = []

    def test_of(runner: SimRunner) -> float | None:
        told.clear()
        plan = Plan(batch_size=8, accumulation_steps=4)
        return lr_curve_of(runner, plan, steps=40, seed=0, on_progress=told.append).suggestion

    assert test_of(SimRunner()) is not None
    assert [progress.kind for progress in told] == ["began", "found"]
    assert told[0].text == "40 steps at effective batch 32"
    assert told[1].text.startswith("min/10 suggests ")
    assert test_of(Flat()) is None
    assert [progress.kind for progress in told] == ["began", "failed"]
    assert told[1].text.startswith("min/10 suggests nothing at effective batch 32")
    with pytest.raises(NoValidResult):
        test_of(Fails())
    assert [progress.kind for progress in told] == ["began", "failed"]
    assert told[1].text == "the range test ran out of memory"


@pytest.mark.parametrize(
    ("train_size", "asked", "of_a_verb", "of_tune"),
    [
        (1000, None, (1000, "dataset"), (125, "dataset")),
        (1000, 64, (64, "ceiling"), (125, "dataset")),
        (100, None, (100, "dataset"), (32, "dataset")),  # the baseline's own batch at least
        (None, None, (131_072, "ceiling"), (4096, "ceiling")),
        (None, 10, (10, "ceiling"), (4096, "ceiling")),
    ],
)
def test_a_verb_looks_as_far_as_the_data_goes_and_tune_as_far_as_a_race_could_use(
    train_size: int | None, asked: int | None, of_a_verb: tuple[int, str], of_tune: tuple[int, str]
) -> None:
    facts = sim_facts(train_size=train_size, baseline=Config(plan=Plan(batch_size=32), lr=1e-3))
    ceiling, useful = ceiling_of(facts, asked), useful_ceiling(facts)
    assert (ceiling.size, ceiling.stands_for) == of_a_verb
    assert (useful.size, useful.stands_for) == of_tune
