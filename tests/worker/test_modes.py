"""Optimizers that keep other weights to train than to judge: each is in the model when it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobatch import Plan, Task, find_max_batch
from autobatch.core.checkpoints import checkpoint_path
from autobatch.core.plan import Config
from autobatch.core.segment import TrainSegment
from autobatch.devices import open_device
from autobatch.worker.check import check_task
from autobatch.worker.modes import judged, to_train
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.trial_state import read_checkpoint, restore_trainer

PLAN = Plan(batch_size=8)


def blobs(seed: int = 0) -> TensorDataset:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


class Averaging(torch.optim.SGD):
    """As schedule-free ones: trains at one point, is judged at the mean of all so far, and refuses a step there."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.param_groups[0]["training"] = False

    def _swap(self, training: bool) -> None:
        group = self.param_groups[0]
        if group["training"] == training:
            return
        group["training"] = training
        for parameter in group["params"]:
            if "other" in self.state[parameter]:
                held = parameter.detach().clone()
                parameter.data.copy_(self.state[parameter]["other"])
                self.state[parameter]["other"] = held

    def train(self) -> None:
        self._swap(True)

    def eval(self) -> None:
        self._swap(False)

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["training"], "a step in the mode to judge"
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["count"] = state.get("count", 0) + 1
            mean = state.setdefault("other", torch.zeros_like(parameter))
            mean.add_((parameter.detach() - mean) / state["count"])


class Says(torch.optim.SGD):
    """The optimizer of `free.py`, with its mode in a plain attribute."""

    mode = "eval"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    def step(self, closure: Any = None) -> Any:
        assert self.mode == "train"
        return super().step(closure)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def task(optimizer: Any, **changes: Any) -> Task:
    made: dict[str, Any] = {"model": model, "train_data": blobs, "val_data": lambda: blobs(1), "clip_grad_norm": 1.0}
    return Task(**(made | {"optimizer": lambda model, lr: optimizer(model.parameters(), lr)} | changes))


def segment(start: int, until: int) -> TrainSegment:
    config = Config(plan=PLAN, lr=0.5)
    return TrainSegment(
        trial=0, config=config, seed=1, start_step=start, until_step=until, total_steps=9, eval_batch_size=64
    )


@pytest.mark.parametrize("optimizer", [Averaging, Says])
def test_each_command_steps_in_one_mode_and_judges_in_the_other(optimizer: Any, tmp_path: Path) -> None:
    scheduled = task(optimizer, scheduler=lambda made, total: torch.optim.lr_scheduler.StepLR(made, 3))
    runner = TorchRunner(scheduled, open_device("cpu"), checkpoints=tmp_path)
    assert runner.facts().warnings == ()
    assert runner.probe(PLAN, final=True).outcome == "ok"
    assert runner.time(PLAN, budget_s=0.1).step_s
    assert runner.sweep_lr(PLAN, lowest=1e-4, highest=1e-2, steps=6, seed=0).losses
    assert runner.time_evaluation(16) > 0
    assert runner.advance(segment(0, 3)).outcome == "ok"
    assert runner.advance(segment(3, 9)).outcome == "ok"
    runner.close()


def test_the_weights_to_judge_are_scored_and_saved_and_those_to_train_go_on(tmp_path: Path) -> None:
    def weight(made: nn.Module) -> Tensor:
        return next(made.parameters()).detach().clone()

    scored: list[Tensor] = []

    def evaluate(made: nn.Module, loader: Any) -> float:
        scored.append(weight(made))
        return 0.0

    runner = TorchRunner(task(Averaging, evaluate=evaluate), open_device("cpu"), checkpoints=tmp_path)
    for start, until in ((0, 2), (2, 5), (5, 9)):
        assert runner.advance(segment(start, until)).outcome == "ok"
    whole = TorchRunner(task(Averaging, evaluate=evaluate), open_device("cpu"), checkpoints=tmp_path / "whole")
    assert whole.advance(segment(0, 9)).outcome == "ok"
    assert torch.equal(scored[-1], scored[-2])  # swapped back and forth without rounding: equal to the bit
    state = read_checkpoint(checkpoint_path(tmp_path, 0, 9))
    assert torch.equal(state["model"]["0.weight"], scored[-1])
    trainer = runner._trainer(segment(0, 9).config, seed=1, total_steps=9)
    restore_trainer(trainer, state)
    assert not torch.equal(weight(trainer.model), scored[-1])  # those to train
    runner.close()
    whole.close()


def test_the_check_steps_in_the_mode_to_train() -> None:
    assert check_task(task(Says), torch.device("cpu"), 8).warnings == ()


def test_a_live_model_is_probed_with_such_an_optimizer_and_comes_back() -> None:
    live = model()
    before = {name: value.clone() for name, value in live.state_dict().items()}
    assert find_max_batch(live, data=blobs(), optimizer=Averaging, isolate=False, device="cpu", max_batch_size=16) == 16
    torch.testing.assert_close(dict(live.state_dict()), before, rtol=0, atol=0)


def test_an_optimizer_without_modes_or_with_one_of_the_two_is_left_alone() -> None:
    class Half:
        def train(self) -> None:
            raise AssertionError("this is not a mode")

    for optimizer in (Half(), torch.optim.SGD(model().parameters(), 0.1)):
        to_train(optimizer)
        with judged(optimizer):
            pass
