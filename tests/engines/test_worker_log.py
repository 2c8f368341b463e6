"""A log that a task prints into at every step keeps its start and its end, whoever is writing meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import autobatch
from autobatch.engines.processes import worker_log
from autobatch.engines.processes.local import LocalWorker
from autobatch.engines.processes.worker_log import kept_short, shorten
from autobatch.errors import WorkerDied

from ..cli.test_resume_cli import IN_CODE, task, the_run

__all__ = ["task"]  # a fixture

FIRST, LAST, MOST = 600, 1500, 3000
LEFT_OUT = b"[autobatch: the log was long; what the workers printed in between is left out]\n"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of a few kilobytes are long."""
    monkeypatch.setattr(worker_log, "FIRST_BYTES", FIRST)
    monkeypatch.setattr(worker_log, "LAST_BYTES", LAST)
    monkeypatch.setattr(worker_log, "MOST_BYTES", MOST)
    monkeypatch.setattr(worker_log, "LOOK_EVERY_S", 0.02)


@given(sizes=st.lists(st.integers(0, 2500), max_size=12))
def test_the_start_and_the_end_stay_however_it_grew(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "worker.log"
    path.touch()
    printed = b""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FIRST", FIRST), ("LAST", LAST), ("MOST", MOST)):
            patch.setattr(worker_log, f"{name}_BYTES", value)
        for number, size in enumerate(sizes):
            more = b"%d " % number * size
            printed += more[:size]
            with open(path, "ab") as log:
                log.write(more[:size])
            shorten(path)
            kept = path.read_bytes()
            assert len(kept) <= MOST
            assert kept[:FIRST] == printed[:FIRST]
            assert kept[-LAST:] == printed[-LAST:]
            assert kept.count(LEFT_OUT) == (kept != printed)


def test_the_figures_fit_one_another() -> None:
    assert worker_log.FIRST_BYTES + len(LEFT_OUT) + worker_log.LAST_BYTES < worker_log.MOST_BYTES


def test_a_log_that_is_not_there_is_none_to_keep_short(tmp_path: Path) -> None:
    with kept_short(tmp_path / "worker.log"):
        pass
    assert os.listdir(tmp_path) == []


WRITER = """
import sys
for number in range(50_000):
    print(f"line {number:06}", flush=number % 64 == 0)
"""


@pytest.mark.usefixtures("small")
def test_who_prints_meanwhile_goes_on_at_the_end(tmp_path: Path) -> None:
    """Two processes with the log as their standard output, as workers have it."""
    path = tmp_path / "worker.log"
    with open(path, "ab") as log, kept_short(path):
        writers = [subprocess.Popen([sys.executable, "-c", WRITER], stdout=log) for _ in range(2)]
        assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
        deadline = time.monotonic() + 60
        while path.stat().st_size > MOST and time.monotonic() < deadline:  # without the end of the block
            time.sleep(0.01)
        kept = path.read_bytes()
    assert len(kept) <= MOST
    assert kept.startswith(b"line 000000\n")
    assert kept.endswith(b"line 049999\n")
    assert kept.count(LEFT_OUT) == 1
    assert b"\0" not in kept


@pytest.mark.usefixtures("small")
def test_the_last_words_of_a_worker_are_found_though_the_log_is_shorter_than_when_it_began(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    path.write_bytes(b"of an earlier worker\n" * 1000)
    with LocalWorker(log=path) as worker:
        assert worker.submit(os.getpid).result(timeout=120) == worker.pid
        shorten(path)
        worker.submit(os.write, 2, b"the last words\n").result(timeout=120)
        with pytest.raises(WorkerDied, match=r"exit code 3; its last words:\n(.|\n)*the last words"):
            worker.submit(os._exit, 3).result(timeout=120)


CHATTY = """
import os
print("the start", flush=True)

def loss(model, batch):
    print("a step of", os.getpid(), flush=True)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


@pytest.mark.usefixtures("small", "ready_python", "steady_steps")
def test_the_log_of_a_run_that_prints_at_every_step_is_short(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task.write_text(task.read_text() + CHATTY)
    report = autobatch.tune(task, **IN_CODE, max_trials=2)
    assert report.trials[0]["state"] == "complete"
    kept = (the_run(tmp_path) / "worker.log").read_bytes()
    assert len(kept) <= MOST
    assert b"the start\n" in kept[:FIRST]
    assert kept.count(LEFT_OUT) == 1
    assert b"a step of " in kept[-LAST:]
