"""A real GPU's speed, energy and precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autobatch.bench import verbs
from autobatch.bench.standard_models import standard_models
from autobatch.core.compute_mode import parse_compute_modes
from autobatch.devices import open_device
from autobatch.worker.energy import energy_of
from autobatch.worker.flops import matmul_flops_per_s

pytestmark = pytest.mark.gpu


def test_tensor_cores_are_faster_and_bf16_more_so() -> None:
    device = open_device("cuda")
    plain = matmul_flops_per_s(device, "fp32", 0.5)
    half = matmul_flops_per_s(device, "bf16", 0.5)
    assert half > 1.5 * plain
    assert plain > 1e11


def test_energy_is_that_of_the_power_drawn() -> None:
    device = open_device("cuda")
    if device.joules() is None:
        pytest.skip("NVML counts no energy here")
    matrix = torch.randn(4096, 4096, device="cuda")
    found = energy_of(lambda: matrix @ matrix, device, call_s=0.01, budget_s=3.0)
    assert found is not None
    limit_w = device.info().power_limit_w
    assert found.watts > 20
    assert limit_w is None or found.watts < 1.3 * limit_w


def test_precisions_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOBATCH_BENCH_SIZE", "small")
    compute_modes = parse_compute_modes(["fp32", "tf32", "bf16", "fp16", "bf16+channels_last"])
    path = standard_models()["resnet50"]
    found = verbs.profile_compute_modes(path, compute_modes, budget="10s", device="cuda", max_batch_size=256)
    assert [one.message for one in found] == [None] * 5
    for one in found:
        assert one.curve is not None
        assert one.curve.timed[-1].phases_s["forward"] > 0


def test_a_quick_bench_of_one_model_is_whole(tmp_path: Path) -> None:
    report, path = verbs.bench(
        ["mlp"], quick=True, device="cuda", memory_limit="2GiB", precisions=["fp32"], output=tmp_path / "r.json"
    )
    assert path.is_file()
    cell = report.cells[0]
    assert cell.outcome == "ok", cell.message
    assert cell.matmul_flops_per_s
    assert cell.flops_per_s
    assert cell.flops_per_s < 2 * cell.matmul_flops_per_s
