"""The runner of a group of processes keeps to the contract, as that of one process does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autobatch.engines.group import GroupRunner
from autobatch.engines.served import RunnerSpec
from autobatch.plan import Config, Plan

from .contracts import RunnerContract
from .test_remote_contract import TASK

pytestmark = pytest.mark.usefixtures("ready_python")


class TestInAGroupOfProcesses(RunnerContract):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[GroupRunner]:
        file = tmp_path / "model.py"
        file.write_text(TASK)
        spec = RunnerSpec(
            path=file,
            device="cpu",
            memory_limit_bytes=48 << 20,
            headroom=0.0,
            checkpoints=tmp_path / "checkpoints",
            nproc=2,
        )
        runner = GroupRunner(spec, log=tmp_path / "worker.log")
        yield runner
        runner.close()

    def small_config(self) -> Config:
        return Config(plan=Plan(batch_size=4, ranks=2), lr=1e-3)

    def huge_plan(self) -> Plan:
        return Plan(batch_size=1 << 17, ranks=2)
