"""A step that did not run is no step, also where the user's code has caught the error that ended it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobatch import Task
from autobatch.core.plan import Config, Plan, Precision
from autobatch.core.segment import TrainSegment
from autobatch.devices.cpu import CpuDevice
from autobatch.errors import TaskError
from autobatch.worker.check import check_task
from autobatch.worker.swallowed import GradientWatch
from autobatch.worker.torch_runner import TorchRunner

FITS = 16  # samples; of more, "memory runs out"


def refuse(size: int) -> None:
    if size > FITS:
        raise RuntimeError("no room")  # in words that nobody knows: what is looked at is the gradients


def blobs(seed: int = 0, count: int = 96) -> TensorDataset:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def loss_of(model: Any, batch: Any) -> Tensor:
    x, y = batch
    hidden = model[0](x)
    # In the middle of the backward pass: the last layer has its gradient, the first one has not.
    hidden.register_hook(lambda gradient: refuse(len(x)))
    return nn.functional.cross_entropy(model[2](model[1](hidden)), y)


def skips(model: nn.Module, batch: Any, scale: float) -> Tensor | None:
    try:
        refuse(len(batch[0]))
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        (loss * scale).backward()
        return loss.detach()
    except RuntimeError:
        model.zero_grad()
        return None


def forgets(model: nn.Module, batch: Any, scale: float) -> Tensor | None:
    """The same, but what the backward pass has left stays."""
    try:
        loss = loss_of(model, batch)
        (loss * scale).backward()
        return loss.detach()
    except RuntimeError:
        return None


def constant(model: nn.Module, batch: Any) -> Tensor:
    try:
        refuse(len(batch[0]))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])
    except RuntimeError:
        return torch.zeros((), requires_grad=True)


def of_eights(model: nn.Module, batch: Any, scale: float) -> Tensor | None:
    if len(batch[0]) % 8:
        raise ValueError("groups of eight")
    return skips(model, batch, scale)


def opened(folder: Path, device: CpuDevice | None = None, **changes: Any) -> TorchRunner:
    known = {"model": net, "train_data": blobs, "val_data": lambda: blobs(1)}
    return TorchRunner(Task(**(known | changes)), device or CpuDevice(), checkpoints=folder)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"training_step": skips}, r"training_step\(model, batch, scale\)"),
        ({"training_step": forgets}, r"training_step\(model, batch, scale\)"),
        ({"training_step": of_eights}, r"training_step\(model, batch, scale\)"),
        ({"loss": constant}, r"loss\(model, batch\)"),
    ],
    ids=["skips", "forgets", "of eights", "constant loss"],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_probe_whose_step_left_no_gradient_did_not_run(
    tmp_path: Path, changes: dict[str, Any], who: str, steps: int, final: bool
) -> None:
    runner = opened(tmp_path, **changes)
    try:
        for size, outcome in ((8, "ok"), (24, "oom"), (16, "ok"), (32, "oom")):
            probe = runner.probe(Plan(batch_size=size, accumulation_steps=steps), final=final)
            assert probe.outcome == outcome, size
            assert (probe.message is None) == (outcome == "ok")
    finally:
        runner.close()
    with pytest.raises(AssertionError, match=rf"a step on 32 samples left no gradient.*{who} did not run to its end"):
        raise AssertionError(probe.message)


def test_in_fp16_a_step_without_a_gradient_is_none_either(tmp_path: Path) -> None:
    precision: Precision = "fp16"
    runner = opened(tmp_path, training_step=skips, precision=precision)
    outcomes = [runner.probe(Plan(batch_size=size, precision=precision)).outcome for size in (8, 24)]
    runner.close()
    assert outcomes == ["ok", "oom"]


class Second:
    """Of the micro-batches of a step the second one does not fit: what they share has grown by then."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Any, scale: float) -> Tensor | None:
        self.calls += len(batch[0]) > FITS
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if len(batch[0]) > FITS and self.calls % 2 == 0:
            return None
        (loss * scale).backward()
        return loss.detach()


