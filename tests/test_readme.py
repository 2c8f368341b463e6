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
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
PAGES += sorted((ROOT / "benchmarks" / "notes").glob("*.md"))
MOST_WORDS = 900  # in the README, code and tables among them: what a stranger reads before trying


def code_of(page: str) -> list[str]:
    """The blocks of Python on a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def anchors_of(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    seen: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        again = seen.get(slug, 0)
        anchors.add(f"{slug}-{again}" if again else slug)
        seen[slug] = again + 1
    return anchors


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_the_model_file_shown_is_a_whole_task(tmp_path: Path) -> None:
    (block,) = [block for block in code_of("README.md") if block.startswith("# model.py")]
    (tmp_path / "model.py").write_text(block)
    task = load_task(tmp_path / "model.py")
    assert task.train_data is not None
    assert len(task.train_data()) == 600
    assert task.baseline_config()[1]


def test_the_code_shown_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = [block for block in code_of("docs/largest-batch.md") if "find_max_batch" in block]
    (tmp_path / "script.py").write_text(block)
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"\d+ memory \d+\n", result.stdout)


def test_every_part_of_a_task_is_in_the_table_and_nothing_else() -> None:
    table = (ROOT / "docs" / "task-files.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:\([\w, ]*\))?` \|", table, re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(Task)} - {"name", "path", "remarks"}
    shown = {"model", "train_data", "val_data", "baseline"}  # in the README's example, and above the table
    assert set(rows) | shown == fields


@pytest.mark.parametrize("page", [README, COMMANDS], ids=["README", "commands"])
def test_every_command_and_flag_shown_exists(page: str) -> None:
    shown = set(re.findall(r"(?:`|&& )autobatch ([a-z-]+)", page))  # typed, and not the name in a sentence
    commands = {name: command for name, command in cli.commands.items() if isinstance(command, click.Command)}
    flags = {
        flag
        for command in commands.values()
        for option in command.params
        for flag in (*option.opts, *option.secondary_opts)
    }
    assert shown == set(commands)
    others = r"^pip install.*$|`\.ci.*$|pytest -m \w+|python benchmarks/[^`]*|torchrun --[a-z-]+|\"python [^\"]*\""
    prose = re.sub(others, "", page, flags=re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose)) <= flags


@pytest.mark.parametrize("name", [name for name, command in cli.commands.items() if isinstance(command, click.Command)])
def test_every_flag_of_every_command_is_told(name: str) -> None:
    command = cli.commands[name]
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert {flag for option in options for flag in option.opts} <= set(
        re.findall(r"(?<![\w-])--?[a-z][a-z-]*", COMMANDS)
    )


def test_the_two_commands_are_there_as_the_checks_run_them() -> None:
    assert "pip install -c constraints.txt -e '.[examples]' && autobatch tune examples/digits.py --budget 60s" in README
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in README.splitlines()


def test_the_example_passes_the_projects_own_check() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is in the extra `examples`, and so in `test`")
    task = load_task(ROOT / "examples" / "digits.py")
    config, is_users = task.baseline_config()
    assert is_users
    assert check_task(task, torch.device("cpu"), config.plan.batch_size).warnings == ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target) if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors_of(path.read_text(encoding="utf-8")), link


def test_every_file_and_name_in_the_architecture_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+/[\w/]*(?:\.py|/)?(?=[`\s,)])", re.sub(r"\]\([^)]*\)", "]", text)))
    named = {name for name in named if name.endswith((".py", "/"))}
    assert len(named) > 30
    for name in named:
        assert (ROOT / "autobatch" / name).exists() or (ROOT / name).exists(), name
    code = "".join(path.read_text() for room in ("autobatch", "tests") for path in sorted((ROOT / room).rglob("*.py")))
    for name in re.findall(r"`([A-Z_]{2,}|[A-Z]\w+)`", text):
        assert re.search(rf"^(?:class )?{name}\b[ :(]", code, re.MULTILINE), name


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        waiting += [page.parent / link for link in links if "://" not in link]
    assert {page.resolve() for page in PAGES} - {(ROOT / "CHANGELOG.md").resolve()} <= seen


def test_constraints_hold_versions_and_no_addresses() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
