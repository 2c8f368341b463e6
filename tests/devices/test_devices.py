"""Devices: one contract, run on the CPU for real and on stand-ins with behaviour for what is not at hand."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autobatch import devices
from autobatch.devices import Device, describe_devices, host_memory, open_device
from autobatch.devices.backend import BACKENDS, NAMED
from autobatch.devices.cpu import CpuDevice
from autobatch.devices.cuda import CudaDevice
from autobatch.devices.environment import worker_environment
from autobatch.devices.limits import budget_bytes
from autobatch.devices.mps import MpsDevice
from autobatch.devices.nvml import Card, load_library, resolve_visible
from autobatch.devices.xpu import XpuDevice
from autobatch.errors import DeviceError, SettingError

from ..helpers.ready_python import run

MIB = 1 << 20


class DeviceContract:
    """What every device promises. A subclass gives a `device` fixture that takes the limit down afterwards."""

    limit_bytes = 256 * MIB  # what a test asks for: more than a start-up of libraries, less than any device has

    def allocate(self, device: Device, size: int) -> object:
        """`size` bytes in use on the device, for as long as the answer lives."""
        return torch.ones(size, dtype=torch.uint8, device=device.torch_device)

    def test_it_says_what_it_is(self, device: Device) -> None:
        info = device.info()
        assert info.name
        assert info.kind in BACKENDS
        assert info.torch == torch.__version__
        assert info.memory_bytes is not None
        assert info.free_bytes is not None
        assert 0 <= info.free_bytes <= info.memory_bytes

    def test_a_limit_that_is_set_is_kept(self, device: Device) -> None:
        limit = device.set_limit(self.limit_bytes, 0.1)
        assert limit.budget_bytes == int(self.limit_bytes * 0.9)
        assert limit.budget_bytes <= limit.capacity_bytes <= self.limit_bytes
        assert re.search("the memory limit that was set|less than the limit of", limit.source)

    def test_without_a_limit_it_is_what_is_free(self, device: Device) -> None:
        limit = device.set_limit(None, 0.05)
        total = device.info().memory_bytes
        assert total is not None
        assert 0 < limit.budget_bytes <= limit.capacity_bytes <= total
        assert not re.search("the memory limit that was set|less than the limit of", limit.source)

    def test_more_than_there_is_becomes_what_there_is(self, device: Device) -> None:
        limit = device.set_limit(1 << 60, 0.0)
        assert limit.capacity_bytes < 1 << 60
        assert "less than the" in limit.source

    def test_a_limit_can_be_set_again_and_lifted_twice(self, device: Device) -> None:
        first, second = device.set_limit(self.limit_bytes, 0.0), device.set_limit(2 * self.limit_bytes, 0.0)
        assert second.capacity_bytes == 2 * first.capacity_bytes
        device.lift_limit()
        device.lift_limit()

    @pytest.mark.parametrize("headroom", [-0.1, 1.0, 5.0, float("nan")])
    def test_a_headroom_that_is_no_share_is_refused(self, device: Device, headroom: float) -> None:
        with pytest.raises(SettingError, match=r"at least 0 and below 1; found .* Write 0\.05"):
            device.set_limit(None, headroom)

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_below_one_byte_is_refused(self, device: Device, limit: int) -> None:
        with pytest.raises(SettingError, match=f"above zero; found {limit}"):
            device.set_limit(limit, 0.0)

    def test_the_peak_is_that_of_the_window(self, device: Device) -> None:
        device.set_limit(self.limit_bytes, 0.0)
        device.reset_peak()
        held = self.allocate(device, 64 * MIB)
        device.synchronize()
        high = device.peak_bytes()
        del held
        device.clean_up()
        device.reset_peak()
        if high is None:
            assert device.peak_bytes() is None
        else:
            assert 60 * MIB <= high <= self.limit_bytes  # on a CPU, what was held at the start may shrink a little
            low = device.peak_bytes()
            assert low is not None
            assert low < high - 32 * MIB

    def test_beyond_the_limit_it_is_refused_and_nothing_stays_held(self, device: Device) -> None:
        device.set_limit(self.limit_bytes, 0.0)
        refused, before = 0, device.refusals()
        for _ in range(3):
            try:
                self.allocate(device, 2 * self.limit_bytes)
            except (RuntimeError, MemoryError) as error:
                refused += device.is_out_of_memory(error)
            device.clean_up()
        assert refused == 3
        after = device.refusals()
        assert (after is None) == (before is None)
        assert after is None or before is None or after - before == 3
        assert self.allocate(device, self.limit_bytes // 2) is not None

    def test_a_bug_is_no_out_of_memory(self, device: Device) -> None:
        device.set_limit(self.limit_bytes, 0.0)
        assert not device.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    def test_counters_never_run_backwards(self, device: Device) -> None:
        first, before = device.joules(), device.alloc_retries()
        self.allocate(device, MIB)
        device.synchronize()
        second, after = device.joules(), device.alloc_retries()
        assert (first is None) == (second is None)
        assert (before is None) == (after is None)
        assert (second or 0.0) >= (first or 0.0)
        assert (after or 0) >= (before or 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a memory limit on the CPU needs Linux")
class TestCpu(DeviceContract):
    @pytest.fixture
    def device(self) -> Iterator[Device]:
        device = CpuDevice()
        yield device
        device.lift_limit()

    def test_the_wall_stands_at_the_capacity_and_for_a_final_probe_at_the_budget(self, device: Device) -> None:
        limit = device.set_limit(self.limit_bytes, 0.25)
        assert (limit.capacity_bytes, limit.budget_bytes) == (256 * MIB, 192 * MIB)
        between = 224 * MIB
        assert self.allocate(device, between) is not None
        with device.held_to_budget():
            with pytest.raises(RuntimeError) as refused:
                self.allocate(device, between)
            assert device.is_out_of_memory(refused.value)
            assert self.allocate(device, 160 * MIB) is not None
        assert self.allocate(device, between) is not None

    def test_the_wall_keeps_clear_of_the_end_of_what_is_free(self, device: Device) -> None:
        limit = device.set_limit(None, 0.25)
        assert limit.capacity_bytes == limit.budget_bytes

    def test_what_is_gone_when_the_count_begins_leaves_no_room(self, device: Device) -> None:
        held = torch.zeros(128 * MIB, dtype=torch.uint8)
        limit = device.set_limit(self.limit_bytes, 0.0)
        del held
        assert self.allocate(device, 320 * MIB) is not None  # in the place of what is gone
        device.begin_count()
        with pytest.raises(RuntimeError) as refused:
            self.allocate(device, 320 * MIB)
        assert device.is_out_of_memory(refused.value)
        assert self.allocate(device, 224 * MIB) is not None
        assert device.set_limit(self.limit_bytes, 0.0) == limit

    def test_lifted_it_is_gone(self, device: Device) -> None:
        device.set_limit(self.limit_bytes, 0.0)
        device.lift_limit()
        assert self.allocate(device, 2 * self.limit_bytes) is not None

    def test_setting_a_limit_draws_no_random_number(self, device: Device) -> None:
        before = torch.get_rng_state()
        device.set_limit(self.limit_bytes, 0.0)
        assert torch.equal(before, torch.get_rng_state())

    def test_a_file_mapped_into_memory_is_no_peak(self, device: Device, tmp_path: Path) -> None:
        path = tmp_path / "data"
        with path.open("wb") as file:
            file.truncate(1 << 34)
        device.set_limit(self.limit_bytes, 0.0)
        device.reset_peak()
        mapped = torch.from_file(str(path), shared=True, size=1 << 34, dtype=torch.uint8)
        peak = device.peak_bytes()
        assert mapped[0] == 0
        assert peak is not None
        assert peak < 64 * MIB


def test_without_proc_a_limit_on_the_cpu_is_refused_and_the_rest_is_known(tmp_path: Path) -> None:
    device = CpuDevice(proc=tmp_path, cgroup=tmp_path)
    with pytest.raises(DeviceError, match="a memory limit on the CPU needs Linux"):
        device.set_limit(MIB, 0.0)
    limit = device.set_limit(None, 0.5)
    assert limit.budget_bytes == limit.capacity_bytes // 2
    assert "without a wall" in limit.source
    device.reset_peak()
    assert device.peak_bytes() is None
    assert "no /proc/meminfo" in device.info().notes[0]


# -- what Linux says -------------------------------------------------------------------------------------------------


def tree(root: Path, **files: str) -> Path:
    """A folder with the files named `a__b__c` for a/b/c."""
    for name, text in files.items():
        path = root.joinpath(*name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nHugePages_Total:   0\n"


def test_a_machine_without_limits_has_what_is_available(tmp_path: Path) -> None:
    found = host_memory.available(tree(tmp_path, meminfo=MEMINFO, self__cgroup="0::/\n"), tmp_path / "none")
    assert found == host_memory.Available(
        free_bytes=600 * 1024, total_bytes=1000 * 1024, source="available on the machine"
    )


def test_a_container_of_version_2_has_what_its_limit_leaves(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", meminfo=MEMINFO, self__cgroup="0::/box\n")
    cgroup = tmp_path / "cgroup"
    tree(cgroup / "box", **{"memory.max": "max\n", "memory.current": "1\n"})
    tree(
        cgroup,
        **{"memory.max": "409600\n", "memory.current": "204800\n", "memory.stat": "anon 5\ninactive_file 102400\n"},
    )
    found = host_memory.available(proc, cgroup)
    assert found is not None
    assert (found.free_bytes, found.total_bytes) == (409600 - 102400, 409600)
    assert "cgroup" in found.source


def test_a_container_of_version_1_whose_path_is_the_hosts(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", meminfo=MEMINFO, self__cgroup="4:cpu,memory:/docker/abc\n2:pids:/x\n")
    cgroup = tmp_path / "cgroup"
    tree(cgroup / "memory", **{"memory.limit_in_bytes": "409600\n", "memory.usage_in_bytes": "400000\n"})
    found = host_memory.available(proc, cgroup)
    assert found is not None
    assert found.free_bytes == 9600


def test_version_1_without_a_limit_is_no_limit(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", meminfo=MEMINFO, self__cgroup="4:memory:/\n")
    tree(tmp_path / "memory", **{"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "1\n"})
    found = host_memory.available(proc, tmp_path)
    assert found is not None
    assert found.source == "available on the machine"


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert host_memory.available(tmp_path, tmp_path) is None
    assert host_memory.process_memory(tmp_path) == {}
    assert host_memory.processor_name(tmp_path) is None
    assert not host_memory.reset_resident_peak(tmp_path)


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    assert (
        host_memory.processor_name(tree(tmp_path, cpuinfo="processor : 0\nmodel name : A Chip @ 2GHz\n"))
        == "A Chip @ 2GHz"
    )


@given(capacity=st.integers(1, 1 << 50), headroom=st.floats(0, 1, exclude_max=True))
def test_a_budget_is_never_above_its_capacity(capacity: int, headroom: float) -> None:
    assert 0 <= budget_bytes(capacity, headroom) <= capacity


# -- what a worker is started with -----------------------------------------------------------------------------------


def test_the_environment_names_the_threads() -> None:
    assert {worker_environment(3)[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {"3"}
    with pytest.raises(ValueError, match="at least one thread; got 0"):
        worker_environment(0)


def test_only_what_is_not_timed_runs_faster_than_the_users_own_and_as_the_user_set_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"GLIBC_TUNABLES", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert not names & worker_environment(1).keys()
    untimed = worker_environment(1, is_timed=False)
    assert untimed["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert int(untimed["GOMP_SPINCOUNT"]) > 0
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    untimed = worker_environment(1, is_timed=False)
    assert untimed["GLIBC_TUNABLES"].endswith(":glibc.malloc.hugetlb=0")
    assert "GOMP_SPINCOUNT" not in untimed


FREED = """
from autobatch.devices.environment import count_exactly
from autobatch.devices.host_memory import process_memory

