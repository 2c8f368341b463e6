"""What a command says and does where its surroundings fail it: streams, folders, interpreters, a task's exits."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from autobatch.cli.app import main
from autobatch.cli.exits import end_on_signals
from autobatch.engines.processes import fork_server as processes
from autobatch.engines.processes.fork_server import StartedProcess
from autobatch.engines.processes.streams import LastingFile, lasting
from autobatch.engines.processes.warned import shared_file
from autobatch.errors import StartError, first_line, text_of
from autobatch.runs.run_folder import read_state

from ..helpers.ready_python import Started
from .test_cli import MINIMAL, QUICK, autobatch, environment, interrupt_race, refused

needs_ready_python = pytest.mark.usefixtures("ready_python")


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """The exit code and the message of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["autobatch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


def task(folder: Path, text: str) -> Path:
    path = folder / "model.py"
    path.write_text(f"{MINIMAL.read_text()}\n\n{text}")
    return path


# -- what a task raises

BAD = "class Bad(Exception):\n    def __str__(self):\n        {}\n\n\ndef loss(model, batch):\n    raise Bad\n"


@needs_ready_python
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BAD.format("raise ValueError('no')"), r"loss\(model, batch\) of model.py failed: \S*Bad: <exception str"),
        (BAD.format("return 3"), r"loss\(model, batch\) of model.py failed: \S*Bad: <exception str"),
        ("def loss(model, batch):\n    raise KeyboardInterrupt", r"the task raised KeyboardInterrupt.*\n.*in loss"),
        ("def train_data():\n    raise KeyboardInterrupt", r"the task raised KeyboardInterrupt.*\n.*in train_data"),
        ("raise KeyboardInterrupt", r"the task raised KeyboardInterrupt.*\n.*model.py"),
        ("def loss(model, batch):\n    raise GeneratorExit", r"the task raised GeneratorExit.*\n.*in loss"),
    ],
)
def test_what_a_task_raises_is_no_bug_of_ours(text: str, message: str, tmp_path: Path) -> None:
    said = refused(autobatch("max-batch", task(tmp_path, text), "--max-batch-size", 2, cwd=tmp_path))
    assert re.search(message, said)
    assert "bug in autobatch" not in said


@needs_ready_python
def test_no_control_code_of_a_task_reaches_the_terminal(tmp_path: Path) -> None:
    says = r"\x1b[31mred\x1b]0;title\x07 \x9b2J [bold]x[/bold]"
    path = task(tmp_path, f'def loss(model, batch):\n    raise ValueError("{says}")\n')
    for debug in ([], ["--debug"]):
        said = autobatch("max-batch", path, "--max-batch-size", 2, *debug, cwd=tmp_path).stderr
        assert f"ValueError: {says}" in said
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)


def test_an_error_that_cannot_be_told_has_a_text_all_the_same() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert text_of(Silent()) == first_line(Silent()) == "<exception str() failed>"
    assert text_of(ValueError("one\ntwo")) == "one\ntwo"


