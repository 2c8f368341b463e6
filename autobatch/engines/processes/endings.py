"""How to end a process with everything that it started, so that nothing is left that only those processes would have
cleaned up.

A worker leads a process group, which is killed. A process that the task puts into another session has left that group.
Linux has two other ways to reach it: a variable in the environment, which every process inherits, and the children that
a subreaper gets when their parent ends (`prctl(2)`).

multiprocessing has a process that cleans up after killed ones: when all of them are gone, it removes their semaphores
    and shared memory, and ends. So it is not killed, but waited for.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import NamedTuple

# This variable holds a word that identifies a worker. All processes that it starts inherit it.
MARK = "AUTOBATCH_STARTED_BY"

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
# How multiprocessing starts that process, and joblib's loky its own.
_TRACKER = b"resource_tracker import main"
# A killed process may have started another one just before, so the search is repeated until it finds none. Assumed:
# this often at most.
_MOST_LOOKS = 20
_TRACKER_S = 5.0  # assumed: the most that trackers need to clean up and end on a busy machine; usually milliseconds
_PAUSE_S = 0.005


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int
    is_zombie: bool


def new_mark() -> str:
    """A value of `MARK` for the processes to start next. It contains the words of outer processes."""
    return " ".join(filter(None, (os.environ.get(MARK), f"{os.getpid()}-{secrets.token_hex(8)}")))


def end_group(pid: int) -> None:
    """Kill the process group that `pid` leads or led, this process last if it is a member. Does nothing if the group is
    gone.
    """
    with suppress(ProcessLookupError):
        trackers = [one.pid for one in _processes() if one.group == pid and _is_tracker(one.pid)]
        if not trackers:
            os.killpg(pid, signal.SIGKILL)
            return
        if os.getpgid(0) != pid:
            os.killpg(pid, signal.SIGSTOP)  # from here on no member can start another process
        _kill_all(lambda one: one.group == pid, spared=(os.getpid(),))
        for tracker in trackers:
            with suppress(ProcessLookupError):
                os.kill(tracker, signal.SIGCONT)
        if os.getpgid(0) == pid:
            os.kill(os.getpid(), signal.SIGKILL)
        _wait_for(trackers)


def end_marked(mark: str, spared: Collection[int] = ()) -> None:
    """Kill all processes with `mark` in their environment, in any group or session, except for `spared`."""
    word = mark.split()[-1].encode()
    trackers = _kill_all(lambda one: not one.is_zombie and word in _read(one.pid, "environ"), spared)
    _wait_for(trackers)


def group_of(pid: int, mark: str) -> set[int]:
    """The running processes of the group that `pid` leads, and those that were started with `mark`."""
    word = mark.split()[-1].encode()
    alive = [one for one in _processes() if not one.is_zombie]
    return {one.pid for one in alive if one.group == pid or word in _read(one.pid, "environ")}


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose own parent ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """The children of this process."""
    return {one.pid for one in _processes() if one.parent == os.getpid()}


def end_children(but: Collection[int]) -> None:
    """Kill this process's children except `but`, with everything that they started, and reap them."""
    for _ in range(_MOST_LOOKS):
        ours = [one for one in _processes() if one.parent == os.getpid() and one.pid not in but]
        ended = [one.pid for one in ours if one.is_zombie or not _is_tracker(one.pid)]
        for pid in ended:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in ended:
            _reap(pid)
        if not ended:
            _wait_for([one.pid for one in ours])
            for one in ours:
                _reap(one.pid)
            return


def _kill_all(is_one: Callable[[_Process], bool], spared: Collection[int]) -> list[int]:
    """Kill all processes that `is_one` selects, except trackers. Returns the trackers."""
    trackers: set[int] = set()
    for _ in range(_MOST_LOOKS):
        pids = [one.pid for one in _processes() if not one.is_zombie and one.pid not in spared and is_one(one)]
        trackers |= {pid for pid in pids if _is_tracker(pid)}
        killed = 0
        for pid in pids:
            if pid not in trackers:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        if not killed:
            break
        time.sleep(_PAUSE_S)
    return sorted(trackers)


def _wait_for(trackers: Collection[int]) -> None:
    deadline_s = time.monotonic() + _TRACKER_S
    while any(_is_tracker(pid) for pid in trackers) and time.monotonic() < deadline_s:
        time.sleep(_PAUSE_S)


def _reap(pid: int) -> None:
    deadline_s = time.monotonic() + _TRACKER_S
    with suppress(ChildProcessError):
        while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline_s:
            time.sleep(_PAUSE_S)


def _processes() -> Iterator[_Process]:
    """All processes that this one may see; none without /proc."""
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (one := _process(int(name))) is not None:
                yield one


def _process(pid: int) -> _Process | None:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return _Process(pid, int(fields[1]), int(fields[2]), fields[0] in (b"Z", b"X")) if len(fields) > 2 else None


def _is_tracker(pid: int) -> bool:
    for _ in range(_MOST_LOOKS):
        if words := _read(pid, "cmdline"):
            return _TRACKER in words
        process = _process(pid)
        if process is None or process.is_zombie:
            return False
        time.sleep(_PAUSE_S)  # it is in the middle of exec
    return False


def _read(pid: int, what: str) -> bytes:
    """A file of a process; empty if the process has ended or belongs to another user."""
    with suppress(OSError), open(f"/proc/{pid}/{what}", "rb", 0) as file:
        return file.read()
    return b""
