"""The threads of a process, and how its memory is counted the same way each time. Imports no torch."""

from __future__ import annotations

import ctypes
import os

# The numbers of the parameters, from mallopt(3) and glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

# What mallopt was called with, as it cannot be queried.
_counts_exactly = False
_keeps_freed = False

MMAP_THRESHOLD_BYTES = 64 << 10  # assumed: smaller than any important tensor that grows with the batch


# How many turns a thread of GNU OpenMP waits for work before it sleeps, instead of its default of 300,000. Measured
# with a ResNet and two threads on two cores: finding the largest batch took 15 s of processor time and 38 by the clock
# on a busy machine; with 300,000 turns 47 and 115, mostly waiting; on an idle machine 10.8 s and 11.1.
_TURNS = "1000"


def worker_environment(threads: int, *, is_timed: bool = True) -> dict[str, str]:
    """Environment variables with which a worker must be *started*: later, libraries have read them already.

    Args:
        threads: CPU threads of one training step.
        is_timed: whether its steps must take as long as the user's own. Otherwise they may be faster: memory comes in
            huge pages, which are cleared at once (half of the system time of a probe that counts to the page, with the
            same peaks; measured), and waiting threads leave the processor to others.

    Raises:
        ValueError: `threads` is below one.
    """
    if threads < 1:
        raise ValueError(f"a step needs at least one thread; got {threads}")
    # Each pool keeps stacks and buffers for as many threads as it has, so the count affects the answer.
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    # One heap for all threads: the number of others would depend on which threads meet.
    environment["MALLOC_ARENA_MAX"] = "1"
    # The order of a set of strings differs between processes, and with it what user code does and allocates.
    environment["PYTHONHASHSEED"] = "0"
    # The existence of a GPU is checked with NVML, as torch's notes on CUDA suggest. A check with the driver would start
    # CUDA in the process that is going to be forked, and CUDA does not survive a fork.
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if not is_timed:
        # The user's own settings come later in the list, and win.
        tunables = "glibc.malloc.hugetlb=1", os.environ.get("GLIBC_TUNABLES", "")
        environment["GLIBC_TUNABLES"] = ":".join(filter(None, tunables))
        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
            environment["GOMP_SPINCOUNT"] = _TURNS
    return environment


def count_exactly() -> bool:
    """Make the C allocator give every large block its own pages. Returns whether it does; True for glibc.

    For a process that determines what fits on a CPU, so that its answer repeats exactly (see `devices/cpu.py`). It
    costs speed, because a tensor's memory goes back to the kernel at once instead of staying for the next step. So a
    process that times or trains does not do it. It cannot be undone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # glibc's mmap threshold adapts to freed blocks, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD), so a reused process
    # would count differently from a fresh one. With a fixed threshold every larger block has its own pages, which are
    # counted to the page and returned when freed, unless it fits into a hole of the heap. So CpuDevice leaves no such
    # holes.
    settings = {_M_MMAP_THRESHOLD: MMAP_THRESHOLD_BYTES}
    # More than the room that CpuDevice makes in the heap, which must not be returned before it is used.
    settings[_M_TRIM_THRESHOLD] = 64 << 20
    # The heap grows by the requested size and no more: the default reserve (128 KiB) would hold a large block.
    settings[_M_TOP_PAD] = 0
    global _counts_exactly
    _counts_exactly = all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
    return _counts_exactly


def keep_freed_memory() -> bool:
    """Make the C allocator keep freed memory for later use. Returns whether it does; True for glibc.

    For a process that times and trains one model after another on a CPU. By default, glibc returns the end of the heap
    to the kernel when enough of it is free, and that depends on where the small blocks of earlier models lie. Then
    every step pays for the same pages again. Measured (AMD EPYC, torch 2.13, an LSTM at batch 32): 19.5 to 21.3 ms a
    step in a fresh process, and 25.9 to 28.3 ms for the same model a second time in it; with this setting, 19.8 to 20.5
    ms after any earlier work. `give_back_freed_memory` returns the memory between two models.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # 32 MiB is the maximum of glibc's own threshold; larger blocks have their own pages, as in any process. -1 means
    # "never" (mallopt(3), M_TRIM_THRESHOLD).
    settings = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: -1}
    global _keeps_freed
    _keeps_freed = all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
    return _keeps_freed


def give_back_freed_memory() -> None:
    """Return the C heap's free pages to the kernel, in a process that otherwise keeps them."""
    if _keeps_freed:
        ctypes.CDLL(None).malloc_trim(0)


def counts_exactly() -> bool:
    """Whether `count_exactly` was called in this process and succeeded."""
    return _counts_exactly


def default_threads() -> int:
    """torch's default: OMP_NUM_THREADS if the user set it, otherwise the cores that this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested regions
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return available_cores()


def available_cores() -> int:
    """The processor's cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