def left_behind():
    # Blocks below glibc's usual threshold of 128 KiB; the last one keeps the heap from shrinking below it.
    before = process_memory()["VmData"]
    blocks = [bytearray(100 << 10) for _ in range(100)]
    last = blocks.pop()
    del blocks
    return process_memory()["VmData"] - before

loose = left_behind()
assert count_exactly()
print(loose, left_behind())
"""


@pytest.mark.usefixtures("ready_python")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmData and mallopt are Linux's")
def test_exact_counting_gives_back_what_is_freed() -> None:
    done = run([sys.executable, "-c", FREED], timeout=600)
    assert done.returncode == 0, done.stderr
    loose, exact = map(int, done.stdout.split())
    assert exact <= 1 << 20 < loose


KEPT = """
from autobatch.devices.environment import give_back_freed_memory, keep_freed_memory
from autobatch.devices.host_memory import process_memory

def freed():
    blocks = [bytearray(1 << 20) for _ in range(100)]  # above glibc's usual threshold for pages of their own
    del blocks
    return process_memory()["VmRSS"]

before = freed()
give_back_freed_memory()  # nothing, in a process that was told nothing
assert keep_freed_memory()
kept = freed() - before
give_back_freed_memory()
print(kept, process_memory()["VmRSS"] - before)
"""


@pytest.mark.usefixtures("ready_python")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmRSS and mallopt are Linux's")
def test_a_process_that_trains_keeps_what_is_freed_until_it_is_given_back() -> None:
    done = run([sys.executable, "-c", KEPT], timeout=600)
    assert done.returncode == 0, done.stderr
    kept, given_back = map(int, done.stdout.split())
    assert kept >= 90 << 20
    assert given_back <= 10 << 20


# One process imports torch and forks a child for each batch size, so that each has run nothing, as the fork server of
# `engines/processes.py` does. Two such processes differ in the layout of their memory as any two do.
WALL = """
import gc, os, sys, torch
from autobatch.devices.cpu import CpuDevice
from autobatch.devices.environment import count_exactly

