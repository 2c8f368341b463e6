"""One run of a command: started, watched, and ended with all that it started."""

from __future__ import annotations

import codecs
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from ...core.script_log import VARIABLE
from ...core.units import format_duration, format_size
from ...devices import host_memory
from ...errors import SettingError
from ..processes.endings import MARK, end_group, end_marked, new_mark
from .memory import HostMemory
from .output import Output
from .watcher import Watcher

# How often a run is looked at: its memory, its log, the clock. Assumed: a training that fills a machine's memory takes
# longer, and looking takes a millisecond.
_LOOK_EVERY_S = 0.05
_PAUSE_S = 0.005
_RUSAGE_BYTES = 1024  # getrusage(2): ru_maxrss is in kilobytes on Linux, which alone tells our own peak
_PIECE_BYTES = 1 << 16
_DRAIN_S = 5.0  # assumed: what reading takes that was printed before the end, when all who could print more have ended

# A script that leaves its output in a buffer loses it when it is ended. JAX and TensorFlow take nearly all of a card at
# once if they are not told otherwise (their guides to GPU memory), so that no peak would be of the batch.
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1"}
_UNLESS_SET = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}

# itself   it ended by itself, in whatever way
# stopped  its time was over: it ended when it was told to
# killed   it was told to and did not end
# limit    it was ended for taking too long
# memory   it was ended for what it used
How = Literal["itself", "stopped", "killed", "limit", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a run came to its end.

    Attributes:
        how: see `How`.
        code: its exit code, negative for a signal, as `subprocess.Popen.returncode`.
        seconds: from its start to its end.
        told_s: when it was told to end, from its start; None where it was not.
        began_s: when it was started, by `time.monotonic`.
        peak_bytes: the most memory that it held; None where nobody says.
        kernel_killed: the kernel has killed a process for want of memory meanwhile.
        output: what it said.
    """

    how: How
    code: int
    seconds: float
    told_s: float | None
    began_s: float
    peak_bytes: int | None
    kernel_killed: bool
    output: Output

    @property
    def failed(self) -> bool:
        """Whether it ended with an error of its own; what ends because it is told to says nothing by its code."""
        return self.how == "itself" and self.code != 0

    @property
    def score(self) -> float | None:
        """The last score. One that did not end when it was told to had no time for a later one."""
        if self.how == "killed" and self.told_s is not None:
            return self.output.score(self.began_s + self.told_s)
        return self.output.score()

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether it ended for want of memory."""
        if self.how == "memory":
            return True
        is_killed = self.code in (-signal.SIGKILL, 128 + signal.SIGKILL)  # the latter of a shell
        return self.failed and (self.output.says_out_of_memory or (is_killed and self.kernel_killed))

    @property
    def why(self) -> str:
        """How it ended, with its last words: for a message."""
        if self.how == "limit":
            told = f"it was ended after {format_duration(self.seconds)}"
        elif self.how == "memory":
            told = f"it was ended when its processes held {format_size(self.peak_bytes or 0)}"
        elif self.how == "killed":
            told = "it did not end when it was told to (SIGTERM), and was killed"
        elif self.code < 0:
            told = f"it was ended by {_signal(-self.code)}"
        else:
            told = f"it ended with exit code {self.code}"
        words = self.output.last_words
        return f"{told}; its last words:\n{words}" if words else f"{told}, and printed nothing"


def run(
    words: Sequence[str],
    output: Output,
    *,
    environment: Mapping[str, str],
    script_log: Path,
    log: Path | None,
    title: str,
    watcher: Watcher,
    is_over: Callable[[Output, float], bool],
    limit_s: float,
    grace_s: float,
    limit_bytes: int | None,
    signals_all: bool = False,
) -> Ran:
    """Run a command to its end.

    Args:
        words: the program and its arguments.
        output: takes what it says.
        environment: variables on top of this process's own.
        script_log: the file that `autobatch.log` writes to.
        log: a file that its output is added to; None for none.
        title: what it is run for, for that file.
        watcher: ends it if this process is gone.
        is_over: whether it is to be told to end, by what it has said and the seconds that it has run.
        limit_s: seconds after which it is ended without more ado.
        grace_s: seconds to end in when it is told to.
        limit_bytes: of memory that it may hold; None for any.
        signals_all: tell all of its processes to end, not only the first, which may be a shell.

    Raises:
        SettingError: it cannot be started.
    """
    mark, kills = new_mark(), host_memory.kills()
    inherited = {name: value for name, value in os.environ.items() if name != "AUTOBATCH_STORAGE"}
    variables = _UNLESS_SET | inherited | _ENVIRONMENT | dict(environment) | {VARIABLE: str(script_log), MARK: mark}
    script_log.write_bytes(b"")
    copy: IO[bytes] | None = None
    if log is not None:
        copy = open(log, "ab", buffering=0)  # noqa: SIM115  # closed by the reader
        copy.write(f"\n[autobatch: {title}]\n".encode(errors="replace"))
    began_s = time.monotonic()
    try:
        process = subprocess.Popen(
            list(words),
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle; and its group can be ended whole
        )
    except (OSError, ValueError) as error:  # the latter: a zero byte in a word
        if copy is not None:
            copy.close()
        raise SettingError(f"the command cannot be started: {error}") from None
    watcher.began(process.pid, mark)
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, output, copy), name="autobatch-output", daemon=True)
    reader.start()
    memory = HostMemory(process.pid, mark)
    how: How = "itself"
    told_s: float | None = None
    ended: _Ended | None = None
    try:
        while True:
            used = memory.look()
            if (ended := _end_of(process, _LOOK_EVERY_S)) is not None:
                break
            output.look(time.monotonic())
            spent_s = time.monotonic() - began_s
            if limit_bytes is not None and used is not None and used > limit_bytes:
                how = "memory"
                break
            if told_s is not None and spent_s > told_s + grace_s:
                how = "killed"
                break
            if spent_s > limit_s:
                how = "limit"
                break
            if told_s is None and is_over(output, spent_s):
                how, told_s = "stopped", spent_s
                with suppress(ProcessLookupError):
                    (os.killpg if signals_all else os.kill)(process.pid, signal.SIGTERM)
    finally:  # Ctrl-C too
        if ended is None:
            end_group(process.pid)
        while ended is None:
            ended = _end_of(process, _LOOK_EVERY_S)
        seconds = time.monotonic() - began_s
        with suppress(PermissionError):  # what is left of it has changed its user
            end_group(process.pid)
        end_marked(mark)
        watcher.ended()
        reader.join(_DRAIN_S)
    output.look(time.monotonic())
    return Ran(
        how=how,
        code=ended.code,
        seconds=seconds,
        told_s=told_s,
        began_s=began_s,
        peak_bytes=max(memory.peak_bytes or 0, ended.peak_bytes) or None,
        kernel_killed=kills is not None and host_memory.kills() != kills,
        output=output,
    )


class _Ended(NamedTuple):
    code: int
    peak_bytes: int  # 0 where it is not known


def _end_of(process: subprocess.Popen[bytes], within_s: float) -> _Ended | None:
    """How a process has ended, no later than so many seconds from now; None where it goes on.

    The kernel tells the peak of a process that has ended, be it between two looks. But before it becomes another
    program it is this one, whose own peak that of a small one is not seen beside (fs/exec.c, exec_mmap).
    """
    deadline_s = time.monotonic() + within_s
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * _RUSAGE_BYTES
            ours = host_memory.process_memory().get("VmHWM", math.inf)
            return _Ended(process.returncode, peak if peak > ours else 0)
        if time.monotonic() >= deadline_s:
            return None
        time.sleep(_PAUSE_S)


def _read(pipe: IO[bytes], output: Output, copy: IO[bytes] | None) -> None:
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while piece := os.read(pipe.fileno(), _PIECE_BYTES):
        output.take(text.decode(piece), time.monotonic())
        if copy is not None:
            try:
                copy.write(piece)
            except OSError:  # a full disk: it is but a log
                copy = None
    output.end(time.monotonic())
    pipe.close()
    if copy is not None:
        copy.close()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
