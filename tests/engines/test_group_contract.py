"""The runner of a group of processes keeps to the contract, as that of one process does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autobatch.core.plan import Config, Plan
from autobatch.core.runner import Runner
from autobatch.engines.group import GroupRunner
from autobatch.engines.served import RunnerSpec

from ..helpers.contracts import RangeTestContract, RunnerContract
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


class TestRangeTestsOfAGroup(RangeTestContract):
    plan = Plan(batch_size=2, ranks=2)

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Callable[[str], Runner]]:
        runners: list[GroupRunner] = []

        def opened(text: str) -> Runner:
            file = tmp_path / "model.py"
            file.write_text(text)
            spec = RunnerSpec(path=file, device="cpu", checkpoints=tmp_path / "checkpoints", nproc=2)
            runners.append(GroupRunner(spec, log=tmp_path / "worker.log"))
            return runners[-1]

        yield opened
        for runner in runners:
            runner.close()
