"""What workers print to stderr is passed on as it is, and a library's warning once in a command."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.engines.processes import relay
from autobatch.engines.processes.relay import Relay, WarningFilter

ROOT = Path(__file__).resolve().parents[2]
STAMP = b"[W1129 12:00:00.123456789 "
LATER = b"[W1130 09:41:07.000000001 "


@pytest.fixture(autouse=True)
def nothing_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_shown", set())


def shown(*pieces: bytes) -> bytes:
    lines = WarningFilter()
    return b"".join(map(lines.passed, pieces)) + lines.flushed()


def cut(text: bytes, at: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(place % (len(text) + 1) for place in at), len(text)]
    return (text[begin:end] for begin, end in itertools.pairwise(edges))


LINES = [
    b"Traceback (most recent call last):\n",
    b'  File "model.py", line 3, in loss\n',
    b"epoch 3\n",
    b"\r 10%|#  | 1/10",
    b"\r 20%|## | 2/10",
    b"[1/10] loss 0.5\n",
    b"[W] a task's own tag\n",
    b"[E1129 12:00:00.123456789 a.cpp:1] an error\n",
    b"[",
    b"[rank0]: said\n",
    b"\n",
    b"\xff\x00",
]


@given(st.lists(st.sampled_from(LINES)), st.lists(st.integers(min_value=0), max_size=6))
def test_whatever_else_is_printed_is_passed_on_byte_for_byte(lines: list[bytes], at: list[int]) -> None:
    text = b"".join(lines)
    assert shown(*cut(text, at)) == text


@given(st.lists(st.integers(min_value=0), max_size=6), st.sampled_from([b"", b"[rank0]:", b"[rank11]:"]))
def test_a_warning_of_torchs_is_shown_once_however_it_comes_in_pieces(at: list[int], rank: bytes) -> None:
    relay._shown.clear()
    one, other = b"NNPACK.cpp:57] Could not initialize NNPACK!\n", b"Utils.cpp:9] Another. (function operator())\r\n"
    text = b"begin\n" + rank + STAMP + one + STAMP + other + b"between\n" + LATER + one + b"between\n" + LATER + other
    expected = b"begin\n" + rank + STAMP + one + STAMP + other + b"between\nbetween\n"
    assert shown(*cut(text, at)) == expected
    assert shown(*cut(text, at)) == b"begin\nbetween\nbetween\n"  # of another worker


def test_a_warning_behind_a_progress_bar_is_part_of_its_line() -> None:
    line = b"\r 10%|#" + STAMP + b"a.cpp:1] careful\n"
    assert shown(line[:7], line[7:], line) == line + line


def test_a_line_that_goes_on_is_shown_at_once_and_its_end_later() -> None:
    lines = WarningFilter()
    assert lines.passed(b"loading ") == b"loading "
    assert lines.passed(b"[W") == b"[W"
    assert lines.passed(b"\n[") == b"\n"
    assert (lines.held, lines.flushed(), lines.held) == (b"[", b"[", b"")
    assert lines.passed(STAMP[1:] + b"a.cpp:1] careful\n") == STAMP[1:] + b"a.cpp:1] careful\n"


def test_a_relay_ends_with_those_who_write_and_outlives_its_reader() -> None:
    read, write = os.pipe()
    passing = Relay(write)
    ours = os.dup(passing.write_end)
    passing.started()
    os.write(ours, b"one\n")
    assert os.read(read, 10) == b"one\n"
    os.close(read)
    for _ in range(50):  # more than fits in a pipe that nobody reads
        os.write(ours, b"x" * 8192)
    os.close(ours)
    passing.drain()
    assert not passing._thread.is_alive()
    os.close(write)


NOISY = """
import logging, sys
logger = logging.getLogger("noisy")
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
logger.addHandler(handler)
logger.propagate = False
def made():
    logger.warning("the %s is deprecated", "library")
    logger.error("an error of the library")
"""
TASK = """
import logging, os, sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
import noisy
def data(): return TensorDataset(torch.randn(64, 3), torch.randint(2, (64,)))
train_data = val_data = data
def model():
    noisy.made()
    logging.getLogger("own").warning("the task's own log")
    print("a print of the task")
    os.write(2, b"[W1129 12:00:00.%09d NNPACK.cpp:57] Could not initialize NNPACK!\\n" % os.getpid())
    return nn.Linear(3, 2)
"""


def test_a_warning_of_a_library_is_printed_once_a_command_and_nothing_of_the_tasks_own_is_lost(tmp_path: Path) -> None:
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "noisy.py").write_text(NOISY)
    (tmp_path / "model.py").write_text(TASK)
    command = [sys.executable, "-m", "autobatch", "max-batch", "model.py", "--device", "cpu"]
    paths = os.pathsep.join((str(ROOT), str(library)))
    variables = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, timeout=600, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calls = done.stderr.count("a print of the task")
    assert calls > 2  # in several processes
    assert done.stderr.count("the task's own log") == calls
    assert done.stderr.count("an error of the library") == calls
    assert done.stderr.count("the library is deprecated\n") == 1
    assert done.stderr.count("Could not initialize NNPACK!") == 1
