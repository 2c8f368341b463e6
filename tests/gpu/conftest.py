"""Tests that need a CUDA or ROCm device: marked `gpu`, and skipped with the reason where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason="torch sees no CUDA or ROCm device")
    for item in items:
        if HERE in item.path.parents:  # this hook is called with the tests of every folder
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(missing)
