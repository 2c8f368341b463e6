"""What all tests share."""

from __future__ import annotations

import pytest

# The contracts live in a module that is no test file; their failures shall be as readable as a test's own.
pytest.register_assert_rewrite("tests.contracts")
