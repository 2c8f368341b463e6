"""What of a process's life the budget pays for."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from autobatch.cli import start as cli

SAYS = (
    "import time; from autobatch.cli import start as c; "
    "print(c.since_start_s(), c.process_age_s(), time.monotonic() - c.IMPORTED_S)"
)
PROC = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def said(*command: str) -> list[float]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return [float(number) for number in done.stdout.split()]


@PROC
def test_what_a_shell_did_before_an_exec_is_not_charged() -> None:
    shell = f"sleep {cli.INTERPRETER_S + 0.5}; exec {sys.executable} -c '{SAYS}'"
    since_start_s, age_s, since_import_s = said("sh", "-c", shell)
    assert age_s > cli.INTERPRETER_S + 0.4  # the shell's process is ours
    assert since_start_s == pytest.approx(since_import_s, abs=0.5 * cli.INTERPRETER_S)


@PROC
def test_the_start_of_an_interpreter_is_charged() -> None:
    since_start_s, age_s, since_import_s = said(sys.executable, "-c", SAYS)
    if age_s - since_import_s < cli.INTERPRETER_S - 0.1:  # else this machine is too busy to tell the two apart
        assert since_import_s < since_start_s <= age_s + 0.02


@pytest.mark.parametrize(
    ("before_s", "after_s", "charged_s"), [(0.3, 2.0, 2.3), (4.9, 100.0, 104.9), (5.2, 2.0, 2.0), (7200.0, 1.0, 1.0)]
)
def test_only_what_an_interpreter_may_have_taken_counts(
    before_s: float, after_s: float, charged_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    monkeypatch.setattr(cli, "IMPORTED_S", 1000.0 - after_s)
    monkeypatch.setattr(cli, "process_age_s", lambda: before_s + after_s)
    assert cli.since_start_s() == pytest.approx(charged_s)