def fits(batch):
    assert count_exactly()
    device = CpuDevice()
    device.set_limit(32 << 20, 0.0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    try:
        for _ in range(3):
            optimizer.zero_grad()
            inputs, labels = torch.randn(batch, 64), torch.zeros(batch, dtype=torch.long)
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    except Exception as error:
        return 1 if device.is_out_of_memory(error) else 2
    return 0

def verdict(batch):
    child = os.fork()
    if child == 0:
        os._exit(fits(batch))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), code
    return code == 0

torch.optim.AdamW([torch.zeros(1)])  # what the first optimizer imports takes seconds: once here, not in each child
gc.collect()
gc.freeze()  # else each child copies all pages of what was imported when it collects
low, high = int(sys.argv[1]), int(sys.argv[2])
while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if verdict(middle) else (low, middle)
print(low)
"""


def largest(low: int, high: int) -> int:
    """The largest batch that fits, in [low, high), by one new process."""
    environment = {**os.environ, **worker_environment(1)}
    done = run([sys.executable, "-c", WALL, low, high], env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.usefixtures("ready_python")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a memory limit on the CPU needs Linux")
def test_the_largest_batch_repeats_exactly() -> None:
    first = largest(0, 1 << 15)
    assert 1 < first < (1 << 15) - 1  # neither end: the wall decided
    assert largest(first - 8, first + 8) == first
    assert largest(first - 3, first + 5) == first


# -- stand-ins -------------------------------------------------------------------------------------------------------


@dataclass
class FakeCuda:
    """torch.cuda of one card with an allocator: what is reserved stays until the cache is emptied."""

    total: int = 1 << 34
    others: int = 1 << 30
    allowed: float = 1.0
    allocated: int = 0
    reserved: int = 0
    peak: int = 0
    uuid: str | None = "11112222-3333-4444-5555-666677778888"
    libraries: int = 0  # what this process holds outside of the allocator
    ooms: int = 0

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name="A Card", total_memory=self.total, uuid=self.uuid)

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return self.total - self.others - self.libraries - self.reserved, self.total

    def memory_reserved(self, index: int) -> int:
        return self.reserved

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        assert 0 <= fraction <= 1
        self.allowed = fraction

    def get_per_process_memory_fraction(self, index: int) -> float:
        return self.allowed

    def take(self, size: int) -> None:
        needed = max(self.reserved, self.allocated + size)
        if needed > min(self.allowed * self.total, self.total - self.others):
            self.ooms += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size}")
        self.allocated += size
        self.reserved, self.peak = needed, max(self.peak, needed)

    def give(self, size: int) -> None:
        self.allocated -= size

    def synchronize(self, index: int) -> None:
        pass

    def empty_cache(self) -> None:
        self.reserved = self.allocated

    def reset_peak_memory_stats(self, index: int) -> None:
        self.peak = self.reserved

    def max_memory_reserved(self, index: int) -> int:
        return self.peak

    def max_memory_allocated(self, index: int) -> int:
        return self.allocated

    def memory_stats(self, index: int) -> dict[str, int]:
        return {"num_ooms": self.ooms} if self.ooms else {}  # empty until the allocator is used

    # torch.mps has the same memory under other names
    def recommended_max_memory(self) -> int:
        return self.total

    def driver_allocated_memory(self) -> int:
        return self.reserved


class FakeMps(FakeCuda):
    """torch.mps: no device numbers, and an allocator that goes past what is recommended."""

    def set_per_process_memory_fraction(self, fraction: float, index: int = 0) -> None:
        assert 0 <= fraction <= 2
        self.allowed = fraction

    def synchronize(self, index: int = 0) -> None:
        pass


@dataclass
class FakeXpu(FakeCuda):
    """torch.xpu, as its source in torch 2.13 has it: the same allocator, which counts no refusals and takes a float."""

    no_free: str | None = None  # what the driver says where it does not say what is free
    stale_free: bool = False  # it does not see what our allocator holds
    integrated: bool = False

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(
            name="Intel(R) Data Center GPU Max 1100",
            total_memory=self.total,
            uuid=bytes(range(16)),
            driver_version="1.6.33578",
            is_integrated_gpu=self.integrated,
            has_fp64=not self.integrated,
        )

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self.no_free is not None:
            raise RuntimeError(self.no_free)
        free, total = super().mem_get_info(index)
        return free + (self.reserved if self.stale_free else 0), total

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        super().set_per_process_memory_fraction(fraction, index)

    def memory_stats(self, index: int) -> dict[str, int]:
        return {"reserved_bytes.all.current": self.reserved, "reserved_bytes.all.peak": self.peak}


class Held:
    """Bytes in use on a stand-in, while it lives."""

    def __init__(self, memory: FakeCuda, size: int) -> None:
        memory.take(size)
        self._give: Callable[[], None] = lambda: memory.give(size)

    def __del__(self) -> None:
        if hasattr(self, "_give"):  # not where the memory was refused
            self._give()


class TestCudaStandIn(DeviceContract):
    @pytest.fixture
    def memory(self) -> FakeCuda:
        return FakeCuda()

    @pytest.fixture
    def device(self, memory: FakeCuda) -> Device:
        self.cuda = memory
        return CudaDevice(0, cuda=memory, card=Card(0, memory.uuid, library=FakeNvml()))

    def allocate(self, device: Device, size: int) -> object:
        return Held(self.cuda, size)

    def test_other_processes_are_counted_out(self, device: Device, memory: FakeCuda) -> None:
        memory.others = 3 << 30
        assert device.set_limit(None, 0.0).capacity_bytes == memory.total - (3 << 30)

    def test_what_this_process_holds_already_is_counted_in(self, device: Device, memory: FakeCuda) -> None:
        held = self.allocate(device, 1 << 30)
        assert device.set_limit(None, 0.0).capacity_bytes == memory.total - memory.others
        assert held is not None

    def test_a_full_card_is_a_clear_error(self, device: Device, memory: FakeCuda) -> None:
        memory.others = memory.total
        with pytest.raises(DeviceError, match="no free memory: other processes hold all of it"):
            device.set_limit(None, 0.0)

    def test_without_a_limit_the_allocator_is_left_alone(self, device: Device, memory: FakeCuda) -> None:
        memory.allowed = 0.5  # the user's own, from PYTORCH_CUDA_ALLOC_CONF
        device.set_limit(None, 0.0)
        device.lift_limit()
        assert memory.allowed == 0.5

    def test_headroom_is_a_wall_too_and_what_the_user_set_comes_back(self, device: Device, memory: FakeCuda) -> None:
        limit = device.set_limit(None, 0.05)
        memory.others = 0  # somebody gives memory back: the capacity stays where it was
        assert memory.allowed * memory.total == limit.capacity_bytes
        device.lift_limit()
        assert memory.allowed == 1.0
        memory.allowed = 0.5
        device.set_limit(None, 0.05)
        assert memory.allowed == 0.5
        device.lift_limit()
        assert memory.allowed == 0.5

    def test_what_libraries_take_beside_the_allocator_counts_and_what_others_take_does_not(
        self, memory: FakeCuda
    ) -> None:
        nvml = FakeNvml(processes=[(os.getpid(), 1 << 30), (-1, memory.others)])
        device = CudaDevice(0, cuda=memory, card=Card(0, memory.uuid, library=nvml))
        device.set_limit(None, 0.05)
        device.reset_peak()
        memory.take(100 * MIB)
        memory.libraries += 30 * MIB
        memory.others += 500 * MIB
        nvml.processes[1] = (-1, memory.others)
        assert device.peak_bytes() == 130 * MIB
        assert device.others_bytes() == memory.others
        nvml.processes = []  # a container hides them: all of it is taken for our own
        assert device.others_bytes() is None
        assert device.peak_bytes() is not None

    def test_how_the_allocator_is_set_up_is_told(self, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        assert "torch's allocator is set up as expandable_segments:True" in device.info().notes

    def test_between_budget_and_capacity_is_measured_not_refused(self, device: Device) -> None:
        limit = device.set_limit(self.limit_bytes, 0.5)
        device.reset_peak()
        held = self.allocate(device, self.limit_bytes * 3 // 4)
        peak = device.peak_bytes()
        assert peak is not None
        assert limit.budget_bytes < peak <= limit.capacity_bytes
        assert held is not None

    def test_it_adds_what_nvml_knows(self, device: Device) -> None:
        info = device.info()
        assert (info.driver, info.power_limit_w) == ("580.1", 700.0)
        assert info.uuid == "GPU-11112222-3333-4444-5555-666677778888"
        assert "other processes hold 2 GiB of this card" in info.notes
        assert device.joules() == pytest.approx(5.001)
        assert device.watts() == pytest.approx(312.5)
        assert device.slowed_by() == ()


class TestMpsStandIn(DeviceContract):
    @pytest.fixture
    def device(self) -> Device:
        self.memory = FakeMps(allowed=1.7, others=0)
        return MpsDevice(mps=self.memory)

    def allocate(self, device: Device, size: int) -> object:
        return Held(self.memory, size)

    def test_the_wall_stands_at_the_budget_and_goes_back(self, device: Device) -> None:
        limit = device.set_limit(None, 0.25)
        assert self.memory.allowed == 0.75
        assert limit.capacity_bytes == limit.budget_bytes
        device.lift_limit()
        assert self.memory.allowed == 1.7


class TestXpuStandIn(DeviceContract):
    @pytest.fixture
    def memory(self) -> FakeXpu:
        return FakeXpu()

    @pytest.fixture
    def device(self, memory: FakeXpu) -> Device:
        self.xpu = memory
        return XpuDevice(1, xpu=memory)

    def allocate(self, device: Device, size: int) -> object:
        return Held(self.xpu, size)

    def test_its_facts_are_those_of_the_driver(self, device: Device) -> None:
        info = device.info()
        assert (info.kind, info.index, info.driver) == ("xpu", 1, "1.6.33578")
        assert (device.torch_device, info.name) == (torch.device("xpu", 1), "Intel(R) Data Center GPU Max 1100")
        assert info.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
        assert (device.joules(), device.watts(), device.alloc_retries(), device.refusals()) == (None,) * 4
        assert "150 ms" in info.notes[0]

    def test_headroom_is_a_wall_and_what_the_user_set_comes_back(self, device: Device, memory: FakeXpu) -> None:
        memory.allowed = 0.5
        limit = device.set_limit(None, 0.05)
        assert (memory.allowed, limit.capacity_bytes) == (0.5, memory.total // 2)
        assert limit.source == "the memory fraction that was set for this process"
        device.lift_limit()
        assert memory.allowed == 0.5

    def test_what_a_driver_calls_free_though_it_is_held_is_not_counted_twice(
        self, device: Device, memory: FakeXpu
    ) -> None:
        memory.stale_free, memory.others = True, 0
        held = self.allocate(device, 4 << 30)
        assert device.set_limit(None, 0.0).capacity_bytes == memory.total
        device.reset_peak()
        assert device.peak_bytes() == 4 << 30
        assert held is not None

    def test_a_card_that_does_not_say_what_is_free_is_taken_for_free(self, device: Device, memory: FakeXpu) -> None:
        memory.no_free, memory.integrated = "The device (Intel(R) Graphics) doesn't support querying", True
        info = device.info()
        assert info.free_bytes is None
        assert "free memory: The device (Intel(R) Graphics) doesn't support querying" in info.notes
        assert any("shares the machine's memory" in note for note in info.notes)
        assert any("bf16 does without" in note for note in info.notes)
        limit = device.set_limit(None, 0.25)
        assert (limit.capacity_bytes, limit.budget_bytes) == (memory.total, memory.total * 3 // 4)
        held = self.allocate(device, 1 << 30)
        device.reset_peak()
        assert device.peak_bytes() == 1 << 30
        assert held is not None

    def test_a_torch_that_cannot_limit_it_is_refused(self) -> None:
        old = SimpleNamespace(mem_get_info=None)
        with pytest.raises(DeviceError, match=r"xpu has set_per_process_memory_fraction, which keeps a memory limit"):
            XpuDevice(0, xpu=old)


# -- NVML ------------------------------------------------------------------------------------------------------------


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


@dataclass
class FakeNvml:
    """pynvml with cards, processes, and functions that can be made to fail with a code of NVML's."""

    NVMLError = FakeNvmlError
    uuids: tuple[str, ...] = ("GPU-aaaa", "GPU-11112222-3333-4444-5555-666677778888", "GPU-bbbb")
    fails: dict[str, int] = field(default_factory=dict)
    processes: list[tuple[int, int | None]] = field(default_factory=lambda: [(os.getpid(), 1 << 30), (-1, 2 << 30)])
    reasons: int = 0
    began: bool = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            if name in self.fails:
                raise FakeNvmlError(self.fails[name])
            if not self.began and name != "nvmlInit":
                raise FakeNvmlError(1)
            return getattr(self, "_" + name.removeprefix("nvml"))(*arguments)

        return call

    def _Init(self) -> None:
        self.began = True

    def _DeviceGetCount(self) -> int:
        return len(self.uuids)

    def _DeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.uuids:
            raise FakeNvmlError(6)
        return uuid

    def _DeviceGetHandleByIndex(self, index: int) -> str:
        if index >= len(self.uuids):
            raise FakeNvmlError(2)
        return self.uuids[index]

    def _DeviceGetUUID(self, handle: str) -> str:
        return handle

    def _DeviceGetName(self, handle: str) -> bytes:
        return f"card {handle}".encode()

    def _SystemGetDriverVersion(self) -> str:
        return "580.1"

    def _DeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 700_000

    def _DeviceGetPowerUsage(self, handle: str) -> int:
        return 312_500

    def _DeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return 5_001

    def _DeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes]

    def _DeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self.reasons


