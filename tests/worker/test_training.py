"""The optimizer step, and a trial that is paused and resumed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from autobatch import Plan, Task
from autobatch.core.plan import Config
from autobatch.core.segment import GradNorms
from autobatch.errors import TaskError
from autobatch.tasks.data import training_batches, val_loader
from autobatch.worker.norm_watch import NormWatch
from autobatch.worker.training import NORM_EVERY, Trainer
from autobatch.worker.trial_state import read_checkpoint, restore_trainer, save_trainer

from ..helpers.transformers_like import CausalLMOutputWithPast, Language, Output, sentences

CPU = torch.device("cpu")


def blobs(seed: int = 0, size: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(size) % 3
    x = torch.randn(size, 5, generator=generator) + 2 * y[:, None]
    return TensorDataset(x, y)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


class Average:
    """An exponential moving average of the weights, as users write one."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, step: int) -> None:
        for name, value in model.state_dict().items():
            self.weights[name] = 0.9 * self.weights.get(name, value.clone()) + 0.1 * value

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.weights = state


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {"model": plain, "train_data": blobs, "val_data": lambda: blobs(1)}
    return Task(**(fields | changes))


def trainer(task: Task, plan: Plan, *, lr: float = 0.05, seed: int = 3, total_steps: int = 12) -> Trainer:
    return Trainer(task, Config(plan=plan, lr=lr), CPU, seed=seed, total_steps=total_steps)


def batches(task: Task, plan: Plan, *, seed: int = 3, start_step: int = 0) -> Iterator[Any]:
    return training_batches(task, blobs(), plan, seed=seed, start_step=start_step)


def run(task: Task, plan: Plan, steps: int, **kwargs: Any) -> tuple[Trainer, list[float]]:
    trained = trainer(task, plan, **kwargs)
    stream = batches(task, plan)
    return trained, [float(trained.step(stream)) for _ in range(steps)]  # type: ignore[arg-type]


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([value.double().flatten() for value in trainer.model.state_dict().values()])


def cosine(optimizer: Any, total_steps: int) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_accumulated_micro_batches_take_the_step_of_the_whole_batch(optimizer: Any, clip: float | None) -> None:
    made = task(optimizer=lambda model, lr: optimizer(model.parameters(), lr=lr), clip_grad_norm=clip)
    whole, losses = run(made, Plan(batch_size=16), 4)
    split, split_losses = run(made, Plan(batch_size=4, accumulation_steps=4), 4)
    torch.testing.assert_close(weights(split), weights(whole), rtol=1e-5, atol=1e-6)
    assert split_losses == pytest.approx(losses, rel=1e-5)


def test_all_micro_batches_of_a_step_are_handed_over_before_the_first_is_trained_on() -> None:
    seen: list[int] = []

    def ready(batches: list[Any]) -> Iterator[Any]:
        seen.append(len(batches))
        counts = [int((y == 0).sum()) for _, y in batches]
        return ((x, y, counts[at] / max(1, sum(counts))) for at, (x, y) in enumerate(batches))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y, share = batch  # of the samples of class 0 in the whole step
        zeros = y == 0
        scores: Tensor = model(x)
        return nn.functional.cross_entropy(scores[zeros], y[zeros]) * share * 4 if zeros.any() else 0 * scores.sum()

    def whole(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x)[y == 0], y[y == 0])

    split, losses = run(task(before_step=ready, loss=loss), Plan(batch_size=4, accumulation_steps=4), 3)
    together, whole_losses = run(task(loss=whole), Plan(batch_size=16), 3)
    assert seen == [4, 4, 4]
    assert losses == pytest.approx(whole_losses, rel=1e-5)
    torch.testing.assert_close(weights(split), weights(together), rtol=1e-5, atol=1e-6)


def test_before_step_returns_as_many_micro_batches_as_it_is_handed() -> None:
    made = task(before_step=lambda batches: batches[:1])
    with pytest.raises(TaskError, match=r"before_step\(batches\) returns as many .*; of 2 it returned 1"):
        run(made, Plan(batch_size=4, accumulation_steps=2), 1)


