"""What the README says is so: its code runs, its links lead somewhere, its names and flags exist."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

from autobatch.cli.app import cli
from autobatch.tasks.task import Task, load_task
from autobatch.worker.check import check_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PAGES = [
    "docs/batches.md",
    "docs/cluster.md",
    "docs/means.md",
    "docs/profile.md",
    "docs/runs.md",
    "docs/search.md",
    "docs/supported.md",
]
DOCUMENTS = ["README.md", "CHANGELOG.md", *PAGES, "benchmarks/README.md", "benchmarks/NOTES.md"]


def test_the_model_file_shown_is_a_whole_task(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if block.startswith("# model.py")]
    (tmp_path / "model.py").write_text(block)
    task = load_task(tmp_path / "model.py")
    assert task.train_data is not None
    assert len(task.train_data()) == 600
    assert task.baseline_config()[1]


def test_the_code_shown_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if "find_max_batch" in block]
    (tmp_path / "script.py").write_text(block)
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"\d+ memory \d+\n", result.stdout)


def test_every_part_of_a_task_is_in_the_table_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(\w+)(?:\([\w, ]*\))?` \|", README, re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(Task)} - {"name", "path"}
    shown = {"model", "train_data", "val_data", "baseline"}  # in the example above the table
    assert set(rows) | shown == fields


def test_every_command_and_flag_shown_exists() -> None:
    shown = re.findall(r"autobatch ([a-z-]+)((?: [^`|&]*)?)", README)
    commands = {name: command for name, command in cli.commands.items() if isinstance(command, click.Command)}
    flags = {flag for command in commands.values() for option in command.params for flag in option.opts}
    assert {name for name, _ in shown} <= set(commands)
    assert set(commands) <= {name for name, _ in shown}
    others = r"^pip install.*$|`\.ci.*$|pytest -m \w+|python benchmarks/[^`]*|torchrun --[a-z-]+"
    prose = re.sub(others, "", README, flags=re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose)) <= flags


def test_every_flag_of_every_command_is_told() -> None:
    told = README + "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    commands = [command for command in cli.commands.values() if isinstance(command, click.Command)]
    options = [option for command in commands for option in command.params if isinstance(option, click.Option)]
    assert {flag for option in options for flag in option.opts} <= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", told))


def test_the_two_commands_are_there_as_the_checks_run_them() -> None:
    assert "pip install -c constraints.txt -e '.[examples]' && autobatch tune examples/digits.py --budget 60s" in README
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in README.splitlines()


def test_the_example_passes_the_projects_own_check() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is in the extra `examples`, and so in `test`")
    task = load_task(ROOT / "examples" / "digits.py")
    config, is_users = task.baseline_config()
    assert is_users
    assert check_task(task, torch.device("cpu"), config.plan.batch_size) == ()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_leads_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert all((path.parent / link).exists() for link in links if "://" not in link)


def test_constraints_hold_versions_and_no_addresses() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