def test_a_card_tells_its_facts() -> None:
    facts = Card(0, None, library=FakeNvml(reasons=0x01 | 0x04 | 0x40)).facts()
    assert facts.name == "card GPU-aaaa"
    assert (facts.driver, facts.power_limit_w, facts.others_bytes) == ("580.1", 700.0, 2 << 30)
    assert facts.slowed_by == ("the power limit", "its temperature (hardware)")
    assert facts.notes == ()


def test_what_holds_the_clocks_back_and_the_power_are_asked_anew_each_time() -> None:
    library = FakeNvml(reasons=0x20)
    card = Card(0, None, library=library)
    assert card.slowed_by() == ("its temperature (software)",)
    library.reasons = 0
    assert card.slowed_by() == ()
    assert card.watts() == pytest.approx(312.5)
    silent = Card(0, None, library=FakeNvml(fails={"nvmlDeviceGetPowerUsage": 3}))
    assert silent.watts() is None
    lost = Card(0, None, library=FakeNvml(fails={"nvmlInit": 12}))
    assert (lost.watts(), lost.slowed_by()) == (None, None)


def test_a_card_is_found_by_its_uuid_whatever_its_number() -> None:
    library = FakeNvml(uuids=("GPU-x", "MIG-y"))
    assert Card(0, "MIG-y", library=library).facts().name == "card MIG-y"
    assert Card(1, "x", library=library, visible="1,0").facts().name == "card GPU-x"


