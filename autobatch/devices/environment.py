"""The threads of a process, and how one is brought to count memory the same way each time. Imports no torch."""

from __future__ import annotations

import ctypes
import os

# mallopt(3) and glibc's malloc.h: the numbers of the parameters.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

# What mallopt was told, which it cannot be asked.
_counts_exactly = False
_keeps_freed = False

MMAP_THRESHOLD_BYTES = 64 << 10  # assumed: below what any tensor has that grows with the batch and matters


# Turns that a thread of GNU OpenMP waits for work before it sleeps, in place of its own 300,000. Measured with a ResNet
# and two threads on two cores: on a machine with other work to do a search took 15 s of the processor and 38 by the
# clock, with 300,000 turns 47 and 115, most of it waiting; on an idle one 10.8 s and 11.1.
_TURNS = "1000"


def worker_environment(threads: int, *, is_timed: bool = True) -> dict[str, str]:
    """Environment variables that a worker must be *started* with; set later, libraries have read them already.

    Args:
        threads: CPU threads of one training step.
        is_timed: its steps are to take what the user's own do. Otherwise they may be faster: memory comes in huge
            pages, which are cleared at once (half of the system time of a probe that counts to the page, with the same
            peaks; measured), and threads that wait leave the processor to others.

    Raises:
        ValueError: `threads` is below one.
    """
    if threads < 1:
        raise ValueError(f"a step needs at least one thread; got {threads}")
    # Each pool keeps stacks and buffers for as many threads as it has: the count is part of the answer.
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    # One heap for all threads: how many others there would be depends on which threads met.
    environment["MALLOC_ARENA_MAX"] = "1"
    # The order of a set of strings changes from process to process, and with it what user code does and allocates.
    environment["PYTHONHASHSEED"] = "0"
    # Whether there is a GPU is asked of NVML, as torch's notes on CUDA offer: asked of the driver, it would start CUDA
    # in the process that is to be forked, and CUDA does not live through a fork.
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if not is_timed:
        # The user's own settings come later in the list, and count.
        tunables = "glibc.malloc.hugetlb=1", os.environ.get("GLIBC_TUNABLES", "")
        environment["GLIBC_TUNABLES"] = ":".join(filter(None, tunables))
        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
            environment["GOMP_SPINCOUNT"] = _TURNS
    return environment


def count_exactly() -> bool:
    """Whether the C allocator of this process now gives every large block pages of its own; True for glibc.

    For a process that says what fits on a CPU, so that its answer repeats exactly (`devices/cpu.py` says how). It costs
    speed, because a tensor's memory goes back to the kernel at once instead of staying for the next step: a process
    that times or trains does without. There is no way back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # glibc's mmap threshold adapts to what was freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD): a reused process
    # then counts otherwise than a fresh one. Fixed, whatever is above has pages of its own, counted to the page and
    # given back when freed; unless the heap has a hole that it fits in, so CpuDevice leaves none.
    settings = {_M_MMAP_THRESHOLD: MMAP_THRESHOLD_BYTES}
    # Above the room that CpuDevice makes in the heap, which must not be given back before it is used.
    settings[_M_TRIM_THRESHOLD] = 64 << 20
    # The heap grows by what is asked for and no more: the room above would take in a large block (128 KiB by default).
    settings[_M_TOP_PAD] = 0
    global _counts_exactly
    _counts_exactly = all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
    return _counts_exactly


def keep_freed_memory() -> bool:
    """Whether the C allocator of this process now keeps what is freed for what comes next; True for glibc.

    For a process that times and trains one model after another on a CPU. As it comes, glibc gives the end of the heap
    back to the kernel when enough of it is free, and whether it is depends on where the small blocks of earlier models
    came to lie: then every step pays for the same pages anew. Measured (AMD EPYC, torch 2.13, an LSTM at batch 32):
    19.5 to 21.3 ms a step in a fresh process, 25.9 to 28.3 ms for the same model a second time in it; kept, 19.8 to
    20.5 ms whatever ran before. `give_back_freed_memory` does so between two models.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # 32 MiB is the most that glibc's own threshold comes to; larger blocks have pages of their own, as in any process.
    # -1 is "never" (mallopt(3), M_TRIM_THRESHOLD).
    settings = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: -1}
    global _keeps_freed
    _keeps_freed = all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
    return _keeps_freed


def give_back_freed_memory() -> None:
    """Return the C heap's free pages to the kernel, in a process that keeps them otherwise."""
    if _keeps_freed:
        ctypes.CDLL(None).malloc_trim(0)


def counts_exactly() -> bool:
    """Whether `count_exactly` was called in this process and came through."""
    return _counts_exactly


def default_threads() -> int:
    """What torch takes by itself: OMP_NUM_THREADS where the user set it, or else the cores this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested regions
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return available_cores()


def available_cores() -> int:
    """The processor's cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