def test_each_micro_batch_must_leave_its_gradient(tmp_path: Path) -> None:
    runner = opened(tmp_path, training_step=Second())
    outcomes = [runner.probe(Plan(batch_size=size, accumulation_steps=2)).outcome for size in (8, 24)]
    runner.close()
    assert outcomes == ["ok", "oom"]


class InTurn:
    """An adversarial training: one part at four steps of five, the other at the fifth."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Any, batch: Any, scale: float) -> Tensor | None:
        self.calls += 1
        hidden = model[0](batch[0])
        loss: Tensor = hidden.square().mean() if self.calls % 5 else model[2](hidden.detach()).square().mean()
        (loss * scale).backward()
        return loss.detach()


class NowAndThen(InTurn):
    """One step of three is of something else, which the optimizer does not see."""

    def __call__(self, model: Any, batch: Any, scale: float) -> Tensor | None:
        self.calls += 1
        return None if self.calls % 3 == 0 else skips(model, batch, scale)


@pytest.mark.parametrize("step", [InTurn, NowAndThen])
def test_a_task_that_trains_in_turn_runs_at_every_size(tmp_path: Path, step: Any) -> None:
    runner = opened(tmp_path, training_step=step())
    for size in (2, 8, 16):
        assert runner.probe(Plan(batch_size=size), final=True).outcome == "ok"
        assert runner.time(Plan(batch_size=size), budget_s=0.05).outcome == "ok"
    assert runner.advance(segment(16, 12)).outcome == "ok"
    runner.close()


def segment(size: int, until: int, start: int = 0, total: int | None = None) -> TrainSegment:
    return TrainSegment(
        trial=0,
        config=Config(plan=Plan(batch_size=size), lr=1e-2),
        seed=0,
        start_step=start,
        until_step=until,
        total_steps=total or until,
        eval_batch_size=8,
    )


class Draws:
    """Most steps are of something that the model does not hold, and all of them draw."""

    def __init__(self, log: Path) -> None:
        self.log = log  # a file, since what the object itself holds is of one trial and is put back
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Any, scale: float) -> Tensor | None:
        self.calls += 1
        with self.log.open("a") as log:
            log.write(f"{float(torch.rand(()))!r}\n")
        return skips(model, batch, scale) if self.calls % 3 == 0 else None

    def draws(self) -> list[float]:
        return [float(line) for line in self.log.read_text().splitlines()]


def test_a_look_at_what_was_skipped_leaves_the_trial_its_own_draws(tmp_path: Path) -> None:
    drawn = []
    for cuts in ([12], [6, 12]):
        step = Draws(tmp_path / f"draws-{len(cuts)}")
        runner = opened(tmp_path, training_step=step)
        start = 0
        for until in cuts:
            assert runner.advance(segment(8, until, start, 12)).outcome == "ok"
            start = until
        runner.close()
        drawn.append(step.draws())
    whole, cut = drawn
    # Of the one the look is at its end, of the other between its legs.
    assert whole[:6] == cut[:6]
    assert whole[6:12] == cut[-6:]


@pytest.mark.parametrize("changes", [{"training_step": skips}, {"loss": constant}])
def test_a_timing_and_a_trial_of_steps_that_did_not_run_are_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    runner = opened(tmp_path, **changes)
    assert runner.time(Plan(batch_size=8), budget_s=0.05).outcome == "ok"
    timed = runner.time(Plan(batch_size=24), budget_s=0.05)
    assert timed.outcome == "oom"
    assert "a step on 24 samples left no gradient" in (timed.message or "")
    assert runner.advance(segment(8, 10)).outcome == "ok"
    done = runner.advance(segment(24, 10))
    assert done.outcome == "oom"
    assert (done.message or "").startswith("10 of 10 steps left no gradient")
    runner.close()


def test_a_trial_may_skip_a_batch_for_reasons_of_its_own(tmp_path: Path) -> None:
    def training_step(model: nn.Module, batch: Any, scale: float) -> Tensor | None:
        return skips(model, batch, scale) if bool(batch[1].float().mean() > 0.4) else None

    runner = opened(tmp_path, training_step=training_step)
    assert runner.advance(segment(8, 12)).outcome == "ok"
    runner.close()


class Counter:
    """What an allocator that counts, as CUDA's does, has refused."""

    count = 0

    def device(self) -> CpuDevice:
        device = CpuDevice()
        vars(device)["refusals"] = lambda: self.count
        return device


