"""The contract of a device, and what only a real GPU shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from autobatch.devices import Device, open_device
from autobatch.devices.cuda import CudaDevice

from ..devices.test_devices import MIB, DeviceContract


class TestCuda(DeviceContract):
    @pytest.fixture
    def device(self) -> Iterator[Device]:
        device = open_device("cuda")
        yield device
        device.lift_limit()
        device.clean_up()

    def test_after_an_out_of_memory_what_was_held_is_free_again(self, device: Device) -> None:
        device.set_limit(self.limit_bytes, 0.0)
        device.clean_up()
        before = torch.cuda.memory_reserved()
        with pytest.raises(torch.OutOfMemoryError):
            [self.allocate(device, 32 * MIB) for _ in range(100)]
        device.clean_up()
        assert torch.cuda.memory_reserved() == before

    def test_the_peak_is_what_the_driver_sees(self, device: Device) -> None:
        assert isinstance(device, CudaDevice)
        device.reset_peak()
        held = self.allocate(device, 64 * MIB + 1)
        peak, tensors = device.peak_bytes(), device.peak_allocated_bytes()
        assert held is not None
        assert peak is not None
        assert tensors is not None
        assert peak >= tensors > 64 * MIB

    def test_the_card_has_an_identifier(self, device: Device) -> None:
        info = device.info()
        assert info.kind in ("cuda", "rocm")
        if info.kind == "cuda":
            assert info.uuid is not None
            assert info.uuid.startswith(("GPU-", "MIG-"))

    def test_energy_is_counted_or_a_note_says_why(self, device: Device) -> None:
        assert device.joules() is not None or any("energy" in note or "NVML" in note for note in device.info().notes)


@pytest.mark.skipif(torch.version.hip is not None, reason="CUDA_VISIBLE_DEVICES of ROCm takes other identifiers")
def test_a_card_picked_by_its_uuid_is_the_same_card() -> None:
    wanted = open_device("cuda").info()
    code = "from autobatch.devices import open_device; i = open_device('cuda:0').info(); print(i.uuid, i.driver)"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": wanted.uuid or "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [wanted.uuid, str(wanted.driver)], done.stderr
