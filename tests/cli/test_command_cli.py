"""`autobatch tune --command` and `max-batch --command`, as a user types them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..helpers.ready_python import run

ROOT = Path(__file__).parents[2]
PLAIN = shlex.join([sys.executable, "-S", str(ROOT / "tests" / "task_files" / "scripts" / "plain.py")])
TOLD = f"{PLAIN} --batch-size {{batch_size}} --lr {{lr}}"
SCORED = ("--score", "val_loss=([0-9.]+)", "--minimize", "--baseline", "batch_size=8 lr=1e-3")
# The time is ample, so that what ends the search is the number of trials, on a busy machine too.
A_FEW_TRIALS = ("--budget", "90s", "--train-time", "0.4s", "--max-trials", "4")

pytestmark = pytest.mark.usefixtures("ready_python")


def autobatch(*arguments: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AUTOBATCH_")}
    command = [sys.executable, "-m", "autobatch", *map(str, arguments)]
    return run(command, cwd=cwd, env=clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | changes, timeout=1800)


def found(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_script_in_plain_python_is_tuned_and_the_answer_is_a_command(tmp_path: Path) -> None:
    command = f"{TOLD} --accum {{accumulation_steps}} --max-steps {{max_steps}} --seed {{seed}}"
    report = found(autobatch("tune", "--command", command, *SCORED, *A_FEW_TRIALS, "--json", cwd=tmp_path))
    assert report["score"]["mean"] <= report["baseline"]["mean"]
    plan = report["plan"]
    assert f"--batch-size {plan['batch_size']} --lr {plan['lr']} --accum" in report["typed"]
    assert report["typed"].endswith("--max-steps {max_steps} --seed {seed}")
    assert report["task"] == "plain"
    assert report["learning_rate"] is None
    assert any("range test was left out: a range test needs the loss" in why for why in report["why"])
    assert {"starting the command"} <= report["ledger"]["entries"].keys()
    assert all(trial["outcome"] in ("ok", "diverged") for trial in report["trials"])
    (tmp_path / "report.json").write_text(json.dumps(report))
    flags = autobatch("apply", "report.json", "--as", "flags", cwd=tmp_path).stdout
    assert f"--batch-size {plan['batch_size']}" in flags
    assert "precision" not in flags  # the script has its own


def test_one_that_is_told_nothing_is_stopped_and_the_report_says_what_that_means(tmp_path: Path) -> None:
    pages = ("--html", "report.html")
    result = autobatch("tune", "--command", f"{TOLD} --max-steps 200", *SCORED, *A_FEW_TRIALS, *pages, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "each run was stopped by SIGTERM when its time was over" in shown
    assert "cannot be told a seed ({seed}): what was chosen was only run again" in shown
    assert "No speed was measured" in shown
    assert "precision" not in shown
    assert "samples/s" not in (tmp_path / "report.html").read_text().replace("tells no samples/s", "")


def test_a_run_that_was_stopped_goes_on_with_the_same_words(tmp_path: Path) -> None:
    command = ("--command", f"{TOLD} --max-steps {{max_steps}} --seed {{seed}} --checkpoint {{checkpoint}}")
    few = ("--budget", "90s", "--train-time", "0.4s", "--max-trials", "2", "--run-dir", "run")
    first = autobatch("tune", *command, *SCORED, *few, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    scores = [trial["scores"] for trial in json.loads((tmp_path / "run" / "report.json").read_text())["trials"]]
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    state["is_finished"] = False
    (tmp_path / "run" / "run.json").write_text(json.dumps(state))
    other = ("--command", f"{TOLD} --max-steps {{max_steps}} --seed 3", *SCORED)
    refused = autobatch("tune", *other, "--resume", "run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "command: " in refused.stderr
    again = autobatch("tune", *command, *SCORED, "--resume", "run", "--json", cwd=tmp_path)
    assert [trial["scores"] for trial in found(again)["trials"]][: len(scores)] == scores


def test_the_largest_batch_of_a_command(tmp_path: Path) -> None:
    command = f"{PLAIN} --batch-size {{batch_size}} --max-steps {{max_steps}} --kib-a-sample 1024"
    limits = ("--memory-limit", "160MiB", "--multiple-of", "32", "--max-batch-size", "4096")
    answer = found(autobatch("max-batch", "--command", command, *limits, "--json", cwd=tmp_path))
    assert 64 <= answer["batch_size"] <= 160
    assert answer["limited_by"] == "memory"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--command", "python train.py", *SCORED), "has the place {batch_size}, where the batch size is put"),
        (("--command", "python train.py {bs} {lr}", *SCORED), "no place {bs}: did you mean {batch_size}?"),
        (("--command", "pythn train.py {batch_size} {lr}", *SCORED), "the program pythn of the command is not there"),
        (("--command", f"{sys.executable} trian.py {{batch_size}} {{lr}}", *SCORED), "there is no file trian.py"),
        (("--command", TOLD, "--score", "a=(.)", "--minimize"), '--baseline "batch_size=32 lr=1e-3"'),
        (("--command", TOLD, "--score", "a=(.)", *SCORED[3:]), "a higher or a lower one: --maximize or --minimize"),
        (("--command", f"{TOLD} | tee log", *SCORED), "without a shell, which '|' is for: give --shell"),
        (("--command", TOLD, *SCORED, "--workers", "2"), "found --workers 2: leave it out"),
        (("--command", TOLD, *SCORED, "--nproc", "2"), "got --nproc 2: leave it out"),
        (("--command", TOLD, *SCORED, "--engine", "ray"), "a command is run on this machine alone"),
        (("model.py", "--command", TOLD), "--command is for a script that --command runs, and model.py is a task file"),
        (("model.py", "--score", "a=(.)"), "--score is for a script that --command runs, and model.py is a task file"),
        ((), "Missing argument 'MODEL.py'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_run(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    result = autobatch("tune", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert told in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_dry_run_says_what_is_not_known(tmp_path: Path) -> None:
    result = autobatch("tune", "--command", f"{TOLD} --max-steps 100", *SCORED, "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "How long a step takes is not known. Configurations would be compared at T = " in shown
    assert "a range test needs the loss at each step" in shown


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("silent", "the command ended without a score: no line of its output matches"),
        ("nan", "the score of the command is no number at batch size 8 and lr 0.001"),
    ],
)
def test_a_script_without_a_score_is_told_at_once(tmp_path: Path, how: str, told: str) -> None:
    command = f"{TOLD} --max-steps {{max_steps}} --how {how}"
    result = autobatch("tune", "--command", command, *SCORED, "--budget", "60s", cwd=tmp_path)
    assert result.returncode == 2
    assert told in " ".join(result.stderr.split())


ON_EXAMPLES = ("--maximize", "--budget", "150s", "--max-trials", "3", "--json")


@pytest.mark.slow
def test_a_plain_script_in_pytorch_is_tuned_as_it_stands(tmp_path: Path) -> None:
    script = shlex.join([sys.executable, str(ROOT / "examples" / "train_mlp.py")])
    command = f"{script} --batch-size {{batch_size}} --lr {{lr}} --seed {{seed}} --epochs 3"
    scored = ("--score", "val_acc=([0-9.]+)", "--baseline", "batch_size=32 lr=0.01")
    report = found(autobatch("tune", "--command", command, *scored, *ON_EXAMPLES, cwd=tmp_path))
    assert report["score"]["mean"] >= report["baseline"]["mean"]
    assert len(report["trials"]) >= 2


@pytest.mark.slow
def test_a_script_without_pytorch_is_tuned_with_two_lines_added(tmp_path: Path) -> None:
    script = shlex.join([sys.executable, str(ROOT / "examples" / "train_sgd.py")])
    command = f"{script} --batch-size {{batch_size}} --lr {{lr}} --seed {{seed}} --steps {{max_steps}}"
    baseline = ("--baseline", "batch_size=32 lr=0.0001")
    time = ("--train-time", "1s")
    report = found(autobatch("tune", "--command", command, *baseline, *ON_EXAMPLES, *time, cwd=tmp_path))
    assert report["score"]["mean"] >= report["baseline"]["mean"]
    assert len(report["trials"]) >= 2
