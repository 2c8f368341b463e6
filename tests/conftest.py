"""What all tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from autobatch.engines.processes import fork_server as processes

from .helpers.ready_python import Forked, ReadyPython, Started, Subprocess
from .helpers.steady import STEADY

# Several test processes share the cores: with a thread for each core in each of them, steps wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The contracts live in a module that is no test file; their failures shall be as readable as a test's own.
pytest.register_assert_rewrite("tests.helpers.contracts")

# A busy machine may stop for a second anywhere; speed is measured in benchmarks.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: at the end each process has short tests left, and none waits for another."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage() -> None:
    # Each probe in this process collects garbage, and among half a million objects of torch that takes up to a second.
    # A process's first optimizer imports as many again, so it is made before.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _ready_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if Started is not Forked:
        yield
        return
    python = ReadyPython(tmp_path_factory.mktemp("python"))
    yield
    python.close()


@pytest.fixture(scope="module")
def ready_python(_ready_python: None) -> Iterator[None]:
    """A Python that has imported torch: what is started is forked from it, workers of the tests' own process too.

    On Linux; elsewhere torch's libraries do not live through a fork.
    """
    with pytest.MonkeyPatch.context() as patch:
        if Started is Forked:
            patch.setattr(processes, "subprocess", Subprocess)
        yield


@pytest.fixture
def steady_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile takes the same few steps everywhere, in the workers of this process and in the commands it starts."""
    for name, value in STEADY.items():
        monkeypatch.setenv(name, value)