def test_a_task_learns_and_its_score_says_so() -> None:
    trained, losses = run(task(), Plan(batch_size=16), 60)
    assert losses[-1] < losses[0] / 2
    assert trained.evaluate(val_loader(task(), blobs(1), 10)) > 0.8


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_trial_equals_an_uninterrupted_one_to_the_bit(stop: int, tmp_path: Path) -> None:
    made = task(model=noisy, scheduler=cosine, after_step=Average(), clip_grad_norm=1.0)
    plan = Plan(batch_size=8, accumulation_steps=2)
    whole, losses = run(made, plan, 12)

    first, early = run(made, plan, stop)
    save_trainer(first, tmp_path / "checkpoint.pt")
    first.evaluate(val_loader(made, blobs(1), 10))
    torch.manual_seed(99)  # whatever else the process did in between
    second = trainer(made, plan)
    stream = batches(made, plan, start_step=stop)
    restore_trainer(second, read_checkpoint(tmp_path / "checkpoint.pt"))
    late = [float(second.step(stream)) for _ in range(12 - stop)]  # type: ignore[arg-type]

    assert early + late == losses
    assert torch.equal(weights(second), weights(whole))
    assert isinstance(second.after_step, Average)
    assert isinstance(whole.after_step, Average)
    torch.testing.assert_close(second.after_step.weights, whole.after_step.weights, rtol=0, atol=0)


def test_numpys_numbers_are_kept_as_plain_ones(tmp_path: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / total_steps))

    made = task(scheduler=schedule)
    trained, _ = run(made, Plan(batch_size=8), 3)
    save_trainer(trained, tmp_path / "checkpoint.pt")
    again = trainer(made, Plan(batch_size=8))
    restore_trainer(again, read_checkpoint(tmp_path / "checkpoint.pt"))
    assert again.optimizer.param_groups[0]["lr"] == trained.optimizer.param_groups[0]["lr"]
    assert again.scheduler_steps == 3


