"""The foot of each `--help`, what a mistyped word is answered with, and `--dry-run` as a user types it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from autobatch.cli.app import cli

from .test_cli import MINIMAL, autobatch, refused

COMMANDS: dict[str, click.Command] = {"autobatch": cli} | {f"autobatch {n}": c for n, c in cli.commands.items()}


def examples_of(command: click.Command) -> list[str]:
    """The commands at the foot of its `--help`."""
    lines = (command.epilog or "").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("autobatch ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_example_of_a_help_can_be_typed(name: str) -> None:
    examples = examples_of(COMMANDS[name])
    assert examples
    for example in examples:
        program, word, *rest = shlex.split(example)
        assert program == "autobatch"
        assert name in ("autobatch", f"autobatch {word}"), "it shows the command that it stands below"
        if "--help" not in rest:
            with cli.commands[word].make_context(word, rest):
                pass  # it was parsed


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_stand_on_lines_of_their_own_on_any_terminal(name: str) -> None:
    words = name.split()[1:]
    shown = CliRunner().invoke(cli, [*words, "--help"], env={"COLUMNS": "80"}).output
    lines = [line.strip() for line in shown.splitlines()]
    for example in examples_of(COMMANDS[name]):
        assert example in lines
        assert len(example) <= 76


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tune x.py --bugdet 3s", "--budget"),
        ("tune x.py --dryrun", "--dry-run"),
        ("tnue x.py", "'tune'"),
        ("max-batch x.py --mode trainig", "'inference'; did you mean training?"),
        ("find-lr x.py --rule min10", "did you mean min/10?"),
        ("tune x.py --search tep", "did you mean tpe?"),
        ("tune x.py --search freezethaw", "did you mean freeze-thaw?"),
        ("tune x.py --engine rya", "did you mean ray?"),
        ("profile x.py --objective energie", "did you mean energy?"),
        ("apply x.json --as ymal", "did you mean yaml?"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_one_that_was_meant(words: str, message: str) -> None:
    done = CliRunner().invoke(cli, shlex.split(words))
    assert done.exit_code == 2
    assert "id you mean" in done.output
    assert message in done.output


@pytest.mark.parametrize("words", ["max-batch x.py --mode zzz", "tune x.py --search 42"])
def test_a_word_like_none_is_answered_with_all_of_them(words: str) -> None:
    done = CliRunner().invoke(cli, shlex.split(words))
    assert done.exit_code == 2
    assert "is not one of" in done.output
    assert "did you mean" not in done.output


# -- processes


@pytest.mark.usefixtures("ready_python")
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cudda", "did you mean cuda?"),
        ("CPPU", "did you mean cpu?"),
        ("gpu", "did you mean auto, which takes a GPU where there is one?"),
        ("cdua:1", "did you mean cuda?"),
    ],
)
def test_a_mistyped_device(device: str, message: str, tmp_path: Path) -> None:
    said = refused(autobatch("max-batch", MINIMAL, "--device", device, cwd=tmp_path))
    assert "There is: " in said
    assert said.rstrip().endswith(message)


@pytest.mark.usefixtures("ready_python")
def test_a_mistyped_function_of_a_task_file(tmp_path: Path) -> None:
    text = MINIMAL.read_text().replace("def val_data", "def valdata")
    assert text != MINIMAL.read_text()
    (tmp_path / "model.py").write_text(text)
    said = refused(autobatch("tune", "model.py", "--dry-run", cwd=tmp_path))
    assert "valdata would be ignored; did you mean val_data?" in said


@pytest.mark.usefixtures("ready_python")
def test_a_dry_run_says_what_would_run_and_leaves_nothing_behind(tmp_path: Path) -> None:
    words = ("tune", MINIMAL, "--budget", "2h", "--train-time", "1m", "--device", "cpu", "--dry-run")
    shown = autobatch(*words, "--output", "plan.json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("minimal\nA dry run: no search, no training, nothing written.\n")
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["horizon_s"] == 60.0
    assert sum(stage["seconds"] for stage in plan["stages"]) == pytest.approx(7200.0)
    assert plan["step_s"] > 0
    assert plan["eval_s"] > 0


@pytest.mark.usefixtures("ready_python")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume"], "leave out --resume, or --dry-run"),
        (["--engine", "ray"], "leave out --engine ray, or --dry-run"),
        (["--budget", "10mins"], "a duration is written 90s, 10m"),
    ],
)
def test_a_dry_run_is_refused_with_the_remedy(words: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(autobatch("tune", MINIMAL, "--dry-run", *words, cwd=tmp_path))


@pytest.mark.usefixtures("ready_python")
def test_a_dry_run_of_a_short_budget_says_which_would_do(tmp_path: Path) -> None:
    shown = autobatch("tune", MINIMAL, "--dry-run", "--budget", "0.1s", "--device", "cpu", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Give at least " in " ".join(shown.stdout.split())
    assert list(tmp_path.iterdir()) == []
