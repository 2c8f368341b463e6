"""How a run of `tune` is judged by the clock on the wall."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("budget_s", "wall_s", "training_s", "found"),
    [
        (60.0, 60.5, 10.0, []),  # one evaluation, and no share is asked of a minute
        (60.0, 60.8, 10.0, ["0.80 s over, 0.70 allowed"]),
        (300.0, 302.9, 225.0, []),
        (300.0, 303.1, 224.0, ["3.10 s over, 3.00 allowed", "74.7% in training, 75% asked"]),
        (1800.0, 1700.0, 1600.0, ["88.9% in training, 90% asked"]),
        (1800.0, 1817.0, 1620.0, []),
    ],
)
def test_a_run_is_judged_by_its_wall_seconds_and_its_share_of_training(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, wall_s: float, training_s: float, found: list[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    wall_clock = import_module("wall_clock")
    score = {"mean": 0.9, "test": None}
    report = {
        "trials": [{"scores": [[1, 0.5], [2, 0.6]]}, {"scores": []}],
        "ledger": {"elapsed_s": 1.0, "entries": {"training": training_s - 1, "confirmation": 1.0, "evaluation": 2.8}},
        "score": score | {"test": 0.9},
        "baseline": score | {"mean": None},
    }  # 2.8 s are those of two rungs, of one to time it and of one on the test data
    run = {"budget": "", "budget_s": budget_s, "seed": 0, "wall_s": wall_s} | wall_clock.figures_of(report)
    assert wall_clock.misses(run) == found
    assert wall_clock.line(run).endswith("; ".join(found) or "kept")


def test_a_run_of_tune_that_fails_is_told_and_makes_the_measurement_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    wall_clock = import_module("wall_clock")
    words = ["wall_clock.py", str(tmp_path / "nowhere.py"), "--budgets", "1s", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", words)
    assert wall_clock.main() == 1
    said = capsys.readouterr().out
    assert "nowhere.py" in said
    assert "0 of 1 runs" in said
