"""`autobatch apply` as a user types it, and what else uses a stored answer: a run's folder, TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from autobatch.cli.tune import dashboard, tune
from autobatch.core.plan import Config, Plan
from tests.helpers.bench_reports import cpu_report
from tests.helpers.reports import example

from .test_cli import autobatch, refused

pytestmark = pytest.mark.usefixtures("ready_python")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    example().save(tmp_path / "report.json")
    ranked = Config(plan=Plan(batch_size=16, precision="fp16", ranks=4), lr=3e-4)
    dataclasses.replace(example(), config=ranked).save(tmp_path / "ranks.json")
    cpu_report().save(tmp_path / "bench.json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    return tmp_path


def test_flags_go_to_stdout_alone_and_what_they_are_to_stderr(folder: Path) -> None:
    shown = autobatch("apply", "report.json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "--batch-size 128 --accumulation-steps 2 --lr 0.00345 --precision fp32\n"
    assert shown.stderr.startswith("This beat your configuration on fresh seeds.")
    quiet = autobatch("apply", ".", "--quiet", "--names", "batch_size=bs,precision=", cwd=folder)  # a run's folder
    assert (quiet.stdout, quiet.stderr) == ("--bs 128 --accumulation-steps 2 --lr 0.00345\n", "")


def test_processes_are_told_where_there_are_several(folder: Path) -> None:
    shown = autobatch("apply", "ranks.json", "--as", "hf", cwd=folder)
    assert shown.stdout.startswith("# started with: torchrun --nproc_per_node 4\nargs = TrainingArguments(\n")
    assert "The batch size is per process, of 4 processes." in shown.stderr
    lightning = autobatch("apply", "ranks.json", "--as", "lightning", cwd=folder)
    assert '    devices=4,\n    strategy="ddp",\n' in lightning.stdout
    assert '    precision="16-mixed",\n' in lightning.stdout


def test_the_same_as_json(folder: Path) -> None:
    shown = autobatch("apply", "ranks.json", "--as", "hf", "--json", "--output", "out.json", cwd=folder)
    found = json.loads(shown.stdout)
    assert found["per_device_train_batch_size"] == 16
    assert found["fp16"] is True
    assert json.loads((folder / "out.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("apply bench.json", 'bench.json is a report of "autobatch bench": only what "autobatch tune" found can be'),
        ("apply report.json --as flag", "'python', 'lightning', 'hf'; did you mean flags?"),
        ("apply report.json --names lr", "names are written batch_size=bs,lr=learning_rate; found 'lr'"),
        ("apply gone.json", "gone.json cannot be read: No such file or directory"),
        ("apply run", "run cannot be read: Is a directory without a report.json, and so a run that has none yet"),
        ("apply", "Missing argument 'REPORT.json'"),
        ("report bench.json --tensorboard tb", '--tensorboard is for a report of "autobatch tune"'),
        ("report report.json --tensorboard report.json", "the folder report.json cannot be made: there is a file"),
    ],
)
def test_what_cannot_be_applied_is_refused(folder: Path, words: str, message: str) -> None:
    if "--tensorboard" in words:
        pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install tensorboard")
    assert message in refused(autobatch(*shlex.split(words), cwd=folder))


def test_a_stored_report_is_written_for_tensorboard(folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install tensorboard")
    shown = autobatch("report", "report.json", "--tensorboard", "tb", "--quiet", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert len(list(folder.glob("tb/*/trial-*/events.out.tfevents.*"))) == len(example().trials)


@pytest.mark.parametrize(
    ("typed", "variable", "installed", "told"),
    [
        ("postgresql://me:secret@db/runs", None, False, "optuna-dashboard 'postgresql://***@db/runs' (*** stands for"),
        (None, "postgresql://me:secret@db/runs", False, 'optuna-dashboard "$AUTOBATCH_STORAGE"'),
        ("sqlite:///a.db", None, True, "optuna-dashboard sqlite:///a.db"),
        (None, None, True, "optuna-dashboard '/runs/my task/journal.log'"),
        (None, None, False, None),
    ],
)
def test_the_command_for_the_dashboard_shows_no_secret(
    typed: str | None,
    variable: str | None,
    installed: bool,
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("AUTOBATCH_STORAGE", raising=False)
    if variable is not None:
        monkeypatch.setenv("AUTOBATCH_STORAGE", variable)
    program = tmp_path / "optuna-dashboard"
    if installed:
        program.write_text("#!/bin/sh")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    report = dataclasses.replace(example(), folder=Path("/runs/my task"))
    words = ["model.py"] if typed is None else ["model.py", "--storage", typed]
    with tune.make_context("tune", words) as context:
        shown = dashboard(report, context.params["storage"])
    assert (shown is None) == (told is None)
    assert (shown or "").startswith(told or "")
    assert "secret" not in (shown or "")
