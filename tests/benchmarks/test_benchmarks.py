"""The benchmarks run, judge what is compared with us by what it did, and their task files can be trained."""

import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autobatch.core.plan import Config, Plan
from autobatch.devices import open_device
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.trials import SearchSettings
from autobatch.simulated.replay import ReplayRunner
from autobatch.tasks.task import load_task
from autobatch.worker.torch_runner import TorchRunner

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_search_reaches_its_targets_on_the_simulated_cases() -> None:
    done = subprocess.run([sys.executable, FOLDER / "max_batch.py"], cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    assert "MISSED" not in done.stdout


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What the comparison says of a made-up package, on a card that takes 100 samples."""
    monkeypatch.syspath_prepend(FOLDER)
    peers = import_module("peers")

    def judged(search: Callable[[Any], Any], timeout_s: float = 60) -> Any:
        monkeypatch.setitem(peers.PEERS, "made up", peers.Peer(package="torch", called="", search=search))
        return peers.run_case("made up", "affine", 100, timeout_s)

    return judged


def test_the_best_of_equals_is_not_the_luckiest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equally fast sizes, each timed with an error of 5 %, the one that is recommended is as fast as the best."""
    monkeypatch.syspath_prepend(FOLDER)
    accuracy = import_module("profile_accuracy")
    draw = random.Random(0)
    shares = []
    for _ in range(200):
        times = {size: [(size * draw.gauss(1.0, 0.05),) for _ in range(10)] for size in range(1, 33)}
        shares.append(accuracy.share_of_best(times, 16))
    assert fmean(shares) == pytest.approx(1.0, abs=0.005)
    twice = {size: [(size * (1.0 if size == 8 else 2.0),)] * 10 for size in range(1, 33)}
    assert accuracy.share_of_best(twice, 16) == 0.5
    assert accuracy.share_of_best(twice, 8) == 1.0


def test_a_peer_that_returns_what_it_ran_is_told_so(judge: Callable[..., Any]) -> None:
    result = judge(lambda device: device.step(100))
    assert (result.ending, result.found, result.truth) == ("returned", 100, 100)
    assert (result.ran, result.fits, result.ooms, result.steps) == (True, True, 0, 1)


def test_a_peer_that_returns_what_it_never_ran_is_told_so(judge: Callable[..., Any]) -> None:
    result = judge(lambda device: 2 * device.step(64))
    assert (result.found, result.ran, result.fits) == (128, False, False)


def test_what_a_peer_raises_is_its_result(judge: Callable[..., Any]) -> None:
    result = judge(lambda device: device.step(101))
    assert (result.ending, result.found, result.ooms) == ("failed", None, 1)
    assert "OutOfMemoryError: CUDA out of memory" in result.message


def test_a_peer_that_hangs_is_ended_and_its_steps_are_known(judge: Callable[..., Any]) -> None:
    def hang(device: Any) -> None:
        device.step(7)
        time.sleep(600)

    result = judge(hang, timeout_s=2)
    assert (result.ending, result.found, result.steps) == ("timeout", None, 1)


def test_simulated_finalists_win_as_their_gain_deserves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    false_wins = import_module("false_wins")

    def won(kind: str, gain: float, count: int) -> float:
        races = [false_wins.race(random.Random(f"{gain} {seed}"), kind, gain, count, 2, 0) for seed in range(60)]
        assert all(by is None or by == gain for by in races)
        return sum(by is not None for by in races) / len(races)

    assert won("equal", -4.0, 8) == 0
    assert won("equal", 6.0, 8) >= 0.9
    assert won("one bad", 6.0, 3) >= 0.5  # hidden in every race before a bad score was bounded
    assert won("steps", 0.0, 8) <= 0.25


def test_races_in_which_nothing_is_better_are_hardly_ever_said_to_be_won(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    null_races = import_module("null_races")

    def count(gain: float, races: int) -> Any:
        found = null_races.Count()
        for number in range(races):
            found.add(null_races.race(number, gain, 8))
        return found

    null, better = count(0.0, 10), count(40.0, 3)
    assert null.beat <= 1
    assert (better.recommended, better.beat) == (3, 3)


TASKS = sorted([*(FOLDER / "models").glob("*.py"), *(FOLDER / "tasks").glob("[!_]*.py")])


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_each_task_of_the_benchmarks_passes_its_check_and_runs(path: Path) -> None:
    runner = TorchRunner(load_task(path), open_device("cpu"))
    try:
        assert runner.facts().warnings == ()
        assert runner.probe(Plan(batch_size=2)).outcome == "ok"
    finally:
        runner.close()


@pytest.mark.parametrize("name", ["regression", "sequence", "tabular"])  # clipped gradients, batch norm, two schedules
def test_a_stack_trains_what_a_trial_trains(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    stacked, build = import_module("stacked"), import_module("build_table")
    task = load_task(FOLDER / "tasks" / f"{name}.py")
    lrs, seeds, rungs = (1e-3, 1e-2), (0, 3), (2, 6)
    curves = stacked.train_stacked(task, Plan(batch_size=16), lrs, seeds, rungs)
    runner = TorchRunner(task, open_device("cpu"))
    alone = build.train_one_by_one(runner, Plan(batch_size=16), lrs, seeds, rungs)
    runner.close()
    for row, others in zip(curves, alone, strict=True):
        for curve, other in zip(row, others, strict=True):
            assert curve == pytest.approx(other, abs=2e-3)
    assert curves[0] != curves[1]
    assert curves[0][0] != curves[0][1]


def test_what_diverges_in_a_stack_leaves_its_neighbours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    stacked = import_module("stacked")
    task = load_task(FOLDER / "tasks" / "regression.py")
    alone = stacked.train_stacked(task, Plan(batch_size=16), [1e-2], [0], [20])
    (beside,), (diverged,) = stacked.train_stacked(task, Plan(batch_size=16), [1e-2, 1e30], [0], [20])
    assert beside == pytest.approx(alone[0][0])
    assert diverged == [None]


def test_a_table_is_built_and_can_be_replayed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    build = import_module("build_table")
    task = Path(__file__).parents[1] / "task_files" / "minimal.py"
    said = f"build_table.py {task} --train-time 0.04 --step-ms 1 0.01 --batch-sizes 8 16 --rates 3 --seeds 2"
    said += " --more-seeds 2 --truth-seeds 2"
    tables = {}
    for name, how in {"one by one": [], "stacked": ["--stacked"]}.items():
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [*said.split(), "--json", str(out), *how])
        build.main()
        tables[name] = ReplayRunner.load(out).table
    assert tables["one by one"]["step_time_s"] == pytest.approx([0.00108, 0.00116])
    cells = [cell for row in tables["one by one"]["score"] for cell in row]
    assert sorted(len(cell) for cell in cells) == [2, 2, 2, 2, 4, 4]
    longest = max(cells, key=len)
    assert {len(seed) for seed in longest} == {5}
    for one, other in zip(cells, [cell for row in tables["stacked"]["score"] for cell in row], strict=True):
        for scores, others in zip(one, other, strict=False):
            assert scores == pytest.approx(others, abs=0.03)  # three of 96 samples: what rounding may turn


def test_a_table_says_where_the_range_test_suggested_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    build = import_module("build_table")
    monkeypatch.setattr(build, "find_lr_curve", lambda runner, plan: SimpleNamespace(suggestion=None))
    task, out = Path(__file__).parents[1] / "task_files" / "minimal.py", tmp_path / "table.json"
    said = f"build_table.py {task} --train-time 0.04 --step-ms 1 0.01 --batch-sizes 16 --rates 3 --seeds 2"
    monkeypatch.setattr(sys, "argv", [*said.split(), "--more-seeds", "0", "--truth-seeds", "0", "--json", str(out)])
    build.main()
    runner = ReplayRunner.load(out)
    assert runner.table["lr_range_test_min_over_10_at_128"] is None
    baseline = runner.facts().baseline  # the rates lie around the baseline's alone
    assert runner.table["lrs"][1] == pytest.approx(baseline.lr * (128 / baseline.plan.batch_size) ** 0.5, rel=1e-5)
    assert find_lr_curve(runner, Plan(batch_size=16)).suggestion is None


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("replay")


MADE = Path(__file__).parents[1] / "recordings" / "made_table.json"  # the baseline: batch 16 at a rate of 1e-3


def made_table(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "made.json"
    path.write_text(json.dumps(json.loads(MADE.read_text()) | changes))
    return path


def raced(replay: Any, **changes: Any) -> Any:
    known = {"search": "tpe", "table": "made", "seed": 0, "equivalents": 8, "truth": 0.8, "best": 0.9, "baseline": 0.7}
    return replay.Race(**(known | {"reported": None, "stderr": 0.01, "trials": 9, "decision_s": 0.0} | changes))


def test_what_is_recovered_is_the_share_of_the_gap_that_was_closed(replay: Any) -> None:
    assert raced(replay).recovered == pytest.approx(0.5)
    assert raced(replay, truth=0.9).recovered == pytest.approx(1.0)
    assert raced(replay, truth=0.65).recovered == pytest.approx(-0.25)
    for best in (0.7, 0.6):  # nothing is better than the baseline
        assert raced(replay, best=best, truth=0.7).recovered == 1.0
        assert raced(replay, best=best, truth=0.6).recovered == 0.0  # and something worse was chosen


def test_a_choice_is_worse_beyond_a_standard_error(replay: Any) -> None:
    assert not raced(replay, truth=0.7).is_worse
    assert not raced(replay, truth=0.691).is_worse
    assert raced(replay, truth=0.689).is_worse


@pytest.mark.parametrize("sign", [1, -1])
def test_a_baseline_is_put_into_the_cell_that_races_are_judged_by(replay: Any, sign: int) -> None:
    """One cell leads by the seeds that a search sees, another by those that tell the truth, a third lost one seed."""
    lrs = [1e-3, 1e-2, 1e-1, 1.0]
    seen = [[0.9, 0.9], [0.5, 0.5], [0.8, 0.8], [0.3, 0.3]]
    held: list[list[float | None]] = [[0.6, 0.62], [0.8, 0.82], [0.95, None], [0.7, 0.72]]
    cells = [[[s if s is None else sign * s] for s in (*a, *b)] for a, b in zip(seen, held, strict=True)]
    table = json.loads(MADE.read_text()) | {
        **{"batch_sizes": [16], "step_time_s": [0.001], "lrs": lrs, "rungs": [1.0], "truth_seeds": 2},
        **{"direction": "maximize" if sign == 1 else "minimize", "score": [cells]},
    }
    assert replay.with_baseline(table, "own") is table
    best = replay.with_baseline(table, "best")
    assert best["baseline"] == {"batch_size": 16, "lr": 1e-2}
    runner = ReplayRunner(table=best)
    assert runner.truth(runner.facts().baseline) == runner.best()
    # A seed's deviation below it lies the last one; the first has no seeds left that tell the truth.
    cells[0] = [[sign * 0.65]] * 2
    assert 0.05 < replay.seed_sd(table) < 0.2
    assert replay.with_baseline(table, "near")["baseline"]["lr"] == 1.0


@pytest.mark.parametrize("held", [0, 2])
def test_louder_seeds_leave_the_truth_where_it_is(replay: Any, held: int) -> None:
    """What trials see is three times as far from its mean, rung by rung; the other seeds are as they were."""
    cell = [[0.1 * number, 0.5 + 0.02 * number**2] for number in range(6 + held)]
    lost: list[Any] = [[0.2, None], *cell[1:]]
    table: dict[str, Any] = json.loads(MADE.read_text()) | {
        **{"batch_sizes": [16], "step_time_s": [0.001], "lrs": [1e-3, 1e-2], "rungs": [0.5, 1.0]},
        **{"truth_seeds": held, "direction": "maximize", "score": [[cell, lost]]},
    }
    assert replay.with_noise(table, 1) is table
    loud = replay.with_noise(table, 3)
    whole, partly = loud["score"][0]
    for before, after in zip(np.array(cell[:6]).T, np.array(whole[:6]).T, strict=True):
        np.testing.assert_allclose(after - before.mean(), 3 * (before - before.mean()))
    assert (whole[6:], partly[6:], partly[0][1]) == (cell[6:], cell[6:], None)
    ends = np.array(cell[1:6])[:, 1]  # of the seeds that did not diverge
    np.testing.assert_allclose([seed[1] for seed in partly[1:6]] - ends.mean(), 3 * (ends - ends.mean()))
    config = Config(plan=Plan(batch_size=16), lr=1e-3)
    assert ReplayRunner(table=loud).truth(config) == pytest.approx(ReplayRunner(table=table).truth(config))


def test_a_race_is_judged_by_the_table(replay: Any, tmp_path: Path) -> None:
    path = made_table(tmp_path)
    truth = ReplayRunner.load(path).truth
    race = replay.run_race("tpe", path, "own", 0, 8, parts=1)
    baseline = Config(plan=Plan(batch_size=16), lr=1e-3)
    assert (race.search, race.table, race.seed, race.equivalents) == ("tpe", "made", 0, 8)
    assert (race.best, race.baseline) == (truth(Config(plan=Plan(batch_size=64), lr=1e-2)), truth(baseline))
    assert race.baseline < race.truth <= race.best
    assert race.recovered == pytest.approx((race.truth - race.baseline) / (race.best - race.baseline))
    assert race.reported == pytest.approx(race.truth, abs=0.011)  # each seed is 0.005 off the mean of the two
    again = replay.run_race("tpe", path, "own", 0, 8, parts=1)
    assert replace(again, decision_s=race.decision_s) == race
    loud = replay.run_race("tpe", path, "own", 0, 8, parts=1, noise=20)
    assert (loud.best, loud.baseline, loud.stderr) == (
        pytest.approx(race.best),
        pytest.approx(race.baseline),
        race.stderr,
    )
    assert abs(loud.reported - loud.truth) > 0.05  # it saw other scores: each seed is 0.1 off the mean of the two


def test_beside_a_baseline_that_is_the_best_there_is_nothing_to_win(replay: Any, tmp_path: Path) -> None:
    for name in ("tpe", "freeze-thaw"):
        race = replay.run_race(name, made_table(tmp_path), "best", 1, 8, parts=1)
        assert (race.baseline, race.regret, race.recovered, race.is_worse) == (race.best, 0.0, 1.0, False)


def test_a_race_pays_for_its_range_test(replay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table, ledgers = json.loads(MADE.read_text()), []

    def kept(*said: Any) -> Ledger:
        ledgers.append(Ledger(*said))
        return ledgers[-1]

    monkeypatch.setattr(replay, "Ledger", kept)
    for hint in (5e-3, None):
        changed = table | {"lr_range_test_min_over_10_at_128": hint}
        result = replay.searched(changed, 8, SearchSettings(seed=0))
        assert any("range test" in trial.origin for trial in result.trials) == (hint is not None)
    charged = [ledger.entries() for ledger in ledgers]
    step_s = 0.001 + 1e-5 * 256  # at the knee
    assert 50 * step_s < charged[0]["range test"] < 100 * step_s  # it ended where the loss blew up
    assert charged[1]["range test"] == pytest.approx(100 * step_s, abs=1e-4)
    for ledger, entries in zip(ledgers, charged, strict=True):
        assert entries["other"] == pytest.approx(0.0, abs=1e-3)
        assert sum(entries.values()) <= ledger.budget_s


@pytest.fixture
def long_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("long_run")


def test_a_table_that_is_cut_ends_where_it_is_cut(long_run: Any) -> None:
    whole = ReplayRunner.load(FOLDER / "results" / "tables" / "images.json").table
    half = long_run.cut(whole, 1 / 2)
    assert half["full_trial_s"] == whole["full_trial_s"] / 2
    assert half["rungs"] == [1 / 8, 1 / 4, 1 / 2, 1.0]
    assert half["score"][2][3][0] == whole["score"][2][3][0][:-1]
    assert long_run.cut(whole, 1.0)["score"] == whole["score"]
    assert long_run.ladder_of(half).shares == (1 / 8, 1 / 2, 1.0)
    assert long_run.ladder_of(long_run.cut(whole, 1 / 4)).shares == (1 / 4, 1 / 2, 1.0)


def test_the_best_rate_is_the_top_of_the_parabola_through_the_best(long_run: Any) -> None:
    table = ReplayRunner.load(FOLDER / "results" / "tables" / "images.json").table
    lrs = [1e-3, 1e-2, 1e-1, 1.0]
    cells = [[[-((math.log10(lr) + 1.6) ** 2)]] for lr in lrs]
    made = table | {"lrs": lrs, "rungs": [1.0], "truth_seeds": 0, "score": [cells] * len(table["batch_sizes"])}
    assert long_run.best_lr(ReplayRunner(table=made), 64) == pytest.approx(10**-1.6)
    falling = made | {"score": [[[[-lr]] for lr in lrs]] * len(table["batch_sizes"])}
    assert long_run.best_lr(ReplayRunner(table=falling), 64) == 1e-3


def test_a_forecast_is_judged_by_what_came(long_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    later = ReplayRunner.load(FOLDER / "results" / "tables" / "tabular.json").table
    case = long_run.study(("tabular", "cut", long_run.cut(later, 1 / 4), later, 2.0, 1, "tpe"))
    truth = ReplayRunner(table=later)
    assert {lead.against for lead in case.leads} <= {"baseline", "runner-up"}
    assert all(abs(lead.truth) < 0.5 and lead.low < lead.expected < lead.high for lead in case.leads)
    assert case.loss_unchanged >= 0
    assert truth.table["lrs"][0] <= case.best_lr <= truth.table["lrs"][-1]
    row = long_run.summary([case, case])
    assert row["cases"] == 2
    assert row["lr"]["off"] == pytest.approx(math.exp(abs(math.log(case.lr / case.best_lr))))
    long_run.print_table([case])
    assert re.search(r"^  tabular +1 ", capsys.readouterr().out, re.MULTILINE)
