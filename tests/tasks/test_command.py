"""A command as it is typed: its places, its words, what it lacks, and what is wrong with it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.plan import Config, Plan
from autobatch.engines.commands.output import Output, score_in
from autobatch.errors import SettingError, TaskError
from autobatch.tasks.command import PLACES, Command, filled_in
from autobatch.tasks.script_hint import command_hint
from autobatch.tasks.task import load_task

TRAIN = "python train.py --batch-size {batch_size} --lr {lr}"
CONFIG = Config(plan=Plan(batch_size=64, accumulation_steps=2), lr=3e-3)


def test_places_are_filled_in_and_other_braces_stay() -> None:
    command = Command(
        """A=1 B={batch_size} python train.py --bs={batch_size} --json '{"a": {"b": 1}}' {{lr}} 'two words {lr}'"""
    )
    assert command.places == ("batch_size", "lr")
    words, variables = command.filled({"batch_size": "8", "lr": "0.1"})
    assert words == ["python", "train.py", "--bs=8", "--json", '{"a": {"b": 1}}', "{lr}", "two words 0.1"]
    assert variables == {"A": "1", "B": "8"}


def test_a_shell_gets_one_line_and_a_value_is_one_word_of_it() -> None:
    command = Command("echo {batch_size} ${HOME} > {checkpoint}", shell=True)
    words, variables = command.filled({"batch_size": "8", "checkpoint": "/a b/$(rm x)"})
    assert words == ["/bin/sh", "-c", "echo 8 ${HOME} > '/a b/$(rm x)'"]
    assert variables == {}


@given(st.text(st.characters(exclude_characters="\0"), max_size=30))
def test_no_value_becomes_two_words(value: str) -> None:
    words, _ = Command("run {batch_size} x{checkpoint}y").filled({"batch_size": "1", "checkpoint": value})
    assert words == ["run", "1", f"x{value}y"]


def test_the_answer_is_a_command_to_type() -> None:
    text = f"{TRAIN} --accum {{accumulation_steps}} --steps {{max_steps}}"
    assert filled_in(text, CONFIG) == "python train.py --batch-size 64 --lr 0.003 --accum 2 --steps {max_steps}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("python train.py", r"a command has the place \{batch_size\}, where the batch size is put: python train\.py"),
        ("", "a command is text as it is typed"),
        ("python train.py {batchsize}", r"no place \{batchsize\}: did you mean \{batch_size\}\?"),
        ("python train.py {batch_sise}", r"did you mean \{batch_size\}\?"),
        ("python train.py {batch-size}", r"did you mean \{batch_size\}\?"),
        ("python train.py {batch_size} {learning_rate}", r"did you mean \{lr\}\? There are \{batch_size\}, \{lr\}, "),
        ("python train.py {batch_size} {grad_accum}", r"did you mean \{accumulation_steps\}\?"),
        (
            "python train.py {batch_size} {wat}",
            r"no place \{wat\}\. There are .*; \{\{wat\}\} stands for \{wat\} itself",
        ),
        (
            "python train.py {batch_size} --epochs {epochs}",
            r"an epoch of a larger batch has fewer steps",
        ),
        ("python train.py {batch_size} {max_steps} {max_seconds}", "both end a run"),
        ("python train.py {batch_size} {total_steps}", r"\{max_steps\} is a part"),
        ("python 'train.py {batch_size}", "No closing quotation"),
        ("A=1 B={batch_size}", "a command begins with a program"),
        ("python train.py {batch_size} > log", "without a shell, which '>' is for"),
        ("cd src && python train.py {batch_size}", "without a shell, which '&' is for"),
        ("python train.py --data $DATA {batch_size}", r"without a shell, which '\$D' is for: give --shell"),
    ],
)
def test_what_is_wrong_with_a_command_is_told_with_the_remedy(text: str, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        Command(text)


def test_what_is_in_quotes_needs_no_shell() -> None:
    words, _ = Command("""python train.py {batch_size} --name 'a|b' --other "x > $y" \\$z""").words, None
    assert words[1][3:] == ("--name", "a|b", "--other", "x > $y", "$z")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"score": "acc=[0-9.]+"}, r"one group, around the number: .*'acc=\[0-9\.\]\+' has 0"),
        ({"score": "(a)cc=([0-9.]+)"}, r"has 2\. Mark others \(\?:\.\.\.\), or call the number's"),
        ({"score": "acc=("}, "is a regular expression; 'acc=\\(': "),
        ({"score_file": "result.json"}, '"result.json:val_acc"; found'),
        ({"score": "a=(.)", "score_file": "r.json:a"}, "leave out --score or --score-file"),
        ({"direction": "up"}, '"maximize" or "minimize"; found \'up\''),
        ({"baseline": "32 1e-3"}, 'is written "batch_size=32 lr=1e-3"; found'),
        ({"baseline": "batch_size=32 learning_rate=1"}, "found learning_rate: did you mean lr\\?"),
        ({"baseline": "batch_size=32.5 lr=1"}, "batch_size of a baseline is a whole number above 0; found 32.5"),
        ({"baseline": {"batch_size": 0, "lr": 1}}, "whole number above 0; found 0"),
        ({"baseline": "batch_size=8 lr=nan"}, "lr of a baseline is a number above 0; found nan"),
        ({"grace": "soon"}, "a duration is written"),
    ],
)
def test_what_is_wrong_with_what_is_said_of_it_too(said: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        Command(TRAIN, **said)


def test_a_baseline_is_written_in_many_ways() -> None:
    for baseline in ("batch_size=32 lr=1e-3", "--batch-size=32, --lr=0.001", {"batch_size": 32, "lr": 0.001}):
        config, is_users = Command(TRAIN, baseline=baseline).baseline_config()
        assert (config, is_users) == (Config(plan=Plan(batch_size=32), lr=1e-3), True)
    assert Command(TRAIN, baseline="batch_size=4 lr=1 accumulation_steps=3").baseline_config()[0].plan == Plan(
        batch_size=4, accumulation_steps=3
    )


@pytest.mark.parametrize(
    ("text", "said", "lacks"),
    [
        ("python train.py {batch_size}", {}, r"\{lr\} is missing in the command"),
        (TRAIN, {}, "--maximize or --minimize"),
        (TRAIN, {"direction": "maximize"}, '--baseline "batch_size=32 lr=1e-3"; batch_size and lr are missing'),
        (TRAIN, {"direction": "maximize", "baseline": "lr=1"}, "batch_size is missing"),
    ],
)
def test_what_it_lacks_to_be_tuned_is_said_one_by_one(text: str, said: dict[str, Any], lacks: str) -> None:
    found = Command(text, **said).lacks
    assert found is not None
    assert re.search(lacks, found)
    assert Command(TRAIN, direction="maximize", baseline="batch_size=1 lr=1").lacks is None


def test_how_long_a_run_is_follows_from_the_places() -> None:
    assert Command(TRAIN).length == "stop"
    assert Command(f"{TRAIN} {{max_seconds}}").length == "seconds"
    assert Command(f"{TRAIN} {{max_steps}} of {{total_steps}}").length == "steps"
    assert all(name in PLACES for name in Command(TRAIN).places)


def test_a_program_or_a_script_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the program pythn of the command is not there, nor on the PATH"):
        Command("pythn {batch_size}").check_program()
    (tmp_path / "train.py").write_text("")
    with pytest.raises(SettingError, match=r"there is no file .*/trian\.py, .*did you mean .*/train\.py\?"):
        Command(f"{sys.executable} {tmp_path}/trian.py {{batch_size}}").check_program()
    Command(f"{sys.executable} {tmp_path}/train.py {{batch_size}}").check_program()


ARGPARSE = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int)
parser.add_argument("-l", "--learning-rate", required=True)
parser.add_argument("--epochs")
parser.add_argument("--seed")
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ARGPARSE + "args = parser.parse_args()", "exited while it was imported"),
        (ARGPARSE + 'if __name__ == "__main__":\n    parser.parse_args()', "it must define model"),
    ],
)
def test_a_script_in_the_place_of_a_task_file_is_told_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    (tmp_path / "code").mkdir()
    file = tmp_path / "code" / "train.py"
    file.write_text(text)
    monkeypatch.chdir(tmp_path)
    typed = "python code/train.py --batch_size {batch_size} --learning-rate {lr} --seed {seed}"
    with pytest.raises(TaskError, match=f"(?s){told}.*" + re.escape(f'autobatch tune --command "{typed}" --score')):
        load_task(file)


def test_a_script_that_lies_elsewhere_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "train.py"
    file.write_text(ARGPARSE)
    monkeypatch.chdir(tmp_path / "here")
    assert f'--command "python {file} ' in str(command_hint(file))
    (tmp_path / "here").rmdir()
    assert f'--command "python {file} ' in str(command_hint(file))


@pytest.mark.parametrize("text", ["def model():\n    pass\n", "import nothing_that_reads_a_line\n", "\xff"])
def test_a_file_that_reads_no_command_line_is_no_script(tmp_path: Path, text: str) -> None:
    file = tmp_path / "model.py"
    file.write_text(text, encoding="latin-1")
    assert command_hint(file) is None


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("val_acc=0.91", 0.91),
        ("epoch 3 val_acc=0.91.", 0.91),
        ("val_acc=1.2e-05, lr=1", 1.2e-05),
        ("val_acc=12", 12.0),
        ("val_acc=0.1 val_acc=0.2", 0.2),
        ("val_acc=", None),
        ("acc=0.5", None),
        ("lr=nan", None),
    ],
)
def test_a_score_is_read_whole(line: str, score: float | None) -> None:
    assert score_in(line, re.compile("val_acc=([0-9.]+)")) == score


@pytest.mark.parametrize("line", ["val_acc=nan", "val_acc=-inf", "val_acc=NaN at step 3", "val_acc=Infinity"])
def test_a_score_that_is_no_number_does_not_leave_the_one_before(line: str) -> None:
    score = score_in(line, re.compile("val_acc=([0-9.]+)"))
    assert score is not None
    assert score != score


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_that_python_prints_is_read_back(value: float) -> None:
    for pattern in (r"loss=([-0-9.]+)", r"loss=(\S+)", r"loss=(?P<score>-?\d+)"):
        assert score_in(f"loss={value!r}", re.compile(pattern)) == value


def output_of(tmp_path: Path, **said: Any) -> Output:
    return Output(Command(TRAIN, **said), {}, tmp_path / "log")


@pytest.mark.parametrize(
    ("text", "key", "score"),
    [
        ('{"val": {"acc": [0.25, 0.5]}}', "val.acc.1", 0.5),
        ('{"acc": "0.5"}', "acc", 0.5),
        ('{"acc": 0.1}\n{"acc": 0.5}\n', "acc", 0.5),  # a line for each epoch
    ],
)
def test_a_score_is_found_in_a_file_of_this_run(tmp_path: Path, text: str, key: str, score: float) -> None:
    file = tmp_path / "result.json"
    file.write_text('{"acc": 9}')  # of another run
    output = output_of(tmp_path, score_file=f"{file}:{key}")
    output.look(0.0)
    assert not output.has_score
    file.write_text(text)
    output.look(1.0)
    assert output.score() == score


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        (json.dumps({"loss": 1, "f1": 2}), r"has no acc; there is loss, f1"),
        ('{"acc": "high"}', "acc in .* is no number: 'high'"),
    ],
)
def test_a_file_without_the_score_says_why(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "result.json"
    output = output_of(tmp_path, score_file=f"{file}:acc")
    file.write_text(text)
    output.look(0.0)
    assert output.score() is None
    assert output.file_problem is not None
    assert re.search(told, output.file_problem)


def test_lines_come_in_pieces_and_a_progress_bar_is_many(tmp_path: Path) -> None:
    output = output_of(tmp_path, score="acc=([0-9.]+)")
    for piece in ("acc=0.", "1\rac", "c=0.2\nother\nacc=0.3"):
        output.take(piece, 0.0)
    assert output.score() == 0.2
    output.end(1.0)
    assert output.score() == 0.3
    assert output.score(until_s=0.5) == 0.2


@pytest.mark.parametrize(
    ("lines", "speed"),
    [
        (["1,234 samples/s"], 1234.0),
        (["'train_samples_per_second': 98.5,"], 98.5),
        (["images/sec: 10", "images/sec: 30", "images/sec: 20"], 20.0),
        (["eval_samples_per_second: 9", "val: 100 samples/s"], None),
        (["12 it/s", "nothing"], None),
    ],
)
def test_a_speed_is_read_from_the_lines_of_people(tmp_path: Path, lines: list[str], speed: float | None) -> None:
    output = output_of(tmp_path)
    output.take("\n".join([*lines, ""]), 0.0)
    assert output.samples_per_s(1) == speed


def test_what_anybody_writes_into_the_log_of_a_script_does_no_harm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    output = output_of(tmp_path)
    log.write_bytes(b'garbage\n\xff\xfe\n[1]\n{"at_s": "x"}\n{"at_s": 1, "score": 0.5, "step": 3}\n{"at_s": 2, "sc')
    output.look(0.0)
    assert output.score() == 0.5
    with open(log, "ab") as more:
        more.write(b'ore": 0.75, "step": 4}\n')
    output.look(1.0)
    assert output.score() == 0.75
    assert output.samples_per_s(8) == 8.0
