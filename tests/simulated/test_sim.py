from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.plan import Config, Plan
from autobatch.core.runner import Runner
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.errors import ReportError
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.measuring.memory import find_max_batch_size
from autobatch.simulated.replay import ReplayRunner
from autobatch.simulated.sim import Landscape, SimRunner, VirtualClock, draw, sim_facts

from ..helpers.contracts import RunnerContract

TABLE = Path(__file__).parents[1] / "recordings" / "made_table.json"


def config(batch_size: int, lr: float, accumulation_steps: int = 1) -> Config:
    return Config(plan=Plan(batch_size=batch_size, accumulation_steps=accumulation_steps), lr=lr)


def segment(
    at: Config, *, seed: int = 0, until_step: int = 100, limit_s: float | None = None, trial: int = 0
) -> TrainSegment:
    return TrainSegment(
        trial=trial,
        config=at,
        seed=seed,
        start_step=0,
        until_step=until_step,
        total_steps=100,
        eval_batch_size=64,
        limit_s=limit_s,
    )


class TestSimRunner(RunnerContract):
    @pytest.fixture
    def runner(self) -> Iterator[Runner]:
        runner = SimRunner(known=sim_facts(has_test_data=True))
        yield runner
        runner.close()


class TestReplayRunner(RunnerContract):
    @pytest.fixture
    def runner(self) -> Iterator[Runner]:
        runner = ReplayRunner.load(TABLE, eval_s=0.1)
        yield runner
        runner.close()


def test_a_virtual_clock_moves_only_forward() -> None:
    clock = VirtualClock()
    clock.advance(2.5)
    with pytest.raises(ValueError, match="time runs forward; got -1"):
        clock.advance(-1)
    assert clock() == 2.5


def test_a_draw_is_a_function_of_its_key() -> None:
    assert draw("a", 1).random() == draw("a", 1).random()
    assert draw("a", 1).random() != draw("a", 2).random()


def test_a_landscape_is_best_at_its_optimum_and_diverges_far_above_it() -> None:
    landscape = Landscape(noise=0)
    best = landscape(config(256, 3e-3), 1.0, 0)
    assert best is not None
    assert best == pytest.approx(0.95)
    for other in (config(256, 1e-3), config(256, 1e-2), config(64, 3e-3), config(1024, 3e-3)):
        score = landscape(other, 1.0, 0)
        assert score is not None
        assert score < best
    assert landscape(config(256, 1.0), 1.0, 0) is None


@pytest.mark.parametrize(("batch_size", "outcome"), [(100, "ok"), (2500, "ok"), (2600, "over_limit"), (3000, "oom")])
def test_the_outcome_of_a_simulated_probe_says_where_its_peak_lies(batch_size: int, outcome: str) -> None:
    probe = SimRunner().probe(Plan(batch_size=batch_size))
    assert probe.outcome == outcome
    assert (probe.peak_bytes is None) == (outcome == "oom")


def test_training_costs_what_the_profile_said_times_the_slowdown() -> None:
    at = config(64, 1e-3, accumulation_steps=2)
    runner = SimRunner(slowdown=2.0)
    step_s = runner.time(at.plan, budget_s=1.0).median_step_s
    before = runner.clock()
    result = runner.advance(segment(at))
    assert result.train_s == pytest.approx(2.0 * 100 * step_s)
    assert runner.clock() - before == pytest.approx(result.seconds)


def test_faults_replace_the_outcome_and_nothing_is_kept() -> None:
    def crash(which: TrainSegment) -> SegmentResult:
        return SegmentResult(segment=which, outcome="crashed", seconds=3.0, message="segmentation fault")

    runner = SimRunner(faults=crash)
    assert runner.advance(segment(config(64, 1e-3))).outcome == "crashed"
    assert runner.clock() == 3.0
    assert not runner.kept


@pytest.mark.parametrize("make", [lambda: SimRunner(), lambda: ReplayRunner.load(TABLE)])
def test_a_segment_gives_up_when_its_limit_has_passed(make: Callable[[], SimRunner | ReplayRunner]) -> None:
    runner = make()
    result = runner.advance(segment(config(64, 1e-3), limit_s=0.01))
    assert (result.outcome, result.seconds) == ("timeout", 0.01)
    assert runner.clock() == 0.01


def test_a_minimized_score_is_the_negative_one() -> None:
    up = SimRunner().advance(segment(config(64, 1e-3)))
    down = SimRunner(known=sim_facts(direction="minimize")).advance(segment(config(64, 1e-3)))
    assert up.score is not None
    assert down.score == -up.score


def test_the_made_table_is_what_its_formula_gives() -> None:
    from ..recordings import made_table

    assert json.loads(TABLE.read_text()) == made_table.table()


def replayed(at: Config, *, seed: int = 0, until_step: int = 100) -> float:
    score = ReplayRunner.load(TABLE).advance(segment(at, seed=seed, until_step=until_step)).score
    assert score is not None
    return score


