"""Who ends a command when this process is killed before it could: a process of its own, which only waits for that.

It reads what is under way from a pipe. When the pipe ends, so has whoever wrote to it, in whatever way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from ...errors import StartError
from ..processes.endings import MARK, end_group, end_marked


class Watcher:
    """Ends the commands that are under way when this process is gone."""

    def __init__(self) -> None:
        package = str(Path(__file__).resolve().parents[3])
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                env=environment | {"PYTHONPATH": os.pathsep.join([package, *sys.path])},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and a closed terminal are for this process alone
            )
        except OSError as error:
            raise StartError(
                f"a process cannot be started with {sys.executable}: {error.strerror}. Run autobatch with a Python "
                "that you may execute, where there is room for one more process"
            ) from None
        self._lock = threading.Lock()

    def began(self, pid: int, mark: str) -> None:
        """A command is under way: the process that leads its group, and the word that it was started with."""
        self._tell(f"{pid} {mark.split()[-1]}")

    def ended(self) -> None:
        """It is no longer."""
        self._tell("")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock, suppress(OSError):  # somebody has killed it: commands are run all the same
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Wait for the end of stdin, and end what is under way then."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    under_way = b""
    for line in sys.stdin.buffer:
        under_way = line.strip()
    if under_way:
        pid, mark = under_way.decode().split()
        with suppress(PermissionError):  # what is left of it has changed its user
            end_group(int(pid))
        end_marked(mark)


if __name__ == "__main__":
    main()
