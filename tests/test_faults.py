"""Whatever is killed in a search, the answer is right or the error clear, and nothing is left behind."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

from .helpers.ready_python import Started
from .helpers.steady import IS_FORKED, STEADY

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.usefixtures("ready_python")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked for in /proc")
def test_tune_comes_to_the_same_trials_whatever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # benchmarks/faults.py --resume-runs has many more
    kills = import_module("kills")
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"} | STEADY
    runs = kills.Runs(tmp_path, Started, environment, kills.OPTIONS if IS_FORKED else kills.ANEW)
    assert len({str(trial["lr"]) for trial in runs.trials}) >= 4
    found = [
        runs.killed(number, target, share * runs.undisturbed_s)
        for number, (target, share) in enumerate([("coordinator", 0.5), ("worker", 0.6), ("both", 0.8)])
    ]
    found += [runs.killed(3, "both", 0.7 * runs.begun_s, "nothing"), runs.killed(4, "coordinator", 0.0, "nothing")]
    assert [kill for kill in found if not kill.right] == []
    assert any(kill.struck and kill.begins == "race" for kill in found)
    assert any(kill.struck and kill.begins == "nothing" for kill in found)


@pytest.mark.usefixtures("ready_python")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked for in /proc")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_search_survives_kills_at_random_moments(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # benchmarks/faults.py does ten times as many
    faults = import_module("faults")
    with faults.own_temporary_folder():
        points = faults.kill_points(10, seed)
    assert sum(point.struck for point in points) >= 3
    assert [point for point in points if not point.right or point.left] == []
    assert sum(point.outcome == "answer" for point in points) >= 7  # what is killed once is run again
