"""The runner in worker processes keeps to the contract, as the one in this process does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autobatch.core.plan import Plan
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec

from ..helpers.contracts import RunnerContract

pytestmark = pytest.mark.usefixtures("ready_python")

# 256 inputs a sample, so that a batch of 2 ** 17 takes 128 MiB.
TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def data(seed):
    y = torch.arange(96) % 3
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(96, 256, generator=generator) + y[:, None], y)

def model():
    return nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))

def train_data():
    return data(0)

def val_data():
    return data(1)

def test_data():
    return data(2)
"""


class TestInWorkerProcesses(RunnerContract):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[RemoteRunner]:
        file = tmp_path / "model.py"
        file.write_text(TASK)
        spec = RunnerSpec(
            path=file, device="cpu", memory_limit_bytes=48 << 20, headroom=0.0, checkpoints=tmp_path / "checkpoints"
        )
        runner = RemoteRunner(spec, log=tmp_path / "worker.log")
        yield runner
        runner.close()

    def huge_plan(self) -> Plan:
        return Plan(batch_size=1 << 17)
