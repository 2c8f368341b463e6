"""What a worker process is started with, so that memory is counted the same way each time. Imports no torch."""

from __future__ import annotations


def worker_environment(threads: int, *, exact_memory: bool = True) -> dict[str, str]:
    """Environment variables that a worker must be *started* with; set later, libraries have read them already.

    Args:
        threads: CPU threads of one training step.
        exact_memory: for a worker that says what fits, so that its answer repeats exactly on a CPU (`devices/cpu.py`
            says how). It costs speed there, because a tensor's memory goes back to the kernel at once instead of
            staying for the next step: a worker that times or trains does without.

    Raises:
        ValueError: `threads` is below one.
    """
    if threads < 1:
        raise ValueError(f"a step needs at least one thread; got {threads}")
    # Each pool keeps stacks and buffers for as many threads as it has: the count is part of the answer.
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    # The order of a set of strings changes from process to process, and with it what user code does and allocates.
    environment["PYTHONHASHSEED"] = "0"
    if exact_memory:
        # glibc's mmap threshold adapts to what was freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD): a reused process
        # then counts otherwise than a fresh one. Fixed at 64 KiB (assumed), whatever grows with the batch soon has
        # pages of its own, counted to the page and given back when freed.
        environment["MALLOC_MMAP_THRESHOLD_"] = str(64 << 10)
        # Above the room that CpuDevice makes in the heap, which must not be given back before it is used.
        environment["MALLOC_TRIM_THRESHOLD_"] = str(64 << 20)
        # One heap for all threads: how many others there would be depends on which threads met.
        environment["MALLOC_ARENA_MAX"] = "1"
    return environment
