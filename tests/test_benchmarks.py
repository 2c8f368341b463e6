"""The benchmarks run, judge what is compared with us by what it did, and their task files can be trained."""

import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from autobatch.devices import open_device
from autobatch.plan import Plan
from autobatch.task import load_task
from autobatch.torch_runner import TorchRunner

FOLDER = Path(__file__).parents[1] / "benchmarks"


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


@pytest.mark.parametrize("path", sorted((FOLDER / "models").glob("*.py")), ids=lambda path: path.stem)
def test_each_task_of_the_benchmarks_passes_its_check_and_runs(path: Path) -> None:
    runner = TorchRunner(load_task(path), open_device("cpu"))
    try:
        assert runner.facts().warnings == ()
        assert runner.probe(Plan(batch_size=2)).outcome == "ok"
    finally:
        runner.close()
