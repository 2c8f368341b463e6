"""Workers whose memory grows from segment to segment: they are replaced between two segments, before the kernel kills
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...core.units import format_size
from ...devices import host_memory

# A worker is replaced between two segments if it has grown, since its first segment, by more than this share of the
# machine's free memory and by more than this many bytes. Both assumed: a new worker costs seconds, and one that the
# kernel kills costs its segment. A task that fills its own cache is left alone while there is room for it.
LEAK_SHARE = 0.25
LEAK_LEAST_BYTES = 256 << 20


class LeakWatch:
    """The memory of a worker, or of the processes that train together, after each of their segments.

    Args:
        log: file for a line about each worker that leaks; None for none.
    """

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._first: dict[int, int] = {}  # bytes after the first segment, by process

    def is_leaking(self, pids: Sequence[int]) -> bool:
        """Whether these processes, which have just trained a segment, have grown too much and should be replaced."""
        sizes = {pid: host_memory.process_memory(pid=pid).get("VmRSS") for pid in pids}
        resident = {pid: size for pid, size in sizes.items() if size is not None}
        free = host_memory.available()
        if free is None:
            return False
        self._first = {pid: self._first.get(pid, size) for pid, size in resident.items()}
        growth = sum(size - self._first[pid] for pid, size in resident.items())
        if growth <= max(LEAK_LEAST_BYTES, LEAK_SHARE * free.free_bytes):
            return False
        if self._log is not None:
            one = len(pids) == 1
            with (
                suppress(OSError),
                open(self._log, "a", encoding="utf-8") as log,
            ):  # a full disk: it is only a note
                log.write(
                    f"autobatch: worker{'' if one else 's'} {', '.join(map(str, pids))} {'was' if one else 'were'} "
                    f"replaced: {'it' if one else 'they'} had grown by {format_size(growth)} since "
                    f"{'its' if one else 'their'} first segment, and {format_size(free.free_bytes)} are {free.source}\n"
                )
        return True