@needs_ready_python
def test_a_warning_that_each_worker_gives_is_shown_once(tmp_path: Path) -> None:
    """The ones of an import and of a call; another one, of the same line, is another one."""
    text = "import warnings\nwarnings.warn('at import')\n\n\ndef model():\n    for word in ('one', 'two'):\n"
    text += "        warnings.warn(f'{word} in a call')\n    return nn.Sequential(nn.Linear(8, 3))\n"
    done = autobatch("max-batch", task(tmp_path, text), "--max-batch-size", 8, "--prove", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fresh") + done.stderr.count("memory: ") > 1  # processes of their own
    for word in ("UserWarning: at import", "UserWarning: one in a call", "UserWarning: two in a call"):
        assert done.stderr.count(word) == 1, done.stderr


# -- folders and the interpreter


def test_a_folder_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for words in (["doctor"], ["runs"], ["max-batch", str(MINIMAL)], ["tune", str(MINIMAL), "--resume"]):
        code, message = told(capsys, monkeypatch, *words)
        assert (code, message) == (
            2,
            "autobatch: the current folder has been removed: change to one that exists\n",
        )


@pytest.mark.parametrize("kind", ["not executable", "missing", "no program", "unknown"])
def test_a_python_that_may_not_be_run_is_told(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    if kind != "missing":
        python.write_text("\x7fnothing that runs")
        python.chmod(0o755 if kind == "no program" else 0o644)
    monkeypatch.setattr(processes, "subprocess", subprocess)
    monkeypatch.setattr(sys, "executable", "" if kind == "unknown" else str(python))
    monkeypatch.chdir(tmp_path)
    code, message = told(capsys, monkeypatch, "max-batch", str(MINIMAL), "--device", "cpu")
    assert code == 1
    assert re.search("^autobatch: a worker (cannot be started with|is a new Python process)", message)
    assert "bug in autobatch" not in message


def test_a_worker_that_cannot_be_started_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "subprocess", subprocess)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    shared_file()  # one that stays, for all workers
    before = len(os.listdir("/proc/self/fd")) if sys.platform.startswith("linux") else 0
    ours, theirs = Pipe()
    with ours, theirs, pytest.raises(StartError, match=r"cannot be started with .*: No such file"):
        StartedProcess(theirs, log=tmp_path / "log")
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


# -- streams


def piped(folder: Path, *words: object, lost: str, **changes: str) -> tuple[int, str]:
    """The exit code of a command whose `lost` stream nobody reads, and what went to the other one."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "autobatch", *map(str, words)]
    try:
        with open(folder / "kept", "w") as kept:
            streams = {"stdout": kept.fileno(), "stderr": kept.fileno(), lost: writer}
            process = Started(command, cwd=folder, env=environment(**changes), **streams)
            code: int = process.wait(timeout=600)
    finally:
        os.close(writer)
    return code, (folder / "kept").read_text()


@needs_ready_python
@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"], ["--help"], ["tune", "--help"], ["--version"]])
def test_a_closed_pipe_ends_a_command_as_it_ends_others(words: list[str], tmp_path: Path) -> None:
    assert piped(tmp_path, *words, lost="stdout") == (-signal.SIGPIPE, "")


@needs_ready_python
def test_a_run_whose_result_nobody_reads_is_whole(tmp_path: Path) -> None:
    words = ["max-batch", MINIMAL, "--max-batch-size", 4, "--output", "out.json", "--quiet"]
    assert piped(tmp_path, *words, lost="stdout") == (-signal.SIGPIPE, "")
    assert json.loads((tmp_path / "out.json").read_text())["batch_size"] == 4


@needs_ready_python
def test_a_run_whose_progress_nobody_reads_goes_on(tmp_path: Path) -> None:
    """What the task prints, at that, and what it warns of."""
    path = task(tmp_path, "import sys, warnings\nprint('x' * 100_000, flush=True)\nwarnings.warn('careful')\n")
    code, result = piped(tmp_path, "max-batch", path, "--max-batch-size", 4, "--json", lost="stderr")
    assert code == 0
    assert json.loads(result)["batch_size"] == 4


@needs_ready_python
def test_a_failure_keeps_its_exit_code_though_nobody_reads_why(tmp_path: Path) -> None:
    assert piped(tmp_path, "max-batch", "missing.py", lost="stderr") == (2, "")


@needs_ready_python
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"]])
def test_a_result_that_a_full_disk_did_not_take_is_told(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, open(tmp_path / "err", "w") as err:
        command = [sys.executable, "-m", "autobatch", *words]
        code = Started(command, cwd=tmp_path, env=environment(), stdout=full, stderr=err).wait(timeout=600)
    assert code == 1
    assert (tmp_path / "err").read_text() == "autobatch: the result cannot be printed: No space left on device\n"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_stream_whose_reader_goes_drops_what_comes_later(unbuffered: bool) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb", 0 if unbuffered else -1) as raw:
        before = io.TextIOWrapper(raw, encoding="ascii", write_through=unbuffered)
        stream = lasting(before)
        print("é and more", file=stream, flush=True)
        assert os.read(reader, 100) == b"\\xe9 and more\n"
        os.close(reader)
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)
        file = stream.buffer if unbuffered else stream.buffer.raw
        assert isinstance(file, LastingFile)
        assert isinstance(file.trouble, BrokenPipeError)
        stream.detach()
        before.detach()


# -- signals


@needs_ready_python
@pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="this was started to outlive its terminal"
)
def test_a_terminal_that_is_closed_ends_a_run_with_its_report_kept(tmp_path: Path) -> None:
    words = ("tune", str(MINIMAL), *QUICK, "--json")
    code, stdout, stderr = interrupt_race(tmp_path, 1, *words, number=signal.SIGHUP)
    assert code == 130, stderr
    (folder,) = tmp_path.glob(".autobatch/minimal/*")
    assert json.loads((folder / "report.json").read_text()) == json.loads(stdout)
    assert json.loads(stdout)["interrupted"]
    assert not read_state(folder).is_finished


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_command_that_is_to_outlive_its_terminal_does(before: signal.Handlers) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, before)
        end_on_signals()
        if before == signal.SIG_IGN:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        else:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # the second one says nothing new
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
