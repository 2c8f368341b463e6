"""How the process of a command ends: quickly, with everything printed and every exit handler run."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW_TO_TAKE_APART = """
import atexit, sys
from autobatch import __main__ as entry

class Slow:
    def __del__(self):
        print("taken apart", flush=True)

kept = [Slow()]
kept.append(kept)
atexit.register(lambda: print("handlers run"))
{before}
def run():
    print("x" * 100_000)
    print("told", file=sys.stderr)
    sys.exit({code})

entry.run = run
entry.main()
"""


def ended(code: object, before: str = "") -> subprocess.CompletedProcess[str]:
    script = SLOW_TO_TAKE_APART.format(code=code, before=before)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("3", 3), ("130", 130)])
def test_a_command_ends_with_its_code_its_output_and_its_handlers_and_is_not_taken_apart(
    code: str, expected: int
) -> None:
    done = ended(code)
    assert done.returncode == expected
    assert done.stdout == "x" * 100_000 + "\nhandlers run\n"
    assert done.stderr == "told\n"


@pytest.mark.parametrize(("code", "before"), [("0", "import torch"), ("'a message'", ""), ("None", "")])
def test_a_process_with_torch_ends_as_python_ends(code: str, before: str) -> None:
    done = ended(code, before)
    assert "taken apart" in done.stdout
    assert done.returncode == (1 if "message" in code else 0)


@pytest.mark.parametrize("gone", ["sys.stdout = None", "sys.stdout = open('/dev/null', 'w'); sys.stdout.close()"])
def test_a_command_without_an_output_ends_with_its_code(gone: str) -> None:
    quiet = f"import builtins; {gone}; builtins.print = lambda *_, **__: None"
    assert ended("2", quiet).returncode == 2
