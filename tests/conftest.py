"""What all tests share."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Several test processes share the cores: with a thread for each core in each of them, steps wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The contracts live in a module that is no test file; their failures shall be as readable as a test's own.
pytest.register_assert_rewrite("tests.contracts")

# A busy machine may stop for a second anywhere; speed is measured in benchmarks.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage() -> None:
    # Each probe in this process collects garbage, and among half a million objects of torch that takes up to a second.
    # A process's first optimizer imports as many again, so it is made before.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    gc.collect()
    gc.freeze()