def test_a_tabulated_cell_reads_as_it_stands() -> None:
    table = json.loads(TABLE.read_text())
    assert replayed(config(64, 1e-2)) == table["score"][1][2][0][2]
    assert replayed(config(64, 1e-2), seed=1, until_step=50) == table["score"][1][2][1][1]
    assert replayed(config(64, 1e-2), seed=2) == replayed(config(64, 1e-2), seed=0)


def test_rates_interpolate_in_their_logarithm_and_clamp_to_the_table() -> None:
    middle = replayed(config(64, 10**-2.5))
    assert middle == pytest.approx((replayed(config(64, 1e-3)) + replayed(config(64, 1e-2))) / 2)
    assert replayed(config(64, 1e-9)) == replayed(config(64, 1e-4))
    assert replayed(config(64, 1e3)) == replayed(config(64, 1e-1))


def test_shares_interpolate_in_their_logarithm() -> None:
    middle = replayed(config(64, 1e-2), until_step=25)
    assert middle == pytest.approx(
        (ReplayRunner.load(TABLE).table["score"][1][2][0][0] + replayed(config(64, 1e-2), until_step=50)) / 2
    )


def test_the_effective_batch_reads_the_nearest_tabulated_one() -> None:
    assert replayed(config(16, 1e-2, accumulation_steps=4)) == replayed(config(64, 1e-2))
    assert replayed(config(100, 1e-2)) == replayed(config(64, 1e-2))
    assert replayed(config(4096, 1e-2)) == replayed(config(256, 1e-2))


@settings(max_examples=30)
@given(batch=st.integers(1, 4096), lr=st.floats(1e-6, 10), share=st.integers(1, 100), seed=st.integers(0, 9))
def test_every_replayed_score_lies_within_the_table(batch: int, lr: float, share: int, seed: int) -> None:
    scores = [
        value for row in json.loads(TABLE.read_text())["score"] for cell in row for column in cell for value in column
    ]
    score = replayed(config(batch, lr), seed=seed, until_step=share)
    assert min(scores) - 1e-9 <= score <= max(scores) + 1e-9


def test_the_truth_is_the_mean_over_seeds_and_the_best_is_the_best_truth() -> None:
    runner = ReplayRunner.load(TABLE)
    at = config(64, 3e-3)
    assert runner.truth(at) == pytest.approx(fmean(replayed(at, seed=seed) for seed in range(2)))
    truths = [runner.truth(config(size, lr)) for size in (16, 64, 256) for lr in (1e-4, 1e-3, 1e-2, 1e-1)]
    assert runner.best() == pytest.approx(max(truths)) == pytest.approx(0.905)


def cell_of(table: dict[str, Any]) -> list[list[float | None]]:
    """The seeds at batch 64 and a rate of 0.01, rung by rung."""
    cell: list[list[float | None]] = table["score"][1][2]
    return cell


def test_a_trial_that_is_tabulated_as_diverged_diverges_from_that_rung_on() -> None:
    table = json.loads(TABLE.read_text())
    cell_of(table)[0][1:] = [None] * 2
    runner = ReplayRunner(table=table)
    assert runner.advance(segment(config(64, 1e-2), until_step=1)).outcome == "ok"
    assert runner.advance(segment(config(64, 1e-2), trial=1)).outcome == "diverged"
    assert runner.advance(segment(config(64, 1e-2), trial=2, seed=1)).outcome == "ok"
    ends = [column[-1] for row in table["score"] for cell in row for column in cell if column[-1] is not None]
    assert runner.truth(config(64, 1e-2)) == pytest.approx((min(ends) + 0.91) / 2)


@pytest.mark.parametrize("way", [0.1, 0.5, 0.8])
def test_beside_a_cell_that_diverged_the_chance_to_diverge_is_the_share_of_the_way_to_it(way: float) -> None:
    table = json.loads(TABLE.read_text())
    for seed in cell_of(table):
        seed[:] = [None] * 3
    runner = ReplayRunner(table=table)
    at = config(64, 10 ** (-3 + way))
    scores = [runner.score(at, 1.0, seed) for seed in range(200)]
    assert sum(score is None for score in scores) / 200 == pytest.approx(way, abs=0.02)
    whole = {runner.score(config(64, 1e-3), 1.0, seed) for seed in range(2)}
    assert {score for score in scores if score is not None} == whole  # nothing is read off the way to a null


def test_no_trial_sees_the_seeds_that_tell_the_truth() -> None:
    table = json.loads(TABLE.read_text()) | {"truth_seeds": 3}
    rungs: list[list[float | None]] = [[0.5, 0.6, 0.7], [0.5, 0.6, 0.9], [0.5, 0.6, 0.8]]
    cell_of(table).extend(rungs)  # cells need not have the same number of seeds
    runner = ReplayRunner(table=table)
    at = config(64, 1e-2)
    assert runner.truth(at) == pytest.approx(0.8)
    assert {runner.score(at, 1.0, seed) for seed in range(6)} == {column[-1] for column in cell_of(table)[:2]}
    assert runner.best() == pytest.approx(0.8)  # no other cell has seeds to tell
    assert runner.truth(config(16, 1e-2)) == pytest.approx(ReplayRunner.load(TABLE).truth(config(16, 1e-2)))


