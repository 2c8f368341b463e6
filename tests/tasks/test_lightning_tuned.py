"""A Lightning project, as its users write it, is tuned on a CPU, and the answer is used."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import autobatch
from autobatch.errors import SettingError

from ..helpers.ready_python import run
from ..helpers.steady import STEADY, train_time

L: Any = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'autobatch-tuner[lightning]'")

CLASSIFIER = Path(__file__).parents[1] / "task_files" / "lightning" / "classifier.py"
IN_CODE: dict[str, Any] = {"budget": "600s", "train_time": train_time(64), "device": "cpu", "max_trials": 3}
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's file, imported as their script does."""
    shutil.copy(CLASSIFIER, tmp_path / "their_classifier.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.spec_from_file_location("their_classifier", tmp_path / "their_classifier.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "their_classifier", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
def test_a_project_is_tuned_in_code_and_the_answer_used(
    ready_python: None, steady_steps: None, project: Any, tmp_path: Path
) -> None:
    from autobatch.integrations.lightning import Tune

    module, datamodule = project.Classifier(), project.Stripes()
    trainer = L.Trainer(max_epochs=1, gradient_clip_val=1.0, **QUIET)
    before = copy.deepcopy(module.state_dict())
    report = autobatch.tune(
        module, datamodule=datamodule, trainer=trainer, monitor="val_acc", run_dir=tmp_path / "run", **IN_CODE
    )
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert (module._trainer, datamodule.trainer) == (None, None)
    assert (report.task, report.direction, report.baseline_is_users) == ("Classifier", "maximize", True)
    assert (report.baseline_plan.plan.batch_size, report.baseline_plan.lr) == (16, 1e-4)
    assert any("under every seed alike" in told for told in report.warnings)
    assert report.score is None or report.baseline is None or report.score.mean >= report.baseline.mean

    used = L.Trainer(max_epochs=1, callbacks=[Tune(report)], **QUIET)
    used.fit(module, datamodule=datamodule)
    assert used.train_dataloader.batch_size == report.config.plan.batch_size
    assert module.hparams.lr == report.config.lr


def test_a_project_is_tuned_from_its_file(ready_python: None, tmp_path: Path) -> None:
    shutil.copy(CLASSIFIER, tmp_path / "module.py")
    with (tmp_path / "module.py").open("a") as file:
        file.write('\nmonitor = "val_acc"\n')  # the one line that is added
    command = [sys.executable, "-m", "autobatch", "tune", "module.py", "--budget", "600s", "--max-trials", "3"]
    command += ["--train-time", train_time(64), "--device", "cpu", "--output", "out.json"]
    result = run(command, cwd=tmp_path, env={**os.environ, **STEADY}, timeout=1800)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["task"], report["direction"]) == ("module", "maximize")
    assert report["score"] is None or report["score"]["mean"] >= report["baseline"]["mean"]


def test_a_project_is_measured_by_the_other_functions(ready_python: None, steady_steps: None, project: Any) -> None:
    given = {"datamodule": project.Stripes(), "trainer": L.Trainer(precision="bf16-mixed", **QUIET)}
    found = autobatch.find_max_batch(project.Classifier(), device="cpu", max_batch_size=32, **given)
    assert (found, found.limited_by) == (32, "ceiling")
    assert found.final_probe.plan.precision == "bf16"
    curve = autobatch.profile(project.Classifier(), device="cpu", max_batch_size=32, budget="2s", **given)
    assert {measured.plan.batch_size for measured in curve.measurements} >= {16, 32}
    swept = autobatch.find_lr(project.Classifier(), device="cpu", steps=30, **given)
    assert 1e-6 < (swept.suggestion or 1e-3) < 10
    with pytest.raises(SettingError, match=r"^loss=: with datamodule= the module and its Trainer say it"):
        autobatch.find_max_batch(project.Classifier(), device="cpu", loss=max, **given)
