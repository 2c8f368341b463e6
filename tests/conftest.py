"""What all tests share."""

from __future__ import annotations

import os

import pytest

# Several test processes share the cores: with a thread for each core in each of them, steps wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The contracts live in a module that is no test file; their failures shall be as readable as a test's own.
pytest.register_assert_rewrite("tests.contracts")