@pytest.mark.parametrize(
    ("visible", "index", "name"),
    [
        (None, 2, "card GPU-bbbb"),
        ("2,0", 0, "card GPU-bbbb"),
        ("2, 0", 1, "card GPU-aaaa"),
        ("GPU-1111,GPU-bb", 1, "card GPU-bbbb"),
        ("GPU-1111", 0, "card GPU-11112222-3333-4444-5555-666677778888"),
        ("1,-1,2", 1, None),  # an entry that names no card ends the list
        ("", 0, None),
        ("MIG-zz", 0, None),
        ("7", 0, None),
    ],
)
def test_cuda_visible_devices_says_which_card(visible: str | None, index: int, name: str | None) -> None:
    facts = Card(index, None, library=FakeNvml(), visible=visible).facts()
    assert facts.name == name
    assert (facts.notes == ()) == (name is not None)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8), st.data())
def test_a_list_of_numbers_is_taken_in_its_order(cards: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(cards) - 1))
    assert resolve_visible(index, ",".join(map(str, cards))) == cards[index]
    assert resolve_visible(len(cards), ",".join(map(str, cards))) is None


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (12, "no NVIDIA driver"),
        (9, "driver is not loaded"),
        (18, "versions differ"),
        (4, "no permission"),
        (15, "GPU is lost"),
        (77, "NVML answers code 77"),
    ],
)
def test_a_driver_that_does_not_answer_is_a_reason(code: int, why: str) -> None:
    card = Card(0, None, library=FakeNvml(fails={"nvmlInit": code}))
    assert card.facts().driver is None
    assert why in card.facts().notes[0]
    assert card.joules() is None