def test_an_iterable_is_resumed_to_the_bit_with_dropout(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return (blobs()[index] for index in range(64))

    made = task(model=noisy, train_data=Stream)
    plan = Plan(batch_size=16)

    def losses(trained: Trainer, start: int, stop: int) -> list[float]:
        stream = training_batches(made, Stream(), plan, seed=3, start_step=start)
        if start:
            restore_trainer(trained, read_checkpoint(tmp_path / "checkpoint.pt"))
        return [float(trained.step(stream)) for _ in range(start, stop)]  # type: ignore[arg-type]

    whole = losses(trainer(made, plan), 0, 12)
    first = trainer(made, plan)
    early = losses(first, 0, 5)
    save_trainer(first, tmp_path / "checkpoint.pt")
    assert early + losses(trainer(made, plan), 5, 12) == whole


def seeding_loader(batch_size: int, seed: int) -> Iterator[Any]:
    """As many write one: shuffled by a seed of the process's own generator, from which dropout draws too."""
    torch.manual_seed(seed)
    order = torch.randperm(64).tolist()
    for at in range(0, 64, batch_size):
        x, y = (
            torch.stack(parts) for parts in zip(*(blobs()[index] for index in order[at : at + batch_size]), strict=True)
        )
        yield x + 0.1 * torch.randn(x.shape), y


class Noisy(IterableDataset[Any]):
    """Augments in the process that trains."""

    def __iter__(self) -> Iterator[Any]:
        return ((x + 0.1 * torch.randn(x.shape), y) for x, y in (blobs()[index] for index in range(64)))


@pytest.mark.parametrize("stop", [3, 4, 5])
@pytest.mark.parametrize("data", [{"train_data": None, "train_loader": seeding_loader}, {"train_data": Noisy}])
def test_what_is_skipped_on_resume_leaves_the_trials_own_draws(data: Any, stop: int, tmp_path: Path) -> None:
    made = task(model=noisy, **data)
    plan = Plan(batch_size=16)

    def losses(trained: Trainer, start: int, end: int) -> list[float]:
        stream = training_batches(made, Noisy(), plan, seed=3, start_step=start)
        if start:
            restore_trainer(trained, read_checkpoint(tmp_path / "checkpoint.pt"))
        return [float(trained.step(stream)) for _ in range(start, end)]  # type: ignore[arg-type]

    whole = losses(trainer(made, plan), 0, 9)
    first = trainer(made, plan)
    early = losses(first, 0, stop)
    save_trainer(first, tmp_path / "checkpoint.pt")
    assert early + losses(trainer(made, plan), stop, 9) == whole


def test_a_stateful_hook_starts_afresh_in_every_trial() -> None:
    average = Average()
    run(task(after_step=average), Plan(batch_size=8), 2)
    assert average.weights == {}


def test_the_schedule_takes_one_step_an_optimizer_step() -> None:
    trained, _ = run(task(scheduler=cosine), Plan(batch_size=4, accumulation_steps=3), 12, lr=0.1)
    assert trained.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_a_group_that_is_added_late_is_the_schedules_affair_and_the_remedy_is_told() -> None:
    user = task(scheduler=lambda optimizer, total: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    trained = trainer(user, Plan(batch_size=8))
    stream = batches(user, Plan(batch_size=8))
    trained.step(stream)
    trained.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(TaskError, match=r"^LambdaLR failed .* Leave out add_param_group\(\)"):
        trained.step(stream)


def test_a_schedule_that_fails_by_itself_is_not_blamed_on_a_group() -> None:
    class Fails:
        def step(self) -> None:
            raise KeyError("of its own")

    user = task(scheduler=lambda optimizer, total: Fails())
    with pytest.raises(KeyError, match="of its own"):
        trainer(user, Plan(batch_size=8)).step(batches(user, Plan(batch_size=8)))


def test_the_escape_hatch_does_forward_and_backward_itself() -> None:
    def training_step(model: nn.Module, batch: Any, scale: float) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(model(x), y)
        (loss * scale).backward()
        return loss

    plan = Plan(batch_size=4, accumulation_steps=2)
    _, expected = run(task(), plan, 3)
    assert run(task(training_step=training_step), plan, 3)[1] == expected


def test_bf16_autocast_trains_in_fp32_weights() -> None:
    trained, losses = run(task(precision="bf16"), Plan(batch_size=16, precision="bf16"), 40)
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trained.model.parameters())


def test_fp16_scales_the_loss_and_still_takes_the_step() -> None:
    made = task(precision="fp16", scheduler=cosine, clip_grad_norm=1.0)
    trained, losses = run(made, Plan(batch_size=16, precision="fp16"), 12)
    assert losses[-1] < losses[0]
    assert trained.scaler is not None


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_score_is_the_mean_over_samples_whatever_the_batch(size: int) -> None:
    trained, _ = run(task(), Plan(batch_size=16), 5)
    whole = trained.evaluate(val_loader(task(), blobs(1), 64))
    assert trained.evaluate(val_loader(task(), blobs(1), size)) == pytest.approx(whole, abs=1e-9)
    assert trained.model.training


def test_a_metric_may_be_the_mean_of_its_batch() -> None:
    per_sample, _ = run(task(), Plan(batch_size=16), 5)
    means, _ = run(
        task(metric=lambda model, batch: (model(batch[0]).argmax(1) == batch[1]).float().mean()), Plan(batch_size=16), 5
    )
    loader = list(islice(val_loader(task(), blobs(1), 10), 7))
    assert means.evaluate(loader) == pytest.approx(per_sample.evaluate(loader), abs=1e-7)


def test_evaluate_sees_a_loader_with_a_length() -> None:
    made = task(evaluate=lambda model, loader: len(loader) + sum(len(y) for _, y in loader))
    assert trainer(made, Plan(batch_size=4)).evaluate(val_loader(made, blobs(1), 10)) == 7 + 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": lambda model, batch: model(batch[0]).mean(1)}, r"returns a scalar tensor.*shape \(4,\)"),
        ({"loss": lambda model, batch: 0.5}, "returns a scalar tensor.*it returned float"),
        ({"loss": lambda model, batch: None}, "returns a scalar tensor.*it returned NoneType"),
    ],
)
def test_a_loss_that_is_no_scalar_is_named(changes: Any, message: str) -> None:
    made = task(**changes)
    with pytest.raises(TaskError, match=message):
        trainer(made, Plan(batch_size=4)).step(batches(made, Plan(batch_size=4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": lambda model, batch: model(batch[0])}, r"shape \(10,\), or their mean.*shape \(10, 3\)"),
        ({"evaluate": lambda model, loader: [1, 2]}, "returns a number; it returned list"),
    ],
)
def test_a_score_that_is_no_number_is_named(changes: Any, message: str) -> None:
    made = task(**changes)
    with pytest.raises(TaskError, match=message):
        trainer(made, Plan(batch_size=4)).evaluate(val_loader(made, blobs(1), 10))


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, _ = run(task(), Plan(batch_size=4), 1)
    path = tmp_path / "deep" / "checkpoint.pt"
    save_trainer(trained, path)
    kept = path.read_bytes()

    def fails_half_way(state: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fails_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_trainer(trained, path)
    assert path.read_bytes() == kept
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]  # the half would only take up room


class Opaque:
    def __call__(self, model: nn.Module, step: int) -> None: ...
    def state_dict(self) -> dict[str, object]:
        return {"me": Opaque()}


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trained, _ = run(task(after_step=Opaque()), Plan(batch_size=4), 1)
    save_trainer(trained, tmp_path / "checkpoint.pt")
    with pytest.raises(TaskError, match="holds more than tensors, numbers and plain containers"):
        read_checkpoint(tmp_path / "checkpoint.pt")


# The norm of the gradient


def looked_at(user: Task, plan: Plan, steps: int) -> list[float | None]:
    """The norm after each step, None where it was not looked at."""
    trained, stream, found = trainer(user, plan), batches(user, plan), list[float | None]()
    for _ in range(steps):
        trained.step(stream)
        found.append(None if trained.grad_norm is None else float(trained.grad_norm))
    return found


def test_the_norm_is_that_of_the_whole_gradient_before_the_clip() -> None:
    user, plan = task(), Plan(batch_size=8, accumulation_steps=2)
    first, *others = looked_at(user, plan, NORM_EVERY + 1)
    by_hand = trainer(user, plan)
    stream = batches(user, plan)
    for _ in range(2):
        (by_hand.loss(next(stream)) / 2).backward()
    squares = [parameter.grad.square().sum() for parameter in by_hand.model.parameters() if parameter.grad is not None]
    assert first == pytest.approx(float(torch.stack(squares).sum().sqrt()))
    assert [norm is not None for norm in others] == [False] * (NORM_EVERY - 1) + [True]
    clipped = looked_at(task(clip_grad_norm=1e-3), plan, 3)
    assert clipped[0] == pytest.approx(first)
    assert None not in clipped


def test_looking_at_the_norm_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, _ = run(task(), Plan(batch_size=8), 5)
    monkeypatch.setattr(Trainer, "_norm", lambda self: None)
    not_looked, _ = run(task(), Plan(batch_size=8), 5)
    for one, other in zip(looked.model.parameters(), not_looked.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_no_gradient_at_all_has_no_norm() -> None:
    trained, _ = run(task(), Plan(batch_size=8), 1)
    assert trained.grad_norm is not None
    assert trained._norm() is None  # the step has dropped the gradients


def test_norms_are_summed_up_without_those_of_skipped_steps() -> None:
    watch = NormWatch(clip=2.0)
    assert watch.summary() is None
    for norm in (1.0, 3.0, math.inf, 5.0, 2.0):
        watch.see(torch.tensor(norm))
    watch.see(None)
    assert watch.summary() is None
    watch.read()
    watch.read()
    assert watch.summary() == GradNorms(median=2.5, largest=5.0, clipped=0.5)


# Means over other things than samples


def tagged(count: int = 48, seed: int = 0) -> TensorDataset:
    """Sentences of 6 words with a class for each; the padding is labelled -100, and a few have no label at all."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 20, (count, 6), generator=generator)
    padding = torch.arange(6) >= torch.randint(0, 7, (count, 1), generator=generator)
    return TensorDataset(x, (x % 5).masked_fill(padding, -100))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.classes = nn.Embedding(20, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classes(self.words(x)).transpose(1, 2)
        return scores


def tagging(**changes: Any) -> Task:
    def sgd(model: nn.Module, lr: float) -> Any:
        return torch.optim.SGD(model.parameters(), lr=lr)

    return task(**({"model": Tagger, "train_data": tagged, "val_data": tagged, "optimizer": sgd} | changes))


CLASS_WEIGHTS = torch.tensor([0.1, 5.0, 1.0, 0.4, 2.0])


def by_class(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS)


def of_words(model: nn.Module, batch: Any) -> Tensor:
    """Ignores class 3."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1].clamp(min=0), ignore_index=3)


def between_pairs(model: nn.Module, batch: Any) -> Tensor:
    """The mean over the words next to each other that both have a label."""
    both = (batch[1][:, 1:] >= 0) & (batch[1][:, :-1] >= 0)
    steps = (model(batch[0])[:, :, 1:] - model(batch[0])[:, :, :-1]).square().sum(dim=1)
    mean: Tensor = (steps * both).sum() / both.sum()
    return mean


def own_step(model: nn.Module, batch: Any, scale: float) -> Tensor:
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    (loss * scale).backward()
    return loss


UNEVEN: dict[str, dict[str, Any]] = {
    "default": {},
    "weight of classes": {
        "loss": by_class,
        "weight": lambda batch: CLASS_WEIGHTS[batch[1].clamp(min=0)][batch[1] >= 0].sum(),
    },
    "another ignored label": {"loss": of_words, "weight": lambda batch: (batch[1].clamp(min=0) != 3).sum()},
    "pairs": {
        "loss": between_pairs,
        "weight": lambda batch: int(((batch[1][:, 1:] >= 0) & (batch[1][:, :-1] >= 0)).sum()),
    },
    "own step": {"training_step": own_step, "weight": lambda batch: (batch[1] >= 0).sum()},
    "clipped": {"clip_grad_norm": 0.05},
}


def trained_on_tags(made: Task, plan: Plan, steps: int = 4) -> tuple[Tensor, list[float]]:
    # The loss between pairs has no bound below but zero: at the larger rate it blows rounding up.
    trained = trainer(made, plan, lr=0.1 if made.loss is between_pairs else 0.5)
    stream = training_batches(made, tagged(), plan, seed=3)
    losses = [float(trained.step(stream)) for _ in range(steps)]  # type: ignore[arg-type]
    return weights(trained), losses


@pytest.mark.parametrize("kind", sorted(UNEVEN))
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_count_by_what_the_loss_is_a_mean_over(kind: str, size: int) -> None:
    made = tagging(**UNEVEN[kind])
    if kind == "own step" and size == 1:  # a sample without a label has no loss: what is made of it is the task's own
        size = 6
    whole, losses = trained_on_tags(made, Plan(batch_size=12))
    split, split_losses = trained_on_tags(made, Plan(batch_size=size, accumulation_steps=12 // size))
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)
    assert split_losses == pytest.approx(losses, rel=1e-5)
    # That the shares matter here: without the weight the steps are others.
    if "weight" in UNEVEN[kind]:
        unweighed, _ = trained_on_tags(
            tagging(**(UNEVEN[kind] | {"weight": None})), Plan(batch_size=6, accumulation_steps=2)
        )
        assert (unweighed - whole).abs().max() > 1e-3


def test_in_fp16_the_scale_is_kept_to() -> None:
    made = tagging(precision="fp16")
    whole, _ = trained_on_tags(made, Plan(batch_size=12, precision="fp16"))
    split, _ = trained_on_tags(made, Plan(batch_size=3, accumulation_steps=4, precision="fp16"))
    torch.testing.assert_close(split, whole, rtol=1e-2, atol=1e-3)


def test_a_batch_without_a_label_trains_nothing_and_is_finite() -> None:
    empty = TensorDataset(torch.ones(8, 6, dtype=torch.long), torch.full((8, 6), -100))
    changes: dict[str, Any] = {
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        "weight": lambda batch: (batch[1] != -100).sum(),
    }
    plans = (Plan(batch_size=4), Plan(batch_size=2, accumulation_steps=2))
    for made, plan in itertools.product((tagging(), tagging(**changes)), plans):
        trained = trainer(made, plan)
        before = weights(trained)
        assert trained.step(training_batches(made, empty, plan, seed=0)) == 0
        assert torch.equal(weights(trained), before)


def test_a_loader_of_ones_own_may_give_micro_batches_of_unlike_sizes() -> None:
    data = blobs()

    def loader(batch_size: int, seed: int) -> Iterator[Any]:
        return iter([data[at] for at in ([0, 1, 2, 3, 4], [5], [6, 7, 8], [9, 10, 11])] * 5)

    made = task(train_loader=loader, optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr))
    split = trainer(made, Plan(batch_size=3, accumulation_steps=4))
    split.step(training_batches(made, None, Plan(batch_size=3, accumulation_steps=4), seed=0))
    whole = trainer(made, Plan(batch_size=12))
    whole.step(iter([data[:12]]))
    torch.testing.assert_close(weights(split), weights(whole))


@pytest.mark.parametrize("size", [1, 7, 48])
def test_the_default_score_is_a_mean_over_labels(size: int) -> None:
    made = tagging()
    trained = trainer(made, Plan(batch_size=4))
    x, y = tagged()[:]
    right = (trained.model(x).argmax(1) == y).sum() / (y >= 0).sum()
    assert trained.evaluate(val_loader(made, tagged(), size)) == pytest.approx(float(right), abs=1e-6)
    with torch.no_grad():  # a perfect one
        trained.model.get_parameter("words.weight").zero_()
        trained.model.get_parameter("words.weight")[torch.arange(20), torch.arange(20) % 5] = 9.0
        trained.model.get_parameter("classes.weight").copy_(torch.eye(5, 8))
        trained.model.get_parameter("classes.bias").zero_()
    assert trained.evaluate(val_loader(made, tagged(), size)) == 1.0


@pytest.mark.parametrize("kind", ["default", "weight of classes", "pairs"])
@pytest.mark.parametrize("size", [1, 7])
def test_a_metric_that_is_one_number_counts_by_the_same(kind: str, size: int) -> None:
    changes = UNEVEN[kind]
    loss = changes.get("loss", lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
    made = tagging(**changes, metric=lambda model, batch: loss(model, batch))
    trained = trainer(made, Plan(batch_size=4))
    expected = float(loss(trained.model, tagged()[:]).detach())
    assert trained.evaluate(val_loader(made, tagged(), size)) == pytest.approx(expected, rel=1e-6)


def test_a_score_a_sample_stays_a_mean_over_samples() -> None:
    made = tagging(metric=lambda model, batch: batch[1].float().mean(dim=1), weight=lambda batch: batch[1].sum())
    score = trainer(made, Plan(batch_size=4)).evaluate(val_loader(made, tagged(), 7))
    assert score == pytest.approx(float(tagged()[:][1].float().mean()), rel=1e-6)


def test_validation_data_without_a_label_has_no_score() -> None:
    empty = TensorDataset(torch.ones(8, 6, dtype=torch.long), torch.full((8, 6), -100))
    with pytest.raises(TaskError, match="all of its labels are ignored"):
        trainer(tagging(), Plan(batch_size=4)).evaluate(val_loader(tagging(), empty, 4))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, r"it returned None: is its `return` missing"),
        ("many", "it returned a str"),
        (torch.ones(3), "it returned a Tensor"),
        (-1, r"it returned -1\.0"),
        (math.nan, "it returned nan"),
    ],
)
def test_a_weight_that_is_no_count_is_named(said: Any, message: str) -> None:
    made, plan = tagging(weight=lambda batch: said), Plan(batch_size=4, accumulation_steps=2)
    with pytest.raises(TaskError, match=rf"weight\(batch\) returns how many things .*{message}"):
        trainer(made, plan).step(training_batches(made, tagged(), plan, seed=0))


def test_a_language_model_of_transformers_is_weighed_by_the_labels_it_is_a_mean_over() -> None:
    data = sentences(48)
    samples = [{name: value[index] for name, value in data.items()} for index in range(48)]
    for output in (CausalLMOutputWithPast, Output):
        made = tagging(model=lambda output=output: Language(output), train_data=lambda: samples)
        found = []
        for plan in (Plan(batch_size=12), Plan(batch_size=3, accumulation_steps=4)):
            trained = trainer(made, plan, lr=0.5)
            stream = training_batches(made, samples, plan, seed=3)
            losses = [float(trained.step(stream)) for _ in range(3)]  # type: ignore[arg-type]
            found.append((weights(trained), losses))
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
