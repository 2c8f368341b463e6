"""The real runner keeps to the contract, on the CPU of this process and on a GPU where there is one."""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from autobatch import Task
from autobatch.core.checkpoints import checkpoint_path
from autobatch.core.plan import Config, Plan
from autobatch.core.runner import Runner
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.devices import open_device
from autobatch.errors import CheckpointError, DeviceLost, NoValidResult, StorageError, TaskError
from autobatch.tasks.data import counted_samples, load_data
from autobatch.tasks.task import accuracy, load_task
from autobatch.worker import task_session as open_task
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.trial_state import read_checkpoint

from ..helpers.contracts import RangeTestContract, RunnerContract


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


class TestRangeTestsInThisProcess(RangeTestContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Callable[[str], Runner]]:
        runners: list[TorchRunner] = []

        def opened(text: str) -> Runner:
            file = tmp_path / "model.py"
            file.write_text(text)
            runners.append(TorchRunner(load_task(file), open_device("cpu"), checkpoints=tmp_path / "checkpoints"))
            return runners[-1]

        yield opened
        for runner in runners:
            runner.close()


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


def segment(**changes: Any) -> TrainSegment:
    known: dict[str, Any] = {
        "trial": 0,
        "config": Config(plan=Plan(batch_size=8), lr=1e-2),
        "seed": 0,
        "start_step": 0,
        "until_step": 20,
        "total_steps": 20,
        "eval_batch_size": 32,
    }
    return TrainSegment(**(known | changes))


def test_a_segment_learns_and_is_scored_on_the_test_data_too(cpu: TorchRunner) -> None:
    result = cpu.advance(segment(until_step=60, total_steps=60))
    assert result.score is not None
    assert result.score > 0.6
    tested = cpu.test_score(segment(until_step=60, total_steps=60))
    assert tested is not None
    assert tested > 0.6


def test_a_segment_tells_the_norms_of_its_gradients(tmp_path: Path) -> None:
    for clip in (None, 1e-3, 1e6):
        runner = opened("cpu", tmp_path, clip_grad_norm=clip)
        norms = runner.advance(segment(until_step=60, total_steps=60)).grad_norms
        assert norms is not None
        assert 0 < norms.median <= norms.largest
        assert norms.clipped == {None: None, 1e-3: 1.0, 1e6: 0.0}[clip]
        runner.close()


