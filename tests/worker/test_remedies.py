"""Errors of torch's own that come with the remedy, wherever a task meets them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobatch.core.plan import Plan
from autobatch.devices import open_device
from autobatch.errors import TaskError
from autobatch.tasks.task import Task
from autobatch.worker.remedies import known_remedy
from autobatch.worker.torch_runner import TorchRunner

from ..helpers.processors import trains_lstm_in

UNSUPPORTED = (
    "could not create a primitive descriptor for the LSTM forward propagation primitive. Run workload with environment "
    "variable ONEDNN_VERBOSE=all to get additional diagnostic information."
)
REMEDY = (
    r"torch does not support on this processor in this precision .*LSTM forward propagation primitive\). Train in fp32"
)


class OnlyInFp32(nn.Linear):
    """As a layer whose operation oneDNN has in float32 alone."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError(UNSUPPORTED)
        return super().forward(x)


def data() -> TensorDataset:
    return TensorDataset(torch.randn(64, 3), torch.randint(2, (64,)))


def runner(folder: Path, limit: int | None = None, **changes: Any) -> TorchRunner:
    made: dict[str, Any] = {"model": lambda: OnlyInFp32(3, 2), "train_data": data, "val_data": data} | changes
    return TorchRunner(Task(**made), open_device("cpu"), memory_limit_bytes=limit, checkpoints=folder)


def test_an_operation_that_is_not_supported_is_no_out_of_memory_under_a_limit(tmp_path: Path) -> None:
    under_a_limit = runner(tmp_path, 256 << 20)
    try:
        for batch_size in (1, 2, 32):
            with pytest.raises(TaskError, match=REMEDY):
                under_a_limit.probe(Plan(batch_size=batch_size, precision="bf16"))
        with pytest.raises(TaskError, match=REMEDY):
            under_a_limit.time(Plan(batch_size=4, precision="bf16"), budget_s=0.1)
        assert under_a_limit.probe(Plan(batch_size=4)).outcome == "ok"
    finally:
        under_a_limit.close()


def test_the_check_tells_it_once_though_both_the_step_and_the_evaluation_fail(tmp_path: Path) -> None:
    class Never(OnlyInFp32):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(UNSUPPORTED)

    checked = runner(tmp_path, model=lambda: Never(3, 2))
    try:
        with pytest.raises(TaskError, match=REMEDY) as refused:
            checked.facts()
        assert str(refused.value).count("not support") == 1
    finally:
        checked.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_remedy_helps(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if trains_lstm_in(dtype):
        pytest.skip(f"this processor trains an LSTM in {dtype}")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # as the message says to write it
    with torch.autocast("cpu", dtype):
        nn.LSTM(4, 4)(torch.ones(2, 2, 4))[0].sum().backward()


def test_other_errors_have_no_remedy() -> None:
    assert known_remedy(RuntimeError("could not create a primitive")) is None
    assert known_remedy(ValueError("mat1 and mat2 shapes cannot be multiplied")) is None
    told = known_remedy(RuntimeError("InvalidCxxCompiler: no compiler found\n" + "more\n" * 12))
    assert told is not None
    assert re.match(r"torch\.compile needs a C\+\+ compiler .*install g\+\+", str(told))