def counting(device: Counter, of: Any) -> Any:
    """A training step that leaves its gradients, in a way that needs less where memory is refused."""

    def training_step(model: nn.Module, batch: Any, scale: float) -> Tensor:
        device.count += of(len(batch[0]))
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        (loss * scale).backward()
        return loss.detach()

    return training_step


def test_a_probe_in_which_memory_was_refused_did_not_run(tmp_path: Path) -> None:
    device = Counter()
    runner = opened(tmp_path, device.device(), training_step=counting(device, lambda size: size > FITS))
    probes = [runner.probe(Plan(batch_size=size)) for size in (8, 24, 16)]
    assert [probe.outcome for probe in probes] == ["ok", "oom", "ok"]
    assert "the allocator refused memory to a training step at batch size 24, which went on" in str(probes[1].message)
    assert runner.time(Plan(batch_size=24), budget_s=0.05).outcome == "oom"
    runner.close()


def test_what_a_library_is_refused_once_for_a_shape_is_not_the_tasks(tmp_path: Path) -> None:
    device, seen = Counter(), set[int]()

    def first_of(size: int) -> bool:
        is_first = size not in seen
        seen.add(size)
        return is_first

    runner = opened(tmp_path, device.device(), training_step=counting(device, first_of))
    assert [runner.probe(Plan(batch_size=size)).outcome for size in (8, 24)] == ["ok", "ok"]
    assert runner.time(Plan(batch_size=40), budget_s=0.05).outcome == "ok"
    assert runner.advance(segment(48, 10)).outcome == "ok"
    runner.close()


def test_a_trial_with_few_skipped_steps_ran_out_of_memory_where_the_device_says_so(tmp_path: Path) -> None:
    device, calls = Counter(), [0]

    def training_step(model: nn.Module, batch: Any, scale: float) -> Tensor | None:
        calls[0] += 1
        if len(batch[0]) > FITS and calls[0] % 10 == 0:
            device.count += 1
            return None
        return skips(model, (batch[0][:4], batch[1][:4]), scale)

    runner = opened(tmp_path, device.device(), training_step=training_step)
    done = runner.advance(segment(24, 30))
    runner.close()
    assert done.outcome == "oom"
    assert "3 of 30 steps left no gradient" in (done.message or "")


def test_the_check_names_a_caught_error_as_a_reason() -> None:
    def nothing(model: nn.Module, batch: Any, scale: float) -> None:
        return None

    task = Task(model=net, train_data=blobs, val_data=blobs, training_step=nothing)
    with pytest.raises(TaskError, match=r"training_step.* gives no parameter .* catch an error, such as too little"):
        check_task(task, torch.device("cpu"), 8)


def test_a_watch_tells_the_parameters_that_each_micro_batch_reached() -> None:
    model: Any = net()
    watch = GradientWatch(model)
    x = torch.randn(3, 4)
    with watch.exactly():
        watch.begin()
        model(x).sum().backward()
        watch.see()
        assert watch.left == {0, 1, 2, 3}
        model[2](torch.randn(3, 8)).sum().backward()  # the first layer's gradient stands, and is not of this one
        watch.see()
        watch.end()
    assert watch.left == {2, 3}
    assert (watch.missed, watch.taken) == (0, 1)
    with watch.exactly():
        watch.begin()
        watch.see()  # what is there is of the step before
        watch.end()
    assert (watch.left, watch.missed, watch.taken) == (frozenset(), 1, 2)
