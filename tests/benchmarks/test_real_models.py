"""The benchmark of public packages judges what a command said; its task files are whole without the packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.reports import example

FOLDER = Path(__file__).parents[2] / "benchmarks"
CASES = sorted((FOLDER / "real_models").glob("*.py"))


@pytest.fixture
def real_models(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("real_models")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_each_case_defines_a_task_and_imports_only_pinned_packages(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {"model", "train_data", "val_data"} <= names
    pinned = (FOLDER / "requirements-real-models.txt").read_text().replace("-", "_")
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in imported if isinstance(node, ast.ImportFrom)]
    for module in modules:
        package = module.partition(".")[0]
        assert f"\n{package}==" in pinned


def test_there_are_at_least_fifteen() -> None:
    assert len(CASES) >= 15


@pytest.mark.parametrize(
    ("code", "message", "is_refusal"),
    [
        (2, "autobatch: give at least 2m", True),
        (2, "autobatch: this is a bug in autobatch", False),
        (1, "autobatch: give at least 2m", False),
        (None, "", False),
        (-9, "killed", False),
        (2, "autobatch: the import of vit.py failed: ModuleNotFoundError: Could not import module 'ViT'", False),
    ],
)
def test_what_counts_as_a_refusal(real_models: Any, code: int | None, message: str, is_refusal: bool) -> None:
    assert real_models._is_refusal(code, message) is is_refusal


def test_a_message_is_what_was_said_last_without_the_folders_of_the_machine(real_models: Any) -> None:
    printed = "[  1.0 s] start: x\nautobatch: the file /home/someone/it.py cannot\n  be read: see worker.log\n"
    assert real_models._message(printed) == "autobatch: the file .../it.py cannot\n  be read: see worker.log"
    assert real_models._message("Traceback\n  File\nKeyError: 1\n") == "Traceback\n  File\nKeyError: 1"


def test_a_librarys_warning_that_comes_again_is_counted(real_models: Any) -> None:
    assert real_models._repeated("a.py:1: UserWarning: x\nb\na.py:1: UserWarning: x\nc.py:2: FutureWarning: y\n") == 1


def test_the_answer_of_a_search_is_its_recommendation(real_models: Any) -> None:
    report = example()
    answer = real_models._tuned(report.to_json())
    assert answer.startswith(f"batch {report.config.plan.batch_size} x {report.config.plan.accumulation_steps}, lr ")
    assert real_models._tuned(example(chose_baseline=True).to_json()).count("which is what you have") == 1


def test_a_case_is_run_answered_and_kept(tmp_path: Path, real_models: Any) -> None:
    refused = real_models.run(tmp_path / "none.py", "max-batch", "60s", 300.0)
    assert (refused.verdict, refused.exit_code) == ("refused", 2)
    assert "none.py" in refused.message
    live = real_models.run(FOLDER / "models" / "perceptron.py", "live", "60s", 300.0)
    assert (live.verdict, live.message) == ("answered", None)
    assert live.answer.startswith("a sample is ")
    stored = tmp_path / "out.json"
    head = {"budget": "60s", "limit_s": 240.0}
    stored.write_text(json.dumps({**head, "results": [{**asdict(refused), "case": CASES[0].stem}]}))
    script = str(FOLDER / "real_models.py")
    again = [sys.executable, script, CASES[0].stem, "--commands", "max-batch", "--json", str(stored)]
    done = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 right; 0 answered" in done.stdout  # what is there already is not run again
    done = subprocess.run([*again, "--budget", "90s"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2  # a file says one budget of all its results
    assert "was made with --budget 60s --limit 240" in done.stderr


def test_named_cases_are_run_again(tmp_path: Path, real_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (case.stem for case in CASES[:2])

    def result(case: str, seconds: float) -> Any:
        return real_models.Result(
            case=case,
            command="tune",
            exit_code=0,
            answer="batch 1",
            message=None,
            is_right=True,
            seconds=seconds,
            repeated=0,
        )

    stored = tmp_path / "out.json"
    kept = [asdict(result(case, 1.0)) for case in (first, second)]
    stored.write_text(json.dumps({"budget": "60s", "limit_s": 240.0, "results": kept}))
    monkeypatch.setattr(real_models, "run", lambda case, *asked: result(case.stem, 2.0))
    arguments = ["real_models.py", second, "--commands", "tune", "--json", str(stored), "--again"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="0"):
        real_models.main()
    assert {one["case"]: one["seconds"] for one in json.loads(stored.read_text())["results"]} == {
        first: 1.0,
        second: 2.0,
    }
