"""What Linux reports about memory: how much this process may still use, and how much it uses.

Every function takes the roots that it reads from, so that tests can pass made-up trees. Unreadable values are None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

# cgroup v1 writes "no limit" as the largest page-aligned signed number (mm/page_counter.c). No machine has half of it.
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """The memory that this process may still take.

    Attributes:
        free_bytes: what it can get without swapping or being killed.
        total_bytes: that of the machine or of the container, whichever is smaller.
        source: which of the two it is, in words.
    """

    free_bytes: int
    total_bytes: int
    source: str


def available(proc: Path = PROC, cgroup: Path = CGROUP) -> Available | None:
    """The smaller of the kernel's available memory and what the container's limit leaves; None without /proc."""
    machine = _kilobytes(proc / "meminfo")
    if "MemAvailable" not in machine or "MemTotal" not in machine:
        return None
    best = Available(
        free_bytes=machine["MemAvailable"], total_bytes=machine["MemTotal"], source="available on the machine"
    )
    for limit, used in _cgroup_limits(proc, cgroup):
        free = max(0, limit - used)
        if limit < best.total_bytes and free < best.free_bytes:
            best = Available(free_bytes=free, total_bytes=limit, source="free in the container (cgroup limit)")
    return best


def process_memory(proc: Path = PROC, pid: int | None = None) -> dict[str, int]:
    """The `Vm...` lines of a process's status in bytes, by default of this process; empty if there is no such file.

    `VmData` is what RLIMIT_DATA counts, `VmHWM` the peak of `VmRSS`, and `VmPeak` that of `VmSize`.
    """
    status = _kilobytes(proc / ("self" if pid is None else str(pid)) / "status")
    return {name: value for name, value in status.items() if name.startswith("Vm")}


def proportional(pid: int, proc: Path = PROC) -> int | None:
    """Resident bytes of a process, those that it shares in equal parts with who shares them (Pss); None where the
    kernel does not say, as before Linux 4.14, or not to us.
    """
    return _kilobytes(proc / str(pid) / "smaps_rollup").get("Pss")


def reset_resident_peak(proc: Path = PROC) -> bool:
    """Reset `VmHWM` to `VmRSS` (proc(5), /proc/pid/clear_refs, value 5); False if that is not allowed."""
    try:
        (proc / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def kills(proc: Path = PROC) -> int | None:
    """How many processes the kernel has killed for lack of memory since the machine was started; None without a count.

    /proc/vmstat has one since Linux 4.13.
    """
    for line in _lines(proc / "vmstat"):
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.strip().isdigit():
            return int(count)
    return None


def processor_name(proc: Path = PROC) -> str | None:
    """The processor's model name from /proc/cpuinfo."""
    for line in _lines(proc / "cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return value.strip()
    return None


def _cgroup_limits(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """(limit, in use) in bytes of each memory cgroup around this process, from its own to the visible root.

    Caches of files that were not read lately are freed on demand, so they do not count as in use.
    """
    for line in _lines(proc / "self" / "cgroup"):
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0" and not controllers:  # version 2
            root, names = cgroup, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):  # version 1
            root, names = cgroup / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.lstrip("/")
        # Inside a container the path is the host's and may not exist; the root is then the container's own group.
        for group in (folder, *folder.parents):
            if group == root.parent:
                break
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None and limit < _NO_LIMIT:
                cached = {key: value for key, _, value in (row.partition(" ") for row in _lines(group / "memory.stat"))}
                yield limit, max(0, used - int(cached.get(names[2], 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None  # version 2 writes "max" for no limit


def _kilobytes(path: Path) -> dict[str, int]:
    """`Name:   123 kB` lines as bytes; other lines are ignored."""
    found = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found