def test_one_missing_fact_takes_no_other_away() -> None:
    card = Card(0, None, library=FakeNvml(fails={"nvmlDeviceGetTotalEnergyConsumption": 3, "nvmlDeviceGetName": 4}))
    facts = card.facts()
    assert card.joules() is None
    assert facts.power_limit_w == 700.0
    assert facts.notes == (
        "name of the card: this user has no permission to read it",
        "energy: this card or driver does not support it",
    )
    assert card.facts() == facts  # told once each time, not more each time


@pytest.mark.parametrize(
    ("processes", "why"),
    [
        ([], "not in NVML's list"),
        ([(-1, 5)], "a container hides its number"),
        ([(os.getpid(), None)], "Windows"),
    ],
)
def test_hidden_processes_are_unknown_not_zero(processes: list[tuple[int, int | None]], why: str) -> None:
    facts = Card(0, None, library=FakeNvml(processes=processes)).facts()
    assert facts.others_bytes is None
    assert why in facts.notes[0]


def test_without_the_library_the_note_says_what_to_install() -> None:
    assert Card(0, None, library=None, notes=("install it",)).facts().notes == ("install it",)


def test_a_library_that_cannot_be_imported_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    library, notes = load_library()
    assert library is None
    assert "nvidia-ml-py cannot be imported" in notes[0]


