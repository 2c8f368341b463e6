"""The real runner keeps to the contract, on the CPU of this process and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autobatch import Task
from autobatch.devices import open_device
from autobatch.errors import TaskError
from autobatch.plan import Config, Plan, Rung
from autobatch.torch_runner import TorchRunner, relative_spread

from .contracts import RunnerContract


def data(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(96) % 3
    return TensorDataset(torch.randn(96, 256, generator=generator) + y[:, None], y)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {"model": model, "train_data": lambda: data(0), "val_data": lambda: data(1)}
    return Task(**(fields | changes))


def opened(device: str, folder: Path, **changes: Any) -> TorchRunner:
    made = task(test_data=lambda: data(2), **changes)
    return TorchRunner(made, open_device(device), memory_limit_bytes=48 << 20, headroom=0.0, checkpoints=folder)


class TorchContract(RunnerContract):
    device: str

    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[TorchRunner]:
        runner = opened(self.device, tmp_path)
        yield runner
        runner.close()

    def huge_plan(self) -> Plan:
        return Plan(batch_size=1 << 17)  # 128 MiB of inputs


class TestOnTheCpu(TorchContract):
    device = "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device is here")
class TestOnAGpu(TorchContract):
    device = "cuda"
    # Kernels that add in no fixed order (cuBLAS split-K, atomics) may change the last bits from run to run.
    resumes_exactly = False


@pytest.fixture
def cpu(tmp_path: Path) -> Iterator[TorchRunner]:
    runner = opened("cpu", tmp_path)
    yield runner
    runner.close()


def rung(**changes: Any) -> Rung:
    known: dict[str, Any] = {
        "trial": 0,
        "config": Config(plan=Plan(batch_size=8), lr=1e-2),
        "seed": 0,
        "start_step": 0,
        "until_step": 20,
        "total_steps": 20,
        "eval_batch_size": 32,
    }
    return Rung(**(known | changes))


def test_a_rung_learns_and_is_scored_on_the_test_data_too(cpu: TorchRunner) -> None:
    result = cpu.advance(rung(until_step=60, total_steps=60))
    assert result.score is not None
    assert result.first_loss is not None
    assert result.last_loss is not None
    assert result.score > 0.6
    assert result.last_loss < result.first_loss
    tested = cpu.test_score(rung(until_step=60, total_steps=60))
    assert tested is not None
    assert tested > 0.6


def test_three_legs_equal_one_to_the_bit_with_a_schedule_and_accumulation(tmp_path: Path) -> None:
    def cosine(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)

    runner = opened("cpu", tmp_path, scheduler=cosine)
    config = Config(plan=Plan(batch_size=8, accumulation_steps=2), lr=1e-2)
    whole = runner.advance(rung(config=config, until_step=40, total_steps=40))
    for start, until in ((0, 5), (5, 20), (20, 40)):
        last = runner.advance(rung(trial=1, config=config, start_step=start, until_step=until, total_steps=40))
    assert last.score == whole.score
    one, other = (torch.load(tmp_path / f"trial-{n:05d}.pt", weights_only=True)["model"] for n in (0, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    runner.close()


def test_a_loss_that_blows_up_is_a_diverged_trial(tmp_path: Path) -> None:
    runner = opened("cpu", tmp_path, optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr))
    config = Config(plan=Plan(batch_size=8), lr=1e12)
    result = runner.advance(rung(config=config, until_step=60, total_steps=60))
    assert result.outcome == "diverged"
    assert "not finite" in str(result.message)
    runner.close()


def test_a_rung_gives_up_when_its_time_is_over(cpu: TorchRunner) -> None:
    result = cpu.advance(rung(until_step=10**6, total_steps=10**6, limit_s=0.2))
    assert result.outcome == "timeout"


def test_a_range_test_starts_flat_ends_high_and_touches_no_generator(cpu: TorchRunner) -> None:
    before = torch.get_rng_state()
    sweep = cpu.sweep_lr(Plan(batch_size=16), lowest=1e-7, highest=100.0, steps=60, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(sweep.lrs) == sorted(sweep.lrs)
    assert min(sweep.losses) < sweep.losses[0]
    assert sweep.diverged or sweep.losses[-1] > min(sweep.losses)


def test_loader_compute_and_step_are_timed_apart(cpu: TorchRunner) -> None:
    timed = cpu.time(Plan(batch_size=16), budget_s=0.5)
    assert min(len(timed.step_s), len(timed.compute_s), len(timed.loader_s)) >= 3
    assert timed.samples_per_s > 0


def test_the_users_own_error_has_their_frames_and_none_of_ours(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Any) -> torch.Tensor:
        raise ValueError("the user's bug")

    runner = opened("cpu", tmp_path, loss=broken)
    with pytest.raises(TaskError, match="the user's bug") as caught:
        runner.probe(Plan(batch_size=4))
    runner.close()  # before anything is compared: this process is under a limit of memory
    assert "in broken" in str(caught.value)
    assert "autobatch/torch_runner.py" not in str(caught.value)


def test_a_live_model_is_given_back_after_every_kind_of_call(tmp_path: Path) -> None:
    living = model().eval()
    before = {name: value.clone() for name, value in living.state_dict().items()}
    live = replace(task(), model=lambda: living)
    runner = TorchRunner(live, open_device("cpu"), live=True, checkpoints=tmp_path)
    runner.probe(Plan(batch_size=4), verdict=True)
    runner.time(Plan(batch_size=4), budget_s=0.1)
    runner.sweep_lr(Plan(batch_size=4), lowest=1e-4, highest=1.0, steps=12, seed=0)
    torch.testing.assert_close(dict(living.state_dict()), before, rtol=0, atol=0)
    assert not living.training
    assert all(parameter.grad is None for parameter in living.parameters())
    runner.close()


def test_the_interval_of_a_median_narrows_with_repeats_and_is_unknown_for_few() -> None:
    assert relative_spread([1.0] * 5) == float("inf")
    assert relative_spread([1.0] * 6) == 0.0
    values = [1 + 0.1 * ((7 * i) % 10) / 10 for i in range(100)]
    assert relative_spread(values) < relative_spread(values[:10])
