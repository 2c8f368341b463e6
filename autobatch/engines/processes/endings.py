"""How a process is ended with all that it started, and nothing is left that only they would have cleaned up.

A worker leads a process group, which is killed. What a task puts into a session of its own has left that group, and is
found in two other ways, both Linux's: by a variable in the environment that whatever a process starts inherits, and as
the children that a subreaper gets when their parent ends (`prctl(2)`).

multiprocessing has a process for cleaning up after others that were killed: it removes their semaphores and shared
memory when all of them are gone, and ends. So it is spared, and waited for.
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

# What a process started, and what that started, has this variable with the word of its own in it.
MARK = "AUTOBATCH_STARTED_BY"

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
# How multiprocessing starts that process, and joblib's loky its own.
_TRACKER = b"resource_tracker import main"
# What is killed may have started something just before, and is looked for again until nothing is found. Assumed: no
# more often than this.
_MOST_LOOKS = 20
_TRACKER_S = 5.0  # assumed: what the trackers take to clean up and end, on a busy machine too; as a rule milliseconds
_PAUSE_S = 0.005


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int
    is_zombie: bool


def new_mark() -> str:
    """A value of `MARK` for what is started next; words of outer processes stay in it."""
    return " ".join(filter(None, (os.environ.get(MARK), f"{os.getpid()}-{secrets.token_hex(8)}")))


def end_group(pid: int) -> None:
    """Kill the process group that `pid` leads or led, this process last where it is in it; nothing where it is gone."""
    with suppress(ProcessLookupError):
        trackers = [one.pid for one in _processes() if one.group == pid and _is_tracker(one.pid)]
        if not trackers:
            os.killpg(pid, signal.SIGKILL)
            return
        if os.getpgid(0) != pid:
            os.killpg(pid, signal.SIGSTOP)  # nothing in it starts another process from here on
        _kill_all(lambda one: one.group == pid, spared=(os.getpid(),))
        for tracker in trackers:
            with suppress(ProcessLookupError):
                os.kill(tracker, signal.SIGCONT)
        if os.getpgid(0) == pid:
            os.kill(os.getpid(), signal.SIGKILL)
        _wait_for(trackers)


def end_marked(mark: str, spared: Collection[int] = ()) -> None:
    """Kill what was started with `mark` in its environment, whatever its group or session, but for `spared`."""
    word = mark.split()[-1].encode()
    trackers = _kill_all(lambda one: not one.is_zombie and word in _read(one.pid, "environ"), spared)
    _wait_for(trackers)


def group_of(pid: int, mark: str) -> set[int]:
    """The running processes of the group that `pid` leads, and those that were started with `mark`."""
    word = mark.split()[-1].encode()
    alive = [one for one in _processes() if not one.is_zombie]
    return {one.pid for one in alive if one.group == pid or word in _read(one.pid, "environ")}


def adopt_orphans() -> None:
    """Have the children of this process's children become its own when their parent ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Of this process."""
    return {one.pid for one in _processes() if one.parent == os.getpid()}


def end_children(but: Collection[int]) -> None:
    """Kill this process's children but some, and what they started, and reap them."""
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
    """Kill all such processes but trackers, which are returned."""
    trackers: set[int] = set()
    for _ in range(_MOST_LOOKS):
        found = [one.pid for one in _processes() if not one.is_zombie and one.pid not in spared and is_one(one)]
        trackers |= {pid for pid in found if _is_tracker(pid)}
        killed = 0
        for pid in found:
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
    """All that this process may see; none where there is no /proc."""
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (found := _process(int(name))) is not None:
                yield found


def _process(pid: int) -> _Process | None:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return _Process(pid, int(fields[1]), int(fields[2]), fields[0] in (b"Z", b"X")) if len(fields) > 2 else None


def _is_tracker(pid: int) -> bool:
    for _ in range(_MOST_LOOKS):
        if words := _read(pid, "cmdline"):
            return _TRACKER in words
        found = _process(pid)
        if found is None or found.is_zombie:
            return False
        time.sleep(_PAUSE_S)  # it is in the middle of becoming another program
    return False


def _read(pid: int, what: str) -> bytes:
    """A file of a process; empty where it has ended, or is another user's."""
    with suppress(OSError), open(f"/proc/{pid}/{what}", "rb", 0) as file:
        return file.read()
    return b""
