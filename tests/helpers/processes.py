"""Whether a process is still there, for tests of what is left behind; and whether there is a core for each of two."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from autobatch.devices.environment import available_cores

on_two_cores = pytest.mark.skipif(available_cores() < 2, reason="on a processor a worker has a core of its own")


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends while it is read
        return False


def marked(mark: str) -> list[int]:
    """The running processes with `mark` in what they were started with: of one coordinator all, its workers too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and running(int(folder.name)):
                found.append(int(folder.name))
        except OSError:  # it ended, or is another user's
            continue
    return found


# For what is sure to come: it only bounds how long a test that fails takes, on whatever machine.
PATIENCE_S = 120.0


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(pid)


def wait_until_unmarked(mark: str) -> bool:
    """Whether no process with `mark` is left, once those that are ending have had the time for it."""
    deadline = time.monotonic() + PATIENCE_S
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not marked(mark)
