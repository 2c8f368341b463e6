"""`--nproc N` as it is typed."""

from __future__ import annotations

import json
import re
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from ..cli.test_cli import MINIMAL, QUICK, TASKS, autobatch, interrupt, interrupt_race, refused
from ..helpers.processes import wait_until_unmarked

pytestmark = pytest.mark.usefixtures("ready_python")
PAIR = ("--nproc", "2", "--device", "cpu")


@pytest.mark.usefixtures("steady_steps")
def test_tune_compares_and_answers_for_the_whole_group(tmp_path: Path) -> None:
    result = autobatch(
        "tune", MINIMAL, *QUICK, "--max-trials", "2", *PAIR, "--json", "--output", "out.json", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    for plan in (report["plan"], report["baseline"]["plan"], *report["trials"]):
        assert plan["ranks"] == 2
        assert plan["effective_batch_size"] == 2 * plan["batch_size"] * plan["accumulation_steps"]
    assert report["baseline"]["plan"]["batch_size"] == 32  # of each process, as a script under torchrun has it
    assert report["score"]["mean"] > 0.5
    shown = autobatch("report", "out.json", cwd=tmp_path).stdout
    assert "The batch size is per process, of 2 processes." in re.sub(r"\s+", " ", shown)
    assert "x ranks" in shown


def test_max_batch_and_profile_are_of_each_process(tmp_path: Path) -> None:
    result = autobatch("max-batch", MINIMAL, *PAIR, "--memory-limit", "40MiB", "--json", "-q", cwd=tmp_path)
    found = json.loads(result.stdout)
    assert found["batch_size"] == 96  # half of the data
    assert "each of 2 processes takes a micro-batch of this size" in found["assumed"]
    result = autobatch("profile", MINIMAL, *PAIR, "--budget", "2s", "--json", "-q", cwd=tmp_path)
    curve = json.loads(result.stdout)
    assert curve["ranks"] == 2
    for point in curve["measurements"]:
        if point["step_s"] is not None:
            assert point["samples_per_s"] == pytest.approx(2 * point["batch_size"] / point["step_s"])


@pytest.mark.usefixtures("steady_steps")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("when", "number", "code"),
    [("memory: ", signal.SIGINT, 130), ("profile: ", signal.SIGINT, 130), ("trial 1", signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_group_that_is_stopped_leaves_no_process_behind(tmp_path: Path, when: str, number: int, code: int) -> None:
    mark = uuid.uuid4().hex
    command = ("tune", str(MINIMAL), *QUICK, *PAIR)
    if when == "trial 1":
        ended, _, stderr = interrupt_race(tmp_path, 1, *command, number=number, MARK=mark)
    else:
        ended, _, stderr = interrupt(tmp_path, when, *command, number=number, MARK=mark)
    assert ended == code, stderr
    assert wait_until_unmarked(mark)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", MINIMAL, "--nproc", "0"], "--nproc"),
        (["max-batch", MINIMAL, *PAIR, "--mode", "inference"], "nproc=2 is for training"),
        (["profile", MINIMAL, *PAIR, "--precisions", "fp32", "bf16"], "leave out --nproc or --precisions"),
        (["profile", MINIMAL, "--nproc", "2", "--device", "mps"], "found 'mps'"),
        (["tune", TASKS / "broken" / "loss_raises.py", *PAIR], "loss"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[Any], message: str, tmp_path: Path) -> None:
    assert message in refused(autobatch(*arguments, "-q", cwd=tmp_path))
