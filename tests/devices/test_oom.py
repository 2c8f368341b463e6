"""Which errors are an out-of-memory, and which are not: one line for each text seen in the field."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autobatch.devices.oom import is_device_lost, is_out_of_memory, is_unsupported, prints_out_of_memory


def wrapped(inner: BaseException, *, by: str) -> BaseException:
    """A RuntimeError that was raised from, while handling, or in spite of `inner`."""
    try:
        try:
            raise inner
        except BaseException as error:
            if by == "cause":
                raise RuntimeError("wrapped") from error
            if by == "none":
                raise RuntimeError("wrapped") from None
            raise RuntimeError("wrapped")  # noqa: B904  # the implicit context is what is tested
    except RuntimeError as error:
        return error


YES = [
    torch.OutOfMemoryError("no words needed"),
    MemoryError(),
    MemoryError("std::bad_alloc"),  # how pybind11 translates the C++ exception
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("HIP out of memory. Tried to allocate 512.00 MiB"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("XPU out of memory. Tried to allocate 1024.00 MiB"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1.2 GB, max allowed: 18.1 GB)"),
    RuntimeError("NCCL error ... Last error:\nCuda failure 'out of memory'"),
    RuntimeError("NCCL error ... Last error:\nCuda failure 2 'out of memory'"),
    torch.distributed.DistBackendError(
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.27.5\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc async 608 bytes"
    ),
    RuntimeError("Last error:\nFailed to CUDA calloc 536870912 bytes"),
    RuntimeError("Last error:\nFailed to CUDA host alloc 9637888 bytes"),
    RuntimeError("Cuda failure 2 'out of memory'\nLast error:\nFailed to CUDA calloc async 4 bytes"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("Triton Error [HIP]:  Code: 2, Messsage: out of memory"),
    RuntimeError("Triton Error [HIP]: Code: 2, Message: out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8"
    ),
    RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n... DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\nBufferAssignment OOM"),
    RuntimeError("Resource exhausted: Out of memory while trying to allocate 5520758552 bytes."),
    RuntimeError("RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB (3206250496B) on device ordinal 0"),
    RuntimeError(
        "OOM when allocating tensor with shape[200,75,75,64] and type float on "
        "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
    ),
    RuntimeError("Out of memory allocating 1,073,741,824 bytes (allocated so far: 512 bytes)."),  # CuPy's
    wrapped(torch.OutOfMemoryError("inner"), by="cause"),
    wrapped(torch.OutOfMemoryError("inner"), by="context"),
    wrapped(wrapped(MemoryError(), by="context"), by="cause"),
]

NO = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x10 and 20x5)"),
    ValueError("Expected more than 1 value per channel when training, got input size torch.Size([1, 8])"),
    ValueError(),
    RuntimeError("CUDA error: invalid configuration argument"),  # a grid too large
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 101376"),  # Triton, at any batch
    RuntimeError("nonzero is not supported for tensors with more than INT_MAX elements"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    RuntimeError("Triton Error [HIP]:  Code: 1, Messsage: invalid argument"),
    # No card of it is full: the driver does not know this NCCL's calls.
    RuntimeError("Cuda failure 1 'invalid argument'\nLast error:\nFailed to CUDA calloc async 24 bytes"),
    RuntimeError(
        "could not create a primitive descriptor for the LSTM forward propagation primitive. Run workload with "
        "environment variable ONEDNN_VERBOSE=all to get additional diagnostic information."
    ),
    RuntimeError("could not create a primitive descriptor for a convolution backward weights primitive"),
    RuntimeError("could not create a primitive descriptor iterator"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),  # a pipe that is empty, a lock that is held
    RuntimeError(
        "Unable to synchronously open file (unable to lock file, errno = 11, error message = 'Resource temporarily "
        "unavailable')"
    ),
    ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),  # glibc, of whatever comes too late
    KeyError("memory"),
    AssertionError("Torch not compiled with CUDA enabled"),
    wrapped(torch.OutOfMemoryError("inner"), by="none"),
    wrapped(ValueError("shape"), by="cause"),
]

ONLY_UNDER_A_LIMIT = [
    RuntimeError("could not create a primitive"),
    RuntimeError("could not execute a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("unable to mmap 1024 bytes from file </dev/shm/x>: Cannot allocate memory (12)"),
    RuntimeError("thread constructor failed: Resource temporarily unavailable"),
    RuntimeError("Resource temporarily unavailable"),
    RuntimeError("can't start new thread"),
    # oneDNN said both: one layer ran without it, the next ran out of memory.
    RuntimeError("could not create a primitive descriptor for the LSTM\nthen: could not create a primitive"),
    OSError(errno.ENOMEM, "no text that is known"),
]


def name(error: BaseException) -> str:
    return f"{type(error).__name__}-{str(error)[:40]}"


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("error", YES, ids=name)
def test_an_out_of_memory_is_recognised(error: BaseException, limited: bool) -> None:
    assert is_out_of_memory(error, limited_cpu=limited)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("error", NO, ids=name)
def test_a_bug_is_not_taken_for_an_out_of_memory(error: BaseException, limited: bool) -> None:
    assert not is_out_of_memory(error, limited_cpu=limited)


@pytest.mark.parametrize("error", ONLY_UNDER_A_LIMIT, ids=name)
def test_vague_words_count_only_under_a_limit(error: BaseException) -> None:
    assert is_out_of_memory(error, limited_cpu=True)
    assert not is_out_of_memory(error)


def test_a_chain_tied_into_a_ring_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


@given(
    before=st.text(), error=st.sampled_from([error for error in YES if "wrapped" not in str(error)]), after=st.text()
)
def test_what_stands_around_the_words_does_not_matter(before: str, error: BaseException, after: str) -> None:
    assert is_out_of_memory(type(error)(f"{before}{error}{after}"))


def test_a_real_refusal_of_the_cpu_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


def test_a_real_refusal_of_numpy_is_recognised() -> None:
    with pytest.raises(MemoryError) as refused:
        np.empty(1 << 60, dtype=np.uint8)
    assert is_out_of_memory(refused.value)


def test_a_real_shape_mismatch_is_not() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(refused.value, limited_cpu=True)


LOST = [
    RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronous"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("HIP error: unspecified launch failure"),
    wrapped(RuntimeError("CUDA error: misaligned address"), by="cause"),
    RuntimeError(
        "CUDA error: unknown error\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
    RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nFor debugging consider passing ..."),
    RuntimeError("CUDA error: no CUDA-capable device is detected"),
    RuntimeError("HIP error: no ROCm-capable device is detected"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("Triton Error [HIP]:  Code: 700, Messsage: an illegal memory access was encountered"),
    RuntimeError("Triton Error [HIP]: Code: 719, Message: unspecified launch failure"),
    RuntimeError("CUDA driver error: an illegal memory access was encountered"),
    RuntimeError("CUDA driver error: unspecified launch failure"),
    torch.distributed.DistBackendError("NCCL error in: ...\nLast error:\nCuda failure 999 'unknown error'"),
    RuntimeError("NCCL error ... Last error:\nCuda failure 'an illegal memory access was encountered'"),
]
NOT_LOST = [
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: invalid configuration argument"),
    ValueError("CUDA error: device-side assert triggered"),  # somebody's own words
    RuntimeError("CUDA error: invalid argument\nin spite of an unknown error before"),  # it is told in the first line
    RuntimeError("my kernel says: device-side assert triggered"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA driver error: device not ready"),
    RuntimeError("Last error:\nCuda failure 1 'invalid argument'"),
    torch.OutOfMemoryError("CUDA out of memory."),
]


@pytest.mark.parametrize("error", LOST)
def test_an_error_that_leaves_the_device_unusable_is_recognised_and_no_out_of_memory(error: BaseException) -> None:
    assert is_device_lost(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", NOT_LOST)
def test_other_errors_leave_the_device_usable(error: BaseException) -> None:
    assert not is_device_lost(error)


def test_an_operation_that_onednn_does_not_have_is_told_from_one_that_found_no_memory() -> None:
    unsupported = RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive")
    assert is_unsupported(unsupported)
    assert is_unsupported(wrapped(unsupported, by="cause"))
    assert not is_unsupported(RuntimeError("could not create a primitive"))
    assert not is_unsupported(ValueError("mat1 and mat2 shapes cannot be multiplied"))


# What the output of another program ends with that ran out of memory, whatever it is written in.
PRINTED = [
    "Traceback (most recent call last):\n  x = bytearray(1 << 60)\nMemoryError",
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array with shape (1000000000,)",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "torch.cuda.OutOfMemoryError: no words needed",
    "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 11.95MiB.\n"
    + "Buffer\n" * 99,
    "tensorflow.python.framework.errors_impl.ResourceExhaustedError: {{function_node __wrapped__}} OOM when allocating "
    "tensor with shape[32,1024,64,64] and type float",
    "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 1,000 bytes",
    "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
    "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
]
NOT_PRINTED = [
    "",
    "ValueError: catch MemoryError yourself",
    "RuntimeError: could not create a primitive descriptor for the LSTM",
    "epoch 3: 12 samples/s, the loader's memory error rate is 0",
    "RESOURCE_EXHAUSTED: quota of requests",
]


@pytest.mark.parametrize("output", PRINTED)
def test_a_program_that_ran_out_of_memory_is_known_by_what_it_printed(output: str) -> None:
    assert prints_out_of_memory(f"epoch 1\n{output}\n")


@pytest.mark.parametrize("output", NOT_PRINTED)
def test_another_that_failed_is_not(output: str) -> None:
    assert not prints_out_of_memory(f"epoch 1\n{output}\n")