def test_the_deprecated_wrapper_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("import warnings; warnings.warn('deprecated', FutureWarning)\n")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    library, notes = load_library()
    monkeypatch.delitem(sys.modules, "pynvml")
    assert library is not None
    assert "pip uninstall pynvml" in notes[0]


# -- by name ---------------------------------------------------------------------------------------------------------


def test_the_cpu_opens_by_name_and_nothing_is_limited() -> None:
    assert open_device("cpu").torch_device == torch.device("cpu")
    assert open_device(" CPU ").info().kind == "cpu"


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = next(kind for kind, backend in NAMED.items() if backend.count())
    assert open_device().torch_device.type == expected


@pytest.mark.parametrize("name", ["tpu", "", "cuda:99", "cuda:x", "gpu", "xpu:99", "xpu:"])
def test_an_unknown_device_lists_those_there_are(name: str) -> None:
    with pytest.raises(DeviceError, match=r"must be there; found .*There is: .*cpu"):
        open_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_both_say_why() -> None:
    with pytest.raises(DeviceError, match=r"found 'cuda' \(.+\)"):
        open_device("cuda")
    if not torch.backends.mps.is_available():
        assert describe_devices()[-1].notes[-1].startswith("no GPU: ")


@pytest.mark.skipif(torch.version.xpu is not None, reason="this torch is built with XPU")
def test_without_xpu_the_refusal_says_why() -> None:
    with pytest.raises(DeviceError, match=r"found 'xpu' \(this torch \(.+\) is built without XPU\)"):
        open_device("xpu")


def test_every_device_is_described() -> None:
    assert describe_devices()[-1].kind == "cpu"


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Gadget'"):
        devices.Gadget  # noqa: B018  # the lookup is the test
    gc.collect()
