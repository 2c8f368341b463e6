"""What an error says about the device: that memory ran out, or that this process can no longer use the device.

One predicate over one table each, every line with where its text comes from. The coordinator reads the same table, for
what a command prints, so torch is not imported here.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import text_of

# Parts of messages of errors without their own type. Compared exactly: vendors do not change the case.
#
# Left out on purpose, because a plain bug has the same text: CUDNN_STATUS_NOT_SUPPORTED (non-contiguous or unsupported
# layouts), CUDNN_STATUS_INTERNAL_ERROR, CUFFT_INTERNAL_ERROR, "out of resource: shared memory" (a Triton kernel too
# large for the chip at any batch), "invalid configuration argument" (a grid too large). A bug taken for an
# out-of-memory would be reported as the largest batch; an out-of-memory taken for a bug is shown with its own text.
_FRAGMENTS = (
    "CUDA out of memory",  # c10/cuda/CUDACachingAllocator.cpp, as a plain RuntimeError when it crossed a process
    "CUDA error: out of memory",  # c10/cuda/CUDAException.cpp: torch.AcceleratorError, from any runtime call
    "CUDA driver error: out of memory",  # c10/cuda/driver_api.h: mapping an expandable segment
    "CUBLAS_STATUS_ALLOC_FAILED",  # aten/src/ATen/cuda/Exceptions.cpp: cublasCreate or its workspace
    "CUSOLVER_STATUS_ALLOC_FAILED",  # the same file
    "CUFFT_ALLOC_FAILED",  # aten/src/ATen/native/cuda/CuFFTUtils.h
    "CUDNN_STATUS_ALLOC_FAILED",  # aten/src/ATen/cudnn/Exceptions.h
    # aten/src/ATen/native/cudnn/Conv_v8.cpp tries plan after plan and swallows the out-of-memory of each, then raises
    # this. A convolution that no plan supports raises it too, also at a batch of one.
    "was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",  # Conv_v7.cpp, likewise
    "HIP out of memory",  # the CUDA allocator's text as hipify rewrites it
    "HIP error: out of memory",  # c10/hip/HIPException.cpp
    "HIPBLAS_STATUS_ALLOC_FAILED",  # as cuBLAS
    "XPU out of memory",  # c10/xpu/XPUCachingAllocator.cpp
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",  # oneAPI's unified runtime, through SYCL
    "MPS backend out of memory",  # aten/src/ATen/mps/MPSAllocator.mm
    "Cuda failure 'out of memory'",  # NCCL, src/include/checks.h, quoted by torch's DistBackendError
    "Cuda failure 2 'out of memory'",  # NCCL from 2.17 on puts the number in
    # NCCL, src/include/alloc.h, the last line of what torch quotes; also "host alloc", and "calloc" without "async".
    "Failed to CUDA calloc",
    "Failed to CUDA malloc",
    "Failed to CUDA host alloc",
    "Triton Error [CUDA]: out of memory",  # triton/backends/nvidia/driver.c, where a kernel is loaded or launched
    "Triton Error [HIP]:  Code: 2, Messsage: out of memory",  # triton/backends/amd/driver.c, spelled so until 2025
    "Triton Error [HIP]: Code: 2, Message: out of memory",  # the same file, later
    "DefaultCPUAllocator: can't allocate memory",  # c10/core/impl/alloc_cpu.cpp, Linux and macOS
    "DefaultCPUAllocator: not enough memory",  # the same file, Windows
    "not enough memory: you tried to allocate",  # the same file, as older versions begin it
    # XLA's status as JAX prints it, "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to
    # allocate 11.95MiB." (jax#13428, #22755), and with the code's older spelling (jax#788).
    "RESOURCE_EXHAUSTED: Out of memory",
    "Resource exhausted: Out of memory",
    "RESOURCE_EXHAUSTED: Failed to allocate request for",  # the same, xla/stream_executor/tf_allocator_adapter.h
    "OOM when allocating tensor with shape",  # tensorflow/core/framework/op_kernel.cc, in a ResourceExhaustedError
    "Out of memory allocating ",  # cupy/cuda/memory.pyx, OutOfMemoryError
)

# What says so by its type in the process itself, as a traceback prints it in the output of another one.
_PRINTED = re.compile(
    r"^(?:torch\.(?:cuda\.)?OutOfMemoryError\b"
    r"|(?:[\w.]+\.)?_?\w*MemoryError(?::|\s*$)"  # Python's own, numpy's _ArrayMemoryError, other libraries'
    r"|terminate called after throwing an instance of 'std::bad_alloc')",  # libstdc++, of a C++ program
    re.MULTILINE,
)

# Under our own memory limit: messages of libraries that cannot allocate and do not mention memory. All measured with
# torch 2.13 under a soft RLIMIT_DATA, except for those marked "read".
_LIMITED_CPU_FRAGMENTS = (
    "could not create a primitive",  # oneDNN, whose kernel is compiled into new pages
    "could not execute a primitive",  # oneDNN
    "could not create a memory object",  # oneDNN, read in its C++ interface
    "could not create a memory storage",  # oneDNN, read
    "std::bad_alloc",  # C++ of an extension, as a RuntimeError
    "Cannot allocate memory",  # strerror(ENOMEM): a thread, a fork, a file that is mapped
    "can't start new thread",  # Python, when there is no room for its stack
    "thread constructor failed: Resource temporarily unavailable",  # std::thread of libc++, read
)
# libstdc++'s std::thread says only this when there is no room for a stack: strerror(EAGAIN) (read). In a longer message
# the same words are about a lock that another process holds, or an empty pipe.
_NO_THREAD = "Resource temporarily unavailable"

# oneDNN has no such operation for this processor and these types: an LSTM in bfloat16 without AVX-512, in float16 with
# most processors. A descriptor takes next to no memory: under 400 limits from 0 to 4 MiB of free room (measured, torch
# 2.13) a convolution, a product, an LSTM and a GRU said "could not create a primitive" 116 times, and never this.
_UNSUPPORTED = "could not create a primitive descriptor"

# Longer messages that contain one of the fragments above, and mean something else.
_LOOK_ALIKES = (
    re.compile(re.escape(_UNSUPPORTED)),
    # NCCL could not allocate because another call had failed before, whose reason it quotes.
    re.compile(r"Cuda failure (?:\d+ )?'(?!out of memory)[^']*'.*Failed to CUDA \w+", re.DOTALL),
)


# After these, all further work of the process on the device ends in the same error, and only a new process can continue
# (CUDA Runtime API, cudaError, whose numbers are in the comments). The texts are those of cudaGetErrorString; torch
# puts "CUDA error: " or "HIP error: " before them (c10/cuda/CUDAException.cpp).
_LOST_FRAGMENTS = (
    "an illegal memory access was encountered",  # 700
    "the launch timed out and was terminated",  # 702
    "device-side assert triggered",  # 710: usually an index out of range in an embedding or a loss
    "hardware stack error",  # 714
    "an illegal instruction was encountered",  # 715
    "misaligned address",  # 716
    "unspecified launch failure",  # 719
    "uncorrectable ECC error encountered",  # 214
    "uncorrectable NVLink error detected",  # 220
    # A card that has fallen off its bus, or whose driver no longer answers.
    "unknown error",  # 999
    "CUDA-capable devices are busy or unavailable",  # 46, until CUDA 11
    "CUDA-capable device(s) is/are busy or unavailable",  # 46, as torch 2.0 was seen to print it (pytorch#100691)
    "no CUDA-capable device is detected",  # 100
    "no ROCm-capable device is detected",  # 100 (hipGetErrorString)
)


# What comes before those texts in the first line: of torch's runtime and driver calls, and of Triton's.
_LOST_PREFIX = re.compile(r"\s*(?:(?:CUDA|HIP)(?: driver)? error: |Triton Error \[(?:CUDA|HIP)\]: )")
# NCCL, src/include/checks.h: somewhere in the message of torch's DistBackendError.
_NCCL_FAILURE = re.compile(r"Cuda failure (?:\d+ )?'([^']*)'")


def is_device_lost(error: BaseException) -> bool:
    """Whether `error`, or its cause, says that its process can no longer use the device."""
    return any(
        isinstance(link, RuntimeError)
        and any(fragment in _of_the_device(text_of(link)) for fragment in _LOST_FRAGMENTS)
        for link in _chain(error)
    )


def _of_the_device(message: str) -> str:
    """The part of a message in which a runtime, a driver or NCCL speaks of the device; empty for other messages."""
    if _LOST_PREFIX.match(message):
        return message.lstrip().partition("\n")[0]
    return " ".join(_NCCL_FAILURE.findall(message))


def is_unsupported(error: BaseException) -> bool:
    """Whether `error`, or its cause, says that oneDNN has no such operation for this processor and these types."""
    return any(isinstance(link, RuntimeError) and _UNSUPPORTED in text_of(link) for link in _chain(error))


def is_out_of_memory(error: BaseException, *, limited_cpu: bool = False) -> bool:
    """Whether `error`, or its cause, says that memory ran out: by type first, then by message.

    Args:
        error: the error. Its causes and contexts are checked too, since libraries wrap what they catch.
        limited_cpu: whether this process has a memory limit. The vague messages of libraries that could not allocate
            then count as well.
    """
    fragments = _FRAGMENTS + _LIMITED_CPU_FRAGMENTS if limited_cpu else _FRAGMENTS
    for link in _chain(error):
        # numpy's _ArrayMemoryError is a MemoryError.
        if isinstance(link, MemoryError) or _is_torchs(link):
            return True
        if limited_cpu and isinstance(link, OSError) and link.errno == errno.ENOMEM:
            return True
        message = _without_look_alikes(text_of(link))
        if any(fragment in message for fragment in fragments):
            return True
        if limited_cpu and isinstance(link, RuntimeError) and message.strip() == _NO_THREAD:
            return True
    return False


def prints_out_of_memory(output: str) -> bool:
    """Whether what a program printed before it failed says that memory ran out."""
    message = _without_look_alikes(output)
    return _PRINTED.search(message) is not None or any(fragment in message for fragment in _FRAGMENTS)


def _is_torchs(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")  # where there is such an error, somebody has imported it
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _without_look_alikes(message: str) -> str:
    for look_alike in _LOOK_ALIKES:
        message = look_alike.sub("", message)
    return message


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what led to it, each once: a chain may have been made circular."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if link.__cause__ is not None:
            waiting.append(link.__cause__)
        # `raise ... from None` declares the context unrelated.
        if link.__context__ is not None and not link.__suppress_context__:
            waiting.append(link.__context__)
