"""The CPU, with a real memory limit: above it, the allocator is refused.

Two things make an answer repeat exactly.

First, only the limit decides. It is the soft RLIMIT_DATA: what the process had when the limit was set, plus the budget
in a final probe. A peak is read less exactly, and does not decide. In exploring probes the limit is at the capacity,
because a measured peak says more than a refusal.

Second, the process is brought into a fixed state before the limit is set; it was started with `worker_environment`, and
calls `count_exactly`. One-time allocations are made before they can be counted (*measured*, torch 2.13, one thread: the
first optimizer 68 MiB, matrix products 5, bfloat16 4, convolutions 2, LSTM 8; each further thread an 8 MiB stack).
Python and the C heap get spare room, so that small objects, whose number varies, take no page that counts. Everything
that grows with the batch soon exceeds 64 KiB and counts to the page. The price: a model whose tensors are all smaller
than that fits into the spare room under any limit.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch

from ..core.facts import DeviceInfo, MemoryLimit
from ..core.units import format_size
from ..errors import DeviceError
from . import host_memory
from .backend import PROCESSOR
from .base import Device, software
from .environment import MMAP_THRESHOLD_BYTES, counts_exactly, give_back_freed_memory
from .limits import budget_bytes, capacity, check_limit
from .oom import is_out_of_memory
from .rapl import POWERCAP, Rapl

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Spare room for small objects, in Python's arenas and in the C heap each. Measured: processes differed by one arena (1
# MiB) and by up to 120 KiB of heap; three steps of the models in the tests stay well inside.
_RESERVE_BYTES = 8 << 20
# Half of the size from which a block has its own pages, so that a hole too small for it, beside a hole that fits, is
# gone too.
_BLOCK_BYTES = MMAP_THRESHOLD_BYTES // 2
_HOLE_BYTES = MMAP_THRESHOLD_BYTES - 64  # minus what malloc and Python add to a block
_MOST_BLOCKS = (256 << 20) // _BLOCK_BYTES  # assumed: if the heap has not grown by then, it is another allocator


@final
class CpuDevice(Device):
    """The processor and its memory, as far as this process may use them."""

    backend = PROCESSOR

    def __init__(
        self, *, proc: Path = host_memory.PROC, cgroup: Path = host_memory.CGROUP, powercap: Path = POWERCAP
    ) -> None:
        self.torch_device = torch.device(self.backend.torch_name)
        self._rapl = Rapl(powercap)
        self._proc, self._cgroup = proc, cgroup
        self._pinned: list[bytes | bytearray] = []
        self._limit: MemoryLimit | None = None
        self._soft_before: int | None = None  # the soft RLIMIT_DATA to be restored; None while no limit is set
        self._wall = 0  # the limit above what was held when it was set
        self._start = host_memory.process_memory(proc)
        self._highest_size = self._start.get("VmPeak", 0)
        self._counts_peak = False

    def info(self) -> DeviceInfo:
        memory = host_memory.available(self._proc, self._cgroup)
        name = host_memory.processor_name(self._proc) or platform.processor() or platform.machine() or "CPU"
        notes = [] if memory else ["memory in use and free: there is no /proc/meminfo on this system"]
        if (why := self._rapl.why_not()) is not None:
            notes.append(f"energy: {why}")
        return DeviceInfo(
            name=name,
            kind=self.backend.kind,
            memory_bytes=memory.total_bytes if memory else _physical_bytes(),
            free_bytes=memory.free_bytes if memory else None,
            threads=torch.get_num_threads(),
            notes=tuple(notes),
            **software(),
        )

    def joules(self) -> float | None:
        return self._rapl.joules()

    def waited_s(self) -> float | None:
        """The waiting time of the thread that takes the steps (proc(5), schedstat: the second number, in ns)."""
        try:
            return int((self._proc / "self" / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return None

    def set_limit(self, memory_limit_bytes: int | None, headroom: float) -> MemoryLimit:
        """Set what a step may use from now on, beyond what the process holds at this moment.

        The limit is at the capacity. That is the requested one, but at most the free memory minus the headroom, since
        the kernel kills near its end. A system without RLIMIT_DATA (not Linux) has only a budget below the physical
        memory.
        """
        check_limit(memory_limit_bytes, headroom)
        self.lift_limit()
        memory = host_memory.available(self._proc, self._cgroup)
        if memory is None or not sys.platform.startswith("linux"):
            return self._without_wall(memory_limit_bytes, headroom)
        usable, source = capacity(memory_limit_bytes, memory.free_bytes, memory.source)
        self._settle()
        self._start = host_memory.process_memory(self._proc)
        wanted = min(usable, budget_bytes(memory.free_bytes, headroom))
        self._soft_before, _ = resource.getrlimit(resource.RLIMIT_DATA)
        wall = self._put_up_wall(wanted)
        if wall < wanted:
            source = "left by the limit on data of this process (ulimit -d)"
        if wall <= 0:
            raise DeviceError(f"a training step needs free memory; {source}: {format_size(usable)}. Free some memory")
        budget = min(wall, budget_bytes(usable, headroom))
        self._limit = MemoryLimit(capacity_bytes=wall, budget_bytes=budget, source=source)
        self.reset_peak()
        return self._limit

    def begin_count(self) -> None:
        if self._limit is None or self._soft_before is None:
            return
        gc.collect()
        self._start = host_memory.process_memory(self._proc)
        self._put_up_wall(self._limit.capacity_bytes)

    def lift_limit(self) -> None:
        if self._soft_before is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (self._soft_before, hard))
        self._soft_before = self._limit = None
        self._pinned.clear()

    @contextmanager
    def held_to_budget(self) -> Iterator[None]:
        if self._limit is None or self._soft_before is None:
            yield
            return
        self._put_up_wall(self._limit.budget_bytes)
        try:
            yield
        finally:
            self._put_up_wall(self._limit.capacity_bytes)

    def synchronize(self) -> None:
        """Does nothing: operations return when they are done."""

    def clean_up(self) -> None:
        super().clean_up()
        give_back_freed_memory()

    def reset_peak(self) -> None:
        gc.collect()
        if self._soft_before is not None and counts_exactly():
            self._pinned += _large_holes_filled()  # memory freed since the limit was set may have left holes
        self._counts_peak = host_memory.reset_resident_peak(self._proc)
        self._highest_size = host_memory.process_memory(self._proc).get("VmPeak", 0)

    def peak_bytes(self) -> int | None:
        """Highest memory since `reset_peak`, beyond what the process held when the limit was set. It guides the probes.

        Linux keeps no peak of what RLIMIT_DATA counts. The nearest is the peak of the address space, minus the part of
        it that is not data (files mapped into memory). That peak is kept for the life of the process, so it is used if
        it rose in this window, as it does in a fresh process. Otherwise it is the peak of the resident memory, which
        misses pages that were allocated and not touched. Neither may exceed the limit: what ran stayed below it.
        """
        now = host_memory.process_memory(self._proc)
        if not self._counts_peak or "VmHWM" not in now or "VmPeak" not in now:
            return None
        if now["VmPeak"] > self._highest_size:
            peak = now["VmPeak"] - (now["VmSize"] - now["VmData"]) - self._start["VmData"]
        else:
            peak = now["VmHWM"] - self._start["VmRSS"]
        if self._soft_before is not None and self._limit is not None:
            peak = min(peak, self._wall)
        return max(0, peak)

    def alloc_retries(self) -> int | None:
        return None

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error, limited_cpu=self._soft_before is not None)

    def _without_wall(self, memory_limit_bytes: int | None, headroom: float) -> MemoryLimit:
        if memory_limit_bytes is not None:
            raise DeviceError(
                f"a memory limit on the CPU needs Linux, whose RLIMIT_DATA it is; this is {platform.system()}. "
                "Leave the limit out"
            )
        physical = _physical_bytes()
        if physical is None:
            raise DeviceError(
                f"the memory of this machine cannot be read on {platform.system()}, so nothing says what is too large. "
                "Run on Linux or on a GPU"
            )
        self._limit = MemoryLimit(
            capacity_bytes=physical,
            budget_bytes=budget_bytes(physical, headroom),
            source="physical memory of the machine, without a wall",
        )
        return self._limit

    def _put_up_wall(self, above: int) -> int:
        """Set the limit. Returns its bytes above what was held at the start: an administrator's limit may be lower."""
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        held = self._start["VmData"]
        wall = held + above
        for administrators in (self._soft_before, hard):
            if administrators is not None and administrators != resource.RLIM_INFINITY:
                wall = min(wall, administrators)
        if wall > held:
            resource.setrlimit(resource.RLIMIT_DATA, (wall, hard))
        self._wall = wall - held
        return self._wall

    def _settle(self) -> None:
        """Make one-time allocations before they count; see the module's docstring."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            # A region large enough to start every thread (at::internal::GRAIN_SIZE is 32,768 elements).
            torch.zeros(torch.get_num_threads() << 16).add_(1)
            weight = torch.zeros(512, 512, requires_grad=True)
            (weight @ weight).sum().backward()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                (weight @ weight).sum().backward()
            convolution = torch.nn.Conv2d(3, 8, 3)
            convolution(torch.zeros(4, 3, 16, 16)).sum().backward()
            recurrent = torch.nn.LSTM(16, 32)
            recurrent(torch.zeros(4, 4, 16))[0].sum().backward()
            scale = torch.nn.Linear(1, 1)
            optimizer = torch.optim.AdamW(scale.parameters())
            scale(torch.zeros(1, 1)).sum().backward()
            optimizer.step()
        del weight, convolution, recurrent, scale, optimizer
        gc.collect()
        self._pinned = [*_room_in_python(), *_room_in_the_heap()]


def _room_in_python() -> list[bytes]:
    """Objects that keep free room in Python's own arenas."""
    # 479 characters make an object of 512 bytes, the largest for Python's own allocator. One in each arena of 1 MiB is
    # kept, so that the arena stays.
    small = [bytes(479) for _ in range(_RESERVE_BYTES // 512)]
    return small[::1024]


def _room_in_the_heap() -> list[bytearray]:
    """Blocks that keep free room for small blocks in the C heap, and none for large ones.

    glibc looks for a hole before it takes pages from the kernel (malloc/malloc.c, `_int_malloc`), for any size. A hole
    that fits a tensor hides it, and whether there is one depends on where small objects lie. Measured: the peak of
    three convolutions varied by a whole tensor, 2.7 MiB of 77, in two fresh processes of twelve.
    """
    sbrk = ctypes.CDLL(None).sbrk
    sbrk.restype = ctypes.c_void_p
    # Blocks fill every hole that fits before the heap grows. The remaining holes are smaller.
    start = sbrk(0)
    kept: list[bytearray] = []
    while sbrk(0) == start and len(kept) < _MOST_BLOCKS:
        kept.append(bytearray(_BLOCK_BYTES))
    # From here on they lie side by side. Of every two, one is freed: its hole cannot merge with another, and any block
    # without its own pages fits in. Measured: with holes of half the size, a tensor of 36 KiB made the heap grow in one
    # process and found a hole in another, and a peak of 15 MiB varied by 180 KiB.
    end = sbrk(0) + _RESERVE_BYTES
    given_back: list[bytearray] = []
    while sbrk(0) < end and len(given_back) < _MOST_BLOCKS:
        given_back.append(bytearray(_HOLE_BYTES))
        kept.append(bytearray(_BLOCK_BYTES))
    return kept


_MALLINFO = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"


class _MallocInfo(ctypes.Structure):
    """The result of mallinfo2(3): counts and bytes of the C heap."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)


def _large_holes_filled() -> list[bytearray]:
    """Blocks in all holes of the C heap that would fit a block with its own pages. None of them makes the heap grow.

    Only if such blocks have their own pages (`count_exactly`): otherwise tensors live in this heap. Measured: between
    the limit and a probe of a live model about 1 MiB of heap is freed, in holes of 100 to 500 KiB that differ between
    processes; a weight's gradient of 256 KiB sometimes fitted into one.
    """
    libc = ctypes.CDLL(None)
    mallinfo = getattr(libc, "mallinfo2", None)
    if mallinfo is None:  # glibc before 2.33, or another C library
        return []
    mallinfo.restype = _MallocInfo
    before = mallinfo()
    filled: list[bytearray] = []
    while len(filled) < _MOST_BLOCKS:
        block = bytearray(MMAP_THRESHOLD_BYTES)
        now = mallinfo()
        if now.hblks > before.hblks or now.arena > before.arena:  # it was in no hole
            break
        filled.append(block)
    return filled


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, and other systems may lack a name
        return None


def open_nth(index: int) -> CpuDevice:
    """The processor. There is only one."""
    return CpuDevice()
