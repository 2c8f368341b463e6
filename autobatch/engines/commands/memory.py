"""The memory of a command: of all its processes together, which may be many and share pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ...devices import host_memory
from ..processes.endings import group_of

# A process of a command is looked for anew after so long; what it starts in between is short-lived, or is found then.
# Assumed: looking takes milliseconds.
_LOOK_EVERY_S = 0.5


class HostMemory:
    """The resident memory of a command's processes, from when it was started.

    A single process is read by its own peak, which the kernel keeps, so that nothing between two looks is missed. Of
    several, pages that they share count once (proc(5), smaps_rollup: Pss): the workers of a loader are forks of the
    training, and each seems to hold the whole data.

    Args:
        pid: of the process that leads their group.
        mark: the word by which those are known that left it; see `endings`.
        clock: seconds that only rise.
    """

    def __init__(
        self, pid: int, mark: str, *, proc: Path = host_memory.PROC, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pid, self._mark, self._proc, self._clock = pid, mark, proc, clock
        self._pids = {pid}
        self._looked_s = clock()
        self.peak_bytes: int | None = None

    def look(self) -> int | None:
        """Bytes that are in use now; None where nobody says."""
        now = self._clock()
        if now - self._looked_s >= _LOOK_EVERY_S:
            self._pids = {self._pid, *group_of(self._pid, self._mark)}
            self._looked_s = now
        found = [(pid, memory) for pid in self._pids if (memory := host_memory.process_memory(self._proc, pid))]
        if not found:
            return None
        highest = max(memory.get("VmHWM", 0) for _, memory in found)
        if len(found) == 1:
            used = found[0][1].get("VmRSS", 0)
        else:
            used = sum(host_memory.proportional(pid, self._proc) or memory.get("VmRSS", 0) for pid, memory in found)
        self.peak_bytes = max(self.peak_bytes or 0, highest, used)
        return used