def test_three_legs_equal_one_to_the_bit_with_a_schedule_and_accumulation(tmp_path: Path) -> None:
    def cosine(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)

    runner = opened("cpu", tmp_path, scheduler=cosine)
    config = Config(plan=Plan(batch_size=8, accumulation_steps=2), lr=1e-2)
    whole = runner.advance(segment(config=config, until_step=40, total_steps=40))
    for start, until in ((0, 5), (5, 20), (20, 40)):
        last = runner.advance(segment(trial=1, config=config, start_step=start, until_step=until, total_steps=40))
    assert last.score == whole.score
    one, other = (read_checkpoint(checkpoint_path(tmp_path, n, 40))["model"] for n in (0, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    runner.close()


def test_a_loss_that_blows_up_is_a_diverged_trial(tmp_path: Path) -> None:
    runner = opened("cpu", tmp_path, optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr))
    config = Config(plan=Plan(batch_size=8), lr=1e12)
    result = runner.advance(segment(config=config, until_step=60, total_steps=60))
    assert result.outcome == "diverged"
    assert "not finite" in str(result.message)
    runner.close()


@pytest.mark.parametrize("lr", [0.003, 0.005])
def test_a_loss_that_rises_and_stays_up_is_given_up_at_half_of_the_first_segment(lr: float, tmp_path: Path) -> None:
    def away(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=lr, maximize=True)

    runner = opened("cpu", tmp_path, optimizer=away)
    config = Config(plan=Plan(batch_size=8), lr=lr)
    asked = segment(config=config, until_step=200, total_steps=400, may_give_up=True)
    result = runner.advance(asked)
    assert result.outcome == "diverged"
    assert re.fullmatch(r"the loss rose from [\d.]+ to [\d.e+]+ and stayed up", str(result.message))
    # The baseline and fresh seeds are trained on: they are compared, whatever they do.
    assert runner.advance(replace(asked, may_give_up=False)).outcome == "ok"
    runner.close()


def test_a_loss_that_falls_or_wavers_is_no_reason_to_give_up(tmp_path: Path) -> None:
    runner = opened("cpu", tmp_path)
    for lr in (1e-6, 1e-2):
        config = Config(plan=Plan(batch_size=1), lr=lr)  # each batch one sample: as noisy as can be
        assert runner.advance(segment(config=config, until_step=200, total_steps=400, may_give_up=True)).outcome == "ok"
    runner.close()


def test_a_segment_gives_up_when_its_time_is_over(cpu: TorchRunner) -> None:
    result = cpu.advance(segment(until_step=10**6, total_steps=10**6, limit_s=0.2))
    assert result.outcome == "timeout"


def test_a_range_test_starts_flat_ends_high_and_touches_no_generator(cpu: TorchRunner) -> None:
    before = torch.get_rng_state()
    sweep = cpu.sweep_lr(Plan(batch_size=16), lowest=1e-7, highest=100.0, steps=60, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(sweep.lrs) == sorted(sweep.lrs)
    assert min(sweep.losses) < sweep.losses[0]
    assert sweep.diverged or sweep.losses[-1] > min(sweep.losses)


def test_a_range_test_leaves_the_rate_of_a_group_that_has_its_own_and_says_that_the_schedule_is_out(
    tmp_path: Path,
) -> None:
    seen: list[tuple[float, ...]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(tuple(group["lr"] for group in self.param_groups))
            return super().step(closure)

    def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        first, *others = model.parameters()
        groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.01}, {"params": others, "lr": 10 * lr}]
        return Watched(groups, lr=lr)

    for scheduler in (None, Table):
        runner = opened("cpu", tmp_path, optimizer=optimizer, scheduler=scheduler)
        sweep = runner.sweep_lr(Plan(batch_size=16), lowest=1e-4, highest=1e-2, steps=20, seed=0)
        runner.close()
        assert sweep.without_schedule == (scheduler is not None)
        assert [first for first, _ in seen] == 20 * [0.01]
        assert [others for _, others in seen] == pytest.approx([10 * lr for lr in sweep.lrs])
        seen.clear()


def test_a_range_test_leaves_a_group_that_a_hook_adds(tmp_path: Path) -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(model: Any, lr: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(model[-1].parameters(), lr=lr))
        return made[-1]

    def after_step(model: Any, step: int) -> None:
        if step == 2:
            made[-1].add_param_group({"params": list(model[0].parameters()), "lr": 0.5})

    runner = opened("cpu", tmp_path, optimizer=optimizer, after_step=after_step)
    try:
        swept = runner.sweep_lr(Plan(batch_size=8), lowest=1e-4, highest=1e-3, steps=6, seed=0)
    finally:
        runner.close()
    assert len(swept.losses) == 6
    assert [group["lr"] for group in made[-1].param_groups] == [pytest.approx(1e-3), 0.5]


def test_loader_compute_and_step_are_timed_apart(cpu: TorchRunner) -> None:
    timed = cpu.time(Plan(batch_size=16), budget_s=0.5)
    assert len(timed.step_s) >= 3
    assert min(len(timed.compute_s), len(timed.loader_s)) >= 1
    assert timed.samples_per_s > 0


def test_the_users_own_error_has_their_frames_and_none_of_ours(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Any) -> torch.Tensor:
        raise ValueError("the user's bug")

    runner = opened("cpu", tmp_path, loss=broken)
    with pytest.raises(TaskError, match="the user's bug") as caught:
        runner.probe(Plan(batch_size=4))
    runner.close()  # before anything is compared: this process is under a limit of memory
    assert "in broken" in str(caught.value)
    assert "autobatch/worker/" not in str(caught.value)


def test_a_live_model_is_given_back_after_every_kind_of_call(tmp_path: Path) -> None:
    living = model().eval()
    before = {name: value.clone() for name, value in living.state_dict().items()}
    live = replace(task(), model=lambda: living)
    runner = TorchRunner(live, open_device("cpu"), live=True, checkpoints=tmp_path)
    runner.probe(Plan(batch_size=4), final=True)
    runner.time(Plan(batch_size=4), budget_s=0.1)
    runner.sweep_lr(Plan(batch_size=4), lowest=1e-4, highest=1.0, steps=12, seed=0)
    torch.testing.assert_close(dict(living.state_dict()), before, rtol=0, atol=0)
    assert not living.training
    assert all(parameter.grad is None for parameter in living.parameters())
    runner.close()


# -- every kind of task goes all the way

TASKS = Path(__file__).parents[1] / "task_files"


def goes_all_the_way(made: Task, folder: Path) -> SegmentResult:
    """Every call that `tune` makes, two segments with the worker's memory in between; the last segment's result."""
    runner = TorchRunner(made, open_device("cpu"), checkpoints=folder)
    try:
        plan = Plan(batch_size=8, precision=made.precision)
        facts = runner.facts()
        assert facts.train_size is None or facts.train_size > 8
        assert runner.probe(plan, final=True).outcome == "ok"
        assert runner.time(plan, budget_s=0.05).outcome == "ok"
        assert runner.time_evaluation(16) > 0
        config = Config(plan=plan, lr=1e-3)
        runner.advance(segment(config=config, until_step=4, total_steps=12))
        last = runner.advance(segment(config=config, start_step=4, until_step=12, total_steps=12))
        if made.test_data is not None:
            assert runner.test_score(segment(config=config, until_step=12, total_steps=12)) is not None
        return last
    finally:
        runner.close()


@pytest.mark.parametrize(
    "name", ["contrastive", "custom_loader", "full", "in_code", "iterable", "lstm", "minimal", "own_step"]
)
def test_every_kind_of_task_file_goes_all_the_way(name: str, tmp_path: Path) -> None:
    last = goes_all_the_way(load_task(TASKS / f"{name}.py"), tmp_path)
    assert last.outcome == "ok", last.message


class Table:
    """A schedule computed ahead for all of its steps, without a state: as many write it."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.optimizer, self.step_count = optimizer, 0
        self.rates = [optimizer.param_groups[0]["lr"] / (1 + index) for index in range(total_steps)]
        self.step()

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[self.step_count]
        self.step_count = min(self.step_count + 1, len(self.rates) - 1)


def numpy_schedule(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / total_steps) ** 2)


def silent_step(model: nn.Module, batch: Any, scale: float) -> None:
    x, y = batch
    (nn.functional.cross_entropy(model(x), y) * scale).backward()


def own_evaluation(model: nn.Module, loader: Any) -> float:
    scores = [(model(part).argmax(1) == y).float().mean() for part, y in loader]
    if len(scores) < 2:
        raise ValueError("this score needs two batches")
    return float(torch.stack(scores).mean())


def unpaired() -> Any:
    class Unpaired(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return (data(1)[index] for index in range(96))

    return Unpaired()


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": Table},
        {"scheduler": numpy_schedule},
        {"training_step": silent_step},
        {"training_step": silent_step, "precision": "bf16"},
        {"training_step": silent_step, "precision": "fp16"},
        {"evaluate": own_evaluation},
        {"val_data": unpaired},
    ],
    ids=["stateless schedule", "numpy's numbers", "no loss", "bf16", "fp16", "evaluate", "val_data without a size"],
)
def test_every_part_that_a_task_may_bring_goes_all_the_way(changes: dict[str, Any], tmp_path: Path) -> None:
    last = goes_all_the_way(task(test_data=lambda: data(2), **changes), tmp_path)
    assert last.outcome == "ok", last.message


def test_a_task_with_its_own_step_and_evaluation_needs_no_loss_of_pairs(tmp_path: Path) -> None:
    class Named(Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            return {"x": torch.ones(256), "y": index % 3}

    def step(model: nn.Module, batch: Any, scale: float) -> Any:
        loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        (loss * scale).backward()
        return loss

    def evaluate(model: nn.Module, loader: Any) -> float:
        return float(sum((model(batch["x"]).argmax(1) == batch["y"]).sum() for batch in loader))

    made = Task(model=model, train_data=Named, val_data=Named, training_step=step, evaluate=evaluate)
    assert goes_all_the_way(made, tmp_path).outcome == "ok"


def test_a_schedule_without_a_state_goes_on_where_it_stood(tmp_path: Path) -> None:
    runner = opened("cpu", tmp_path, scheduler=Table)
    runner.advance(segment(until_step=20))
    for start, until in ((0, 7), (7, 20)):
        runner.advance(segment(trial=1, start_step=start, until_step=until))
    whole, legs = (read_checkpoint(checkpoint_path(tmp_path, number, 20)) for number in (0, 1))
    runner.close()
    torch.testing.assert_close(legs["model"], whole["model"], rtol=0, atol=0)


def test_a_range_test_without_a_loss_is_no_fault_of_the_task(tmp_path: Path) -> None:
    runner = TorchRunner(task(training_step=silent_step), open_device("cpu"), checkpoints=tmp_path)
    with pytest.raises(NoValidResult, match="let training_step return it"):
        runner.sweep_lr(Plan(batch_size=8), lowest=1e-5, highest=1.0, steps=20, seed=0)
    runner.close()


def test_a_model_kept_between_calls_is_noticed_however_it_is_kept(tmp_path: Path) -> None:
    runner = TorchRunner(task(model=functools.cache(model)), open_device("cpu"), checkpoints=tmp_path)
    runner.advance(segment())
    with pytest.raises(TaskError, match="model\\(\\) must return a new module at each call"):
        runner.advance(segment(trial=1))
    runner.close()


def test_a_split_drawn_in_the_data_functions_is_one_split(tmp_path: Path) -> None:
    def part(which: int) -> Any:
        return torch.utils.data.random_split(data(0), [64, 32])[which]

    split = task(train_data=lambda: part(0), val_data=lambda: part(1))
    seen = []
    for _ in range(2):
        torch.rand(3)  # whatever else the process draws
        parts = [load_data(split, name).indices for name in ("train_data", "val_data")]
        assert sorted(parts[0] + parts[1]) == list(range(96))
        seen.append(parts)
    assert seen[0] == seen[1]


def test_the_data_functions_run_once_in_a_process(tmp_path: Path) -> None:
    calls = []

    def counted() -> TensorDataset:
        calls.append("train")
        return data(0)

    runner = TorchRunner(task(train_data=counted), open_device("cpu"), checkpoints=tmp_path)
    runner.facts()
    runner.probe(Plan(batch_size=4), final=True)
    runner.close()
    assert calls == ["train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data": lambda: []}, "must give at least one sample"),
        ({"model": lambda: {"net": model()}}, r"must return a torch\.nn\.Module; it returned a dict"),
        ({"loss": lambda model, batch: 1 / 0}, "a forward pass.*ZeroDivisionError"),
    ],
)
def test_what_cannot_run_forward_is_told_as_such(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    runner = TorchRunner(task(**changes), open_device("cpu"), mode="inference", checkpoints=tmp_path)

    def probed() -> None:
        runner.facts()
        runner.probe(Plan(batch_size=4))

    with pytest.raises(TaskError, match=f"(?s){message}"):
        probed()
    runner.close()


class Stream(IterableDataset[Any]):
    """Each of its workers would give all of it."""

    def __iter__(self) -> Iterator[Any]:
        return iter(data(0))


def test_nobody_is_told_to_have_a_stream_read_by_more_workers(tmp_path: Path) -> None:
    runner = opened("cpu", tmp_path, train_data=Stream)
    assert runner.facts().loader is None
    runner.close()


def test_training_data_without_a_size_is_counted_where_that_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = task(train_loader=lambda batch_size, seed: iter(lambda: torch.zeros(batch_size, 2), None))
    finite = task(train_loader=lambda batch_size, seed: iter([torch.zeros(batch_size, 2)] * 50))
    monkeypatch.setattr("autobatch.tasks.data._COUNTING_S", 0.1)
    assert counted_samples(endless, None) is None
    monkeypatch.setattr("autobatch.tasks.data._COUNTING_S", 600.0)  # as long as it takes
    assert counted_samples(finite, None) == 50


def test_a_segment_whose_evaluation_ends_the_process_can_be_run_again(tmp_path: Path) -> None:
    falls = [False]

    def metric(model: nn.Module, batch: Any) -> torch.Tensor:
        if falls[0]:
            raise KeyboardInterrupt  # as a crash does: nothing after it runs
        return accuracy(model, batch)

    runner = opened("cpu", tmp_path, metric=metric)
    runner.advance(segment(until_step=5))
    falls[0] = True
    with pytest.raises(KeyboardInterrupt):
        runner.advance(segment(start_step=5, until_step=20))
    falls[0] = False
    again = runner.advance(segment(start_step=5, until_step=20))
    runner.advance(segment(trial=1))
    runner.forget(0)
    runner.close()
    assert again.outcome == "ok"
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_path(tmp_path, 1, 20).name]


def test_a_checkpoint_that_is_not_whole_or_of_another_schedule_is_refused(tmp_path: Path) -> None:
    runner = opened("cpu", tmp_path)
    runner.advance(segment(until_step=5))
    with pytest.raises(CheckpointError, match=r"is of step 5 of 20, not of 5 of 40"):
        runner.advance(segment(start_step=5, total_steps=40))
    path = checkpoint_path(tmp_path, 0, 5)
    for spoiled in (path.read_bytes()[:-100], b"", b"no checkpoint at all"):
        path.write_bytes(spoiled)
        with pytest.raises(CheckpointError, match="cannot be read"):
            runner.advance(segment(start_step=5))
    runner.close()


@pytest.mark.parametrize("over", [False, True])
def test_no_room_for_a_checkpoint_is_an_error_of_the_storage(
    over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened("cpu", tmp_path)
    runner.advance(segment(until_step=5))
    kept = sorted(tmp_path.iterdir())
    save = torch.save

    def full(state: object, file: IO[bytes]) -> None:
        save(state, file)
        refusal = OSError(errno.ENOSPC, "No space left on device")
        if not over:
            raise refusal
        try:
            raise refusal
        except OSError:  # what torch makes of it
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598") from None

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            runner.advance(segment(start_step=5))
    assert sorted(tmp_path.iterdir()) == kept
    assert runner.advance(segment(start_step=5)).outcome == "ok"
    runner.close()


class Counts:
    """A loss that notes the size of every batch it sees in training."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        if model.training:
            self.sizes.append(len(x))
        return nn.functional.cross_entropy(model(x), y)


def probed(plan: Plan, final: bool, **changes: Any) -> tuple[list[int], Any]:
    counts = Counts()
    runner = TorchRunner(task(loss=counts), open_device("cpu"), **changes)
    try:
        probe = runner.probe(plan, final=final)
    finally:
        runner.close()
    return counts.sizes, probe


def test_a_probe_runs_whole_steps_and_the_short_last_batch_of_an_epoch() -> None:
    # 96 samples: the last batch of an epoch has 96 mod 36 = 24.
    assert probed(Plan(batch_size=36), False)[0] == [36, 24, 36]
    assert probed(Plan(batch_size=36), True)[0] == [36, 36, 36, 24, 36]
    assert probed(Plan(batch_size=36, accumulation_steps=2), False)[0] == [36, 36, 24, 24, 36, 36]


def test_a_loss_that_cannot_take_the_short_last_batch_has_none() -> None:
    class AtLeastTen(Counts):
        def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
            loss = super().__call__(model, batch)
            if len(batch[0]) < 10:
                raise ValueError("ten are needed")
            return loss

    counts = AtLeastTen()
    runner = TorchRunner(task(loss=counts, val_data=lambda: data(1)), open_device("cpu"))
    try:
        assert runner.probe(Plan(batch_size=90)).outcome == "ok"  # 96 mod 90 = 6
    finally:
        runner.close()
    assert counts.sizes == [90, 6, 90]


def test_no_more_is_evaluated_than_there_is() -> None:
    seen: list[int] = []

    def metric(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(len(batch[0]))
        scores: torch.Tensor = model(batch[0]).mean(dim=1)
        return scores

    few = TensorDataset(torch.randn(20, 256), torch.zeros(20, dtype=torch.long))
    runner = TorchRunner(task(metric=metric, val_data=lambda: few), open_device("cpu"))
    try:
        runner.probe(Plan(batch_size=64))
        runner.probe(Plan(batch_size=12))
    finally:
        runner.close()
    assert seen == [20, 12]


def test_a_probe_in_fp16_has_the_optimizers_state_though_every_step_overflows() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        huge: torch.Tensor = model(batch[0]).sum() * 1e35  # times the scaler's 65,536 it is infinite
        return huge

    runner = TorchRunner(task(loss=loss, precision="fp16"), open_device("cpu"))
    try:
        runner.probe(Plan(batch_size=8, precision="fp16"), final=True)
        assert runner._bench is not None
        assert runner._bench.scaler is not None
        assert runner._bench.scaler.get_scale() < 65536  # steps were skipped
        assert len(runner._bench.optimizer.state) == len(list(runner._bench.model.parameters()))
    finally:
        runner.close()


def test_a_stream_that_was_gone_through_for_its_largest_sample_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(data(0))

    monkeypatch.setattr("autobatch.tasks.data._COUNTING_S", -1.0)  # counting alone would have had no time for it
    runner = TorchRunner(task(train_data=Stream), open_device("cpu"))
    try:
        assert runner.facts().train_size == 96
    finally:
        runner.close()


def test_a_final_probe_can_train_on_real_batches_too() -> None:
    sizes, probe = probed(Plan(batch_size=36), True, soak_steps=5)
    assert sizes == [36, 36, 36, 24, 36] + [36] * 5
    assert probe.outcome == "ok"
    assert probed(Plan(batch_size=36), False, soak_steps=5)[0] == [36, 24, 36]


def test_real_batches_are_what_the_data_gives() -> None:
    seen: list[torch.Tensor] = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(batch[1])
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    runner = TorchRunner(task(loss=loss), open_device("cpu"), soak_steps=8)
    runner.probe(Plan(batch_size=12), final=True)
    runner.close()
    real = torch.cat(seen[-8:])
    assert sorted(real.tolist()) == sorted((torch.arange(96) % 3).tolist())  # an epoch of 8 batches, shuffled
    assert not torch.equal(real, torch.arange(96) % 3)


def test_a_step_that_leaves_the_device_unusable_says_that_it_needs_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner = opened("cpu", tmp_path, loss=loss)
    with pytest.raises(
        DeviceLost, match=r"illegal memory access(.|\n)*no longer: run such steps in a process of their own"
    ):
        runner.probe(Plan(batch_size=4))

    @contextmanager
    def nothing_can_be_put_back() -> Iterator[None]:
        yield
        raise AssertionError("not reached: the body raises")

    @contextmanager
    def that_fails_too() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for broken in (nothing_can_be_put_back, that_fails_too):
        monkeypatch.setattr(open_task, "preserve_generators", broken)
        with pytest.raises(DeviceLost, match="no longer: run such steps"):
            runner.probe(Plan(batch_size=4))
    monkeypatch.undo()
    runner.close()