def test_a_replayed_step_takes_the_tabulated_time() -> None:
    runner = ReplayRunner.load(TABLE)
    assert runner.time(Plan(batch_size=64), budget_s=0).median_step_s == pytest.approx(0.00164)
    assert runner.time(Plan(batch_size=160), budget_s=0).median_step_s == pytest.approx(0.0026)
    assert runner.time(Plan(batch_size=64, accumulation_steps=3), budget_s=0).median_step_s == pytest.approx(0.00492)
    assert runner.advance(segment(config(64, 1e-2))).train_s == pytest.approx(0.164)


def test_the_largest_replayed_batch_is_the_last_of_the_table() -> None:
    answer = find_max_batch_size(ReplayRunner.load(TABLE), Plan(batch_size=1), ceiling=10_000, ceiling_is="ceiling")
    assert (int(answer), answer.limited_by) == (256, "memory")


@pytest.mark.parametrize(("batch_size", "expected"), [(128, 5e-3), (512, 1e-2)])
def test_a_replayed_range_test_reads_as_the_tabulated_rate(batch_size: int, expected: float) -> None:
    curve = find_lr_curve(ReplayRunner.load(TABLE), Plan(batch_size=batch_size))
    assert curve.suggestion is not None
    assert expected / (10**0.0809) <= curve.suggestion <= expected  # within one step of the sweep: 8 decades in 99
    assert curve.diverged_at is not None


def test_a_simulated_range_test_ends_where_the_loss_has_blown_up() -> None:
    """Its loss grows by half at each step from a rate of 1e-2 on, and never comes to infinity."""
    sweep = SimRunner(landscape=lambda config, share, seed: 0.5 if config.lr < 1e-2 else -1.0).sweep_lr(
        Plan(batch_size=8), lowest=1e-7, highest=10.0, steps=100, seed=0
    )
    assert sweep.diverged
    assert sweep.diverged_step == len(sweep.losses)
    assert 1e-2 < sweep.lrs[-1] < 1e-1


@pytest.mark.parametrize("has_key", [True, False])
def test_a_table_without_a_range_test_replays_one_that_suggests_nothing(tmp_path: Path, has_key: bool) -> None:
    table = json.loads(TABLE.read_text())
    del table["lr_range_test_min_over_10_at_128"]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table | ({"lr_range_test_min_over_10_at_128": None} if has_key else {})))
    runner = ReplayRunner.load(path)
    curve = find_lr_curve(runner, Plan(batch_size=64))
    assert (curve.suggestion, curve.diverged_at, len(curve.sweep.losses)) == (None, None, 100)
    assert runner.clock() == pytest.approx(100 * 0.00164)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_truths_of_the_cells_are_what_the_best_is_the_best_of(direction: str) -> None:
    table = json.loads(TABLE.read_text()) | {"direction": direction}
    runner = ReplayRunner(table=table)
    truths = runner.truths()
    assert list(truths) == [(batch, lr) for batch in table["batch_sizes"] for lr in table["lrs"]]
    for (batch, lr), truth in truths.items():
        assert runner.truth(config(batch, lr)) == truth  # to the last bit
    assert runner.best() == (max if direction == "maximize" else min)(truths.values())
    cell_of(table).extend([[0.5, 0.6, 0.99], [0.5, 0.6, 0.97]])
    table["truth_seeds"] = 2
    assert runner.truths() == {(64, 1e-2): pytest.approx(0.98)}  # no other cell has seeds to tell


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda table: table.pop(key)


def put(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda table: table.update({key: value})


def spoil_a_score(table: dict[str, Any]) -> None:
    table["score"][1][2][0][1] = float("nan")


def shorten_a_column(table: dict[str, Any]) -> None:
    table["score"][1][2][0].pop()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("lrs"), "it lacks lrs"),
        (put("direction", "up"), 'direction must be "maximize" or "minimize", not \'up\''),
        (put("lrs", [1e-1, 1e-2, 1e-3, 1e-4]), "lrs must rise"),
        (put("rungs", [0.0, 0.5, 1.0]), "rungs must be a list of numbers above 0"),
        (put("step_time_s", [0.1]), "step_time_s must have one number for each of batch_sizes"),
        (put("lr_range_test_min_over_10_at_128", 0), "min_over_10_at_128 must be a number above 0, or null, not 0"),
        (put("full_trial_s", None), "full_trial_s must be a number above 0, not None"),
        (put("baseline", {"lr": 1}), "baseline must hold the numbers batch_size and lr"),
        (put("score", "none"), "score must be a list of 3, not str"),
        (spoil_a_score, r"score\[1\]\[2\]\[0\]\[1\] is nan, neither a finite number nor null"),
        (put("truth_seeds", -1), "truth_seeds must be a whole number from 0 up, not -1"),
        (put("truth_seeds", 3), "score has no cell with more than truth_seeds = 3 seeds"),
        (shorten_a_column, r"score\[1\]\[2\]\[0\] must be a list of 3, not 2"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str) -> None:
    table = json.loads(TABLE.read_text())
    spoil(table)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ReportError, match=message):
        ReplayRunner.load(path)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_file_that_holds_no_table_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ReportError, match=r"table\.json"):
        ReplayRunner.load(path)
