"""A task whose micro-batches would train something else than its batches is told so, with the remedy; no other is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autobatch.tasks.task import Task
from autobatch.worker import check
from autobatch.worker.check import check_task

from ..helpers.transformers_like import Language, Output, sentences

F = nn.functional
CPU = torch.device("cpu")


class Tagger(nn.Module):
    """Classes of words, with dropout of every kind and batch norm: what micro-batches see otherwise anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.noise = nn.Embedding(20, 8), nn.Dropout(0.5)
        self.sequence = nn.GRU(8, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.norm, self.classes = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.sequence(self.noise(self.words(x)))
        hidden = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        scores: Tensor = self.classes(F.dropout(hidden, 0.5, self.training)).transpose(1, 2)
        return scores


def tagged(ignored: int = -100) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 20, (40, 6), generator=generator)
    padding = torch.arange(6) >= torch.randint(1, 7, (40, 1), generator=generator)
    return TensorDataset(x, (x % 5).masked_fill(padding, ignored))


def found(**changes: Any) -> tuple[str, ...]:
    fields: dict[str, Any] = {"model": Tagger, "train_data": tagged, "val_data": tagged}
    made = Task(**(fields | changes))
    return check_task(made, CPU, made.baseline_config()[0].plan.batch_size).warnings


def of_tokens(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def of_samples(model: nn.Module, batch: Any) -> Tensor:
    """The mean over samples of the mean over the words of each."""
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none").sum(dim=1)
    mean: Tensor = (each / (batch[1] != -100).sum(dim=1)).mean()
    return mean


def by_class(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([0.1, 5, 1, 0.2, 2.0]))


def summed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    one = F.normalize(model(batch[0]).flatten(1), dim=1)
    return F.cross_entropy(one @ one.T / 0.5, torch.arange(len(one)))


def spread(model: nn.Module, batch: Any) -> Tensor:
    """A penalty on how alike the samples of a batch are."""
    scores = model(batch[0]).mean(dim=2)
    alike: Tensor = F.cross_entropy(model(batch[0]), batch[1], reduction="none").mean() - scores.var(dim=0).sum().sqrt()
    return alike


def noisy(model: nn.Module, batch: Any) -> Tensor:
    scores = model(batch[0])
    return F.cross_entropy(scores + torch.randn_like(scores), batch[1])


def own_step(model: nn.Module, batch: Any, scale: float) -> None:
    (of_samples(model, batch) * scale).backward()


def step_over_tokens(model: nn.Module, batch: Any, scale: float) -> None:
    (of_tokens(model, batch) * scale).backward()


def step_without_scale(model: nn.Module, batch: Any, scale: float) -> None:
    of_samples(model, batch).backward()


def step_of_its_own(model: nn.Module, batch: Any, scale: float) -> None:
    (of_samples(model, batch) * scale).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)


def tokens(batch: Any) -> int:
    return int((batch[1] != -100).sum())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": of_samples},
        {"loss": of_tokens, "weight": tokens},
        {"loss": of_tokens, "weight": tokens, "precision": "bf16"},
        {"loss": contrastive, "accumulation": False},
        {"loss": noisy},  # it cannot be told here
        {"training_step": own_step},
        {"training_step": step_over_tokens, "weight": tokens},
    ],
    ids=lambda changes: " ".join(map(str, changes)) or "default",
)
def test_what_can_be_split_is_not_warned_of(changes: dict[str, Any]) -> None:
    assert found(**changes) == ()


OFF = r"over a batch of a few samples is not that of its two halves put together \(off by \d+ %\): "
WEIGHT = r"accumulation takes them for 0\.50 to 0\.50, .*Define weight\(batch\), .*or set accumulation = False"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": of_tokens}, rf"loss\(model, batch\) {OFF}the halves count 0\.\d\d to 0\.\d\d in it, and {WEIGHT}"),
        ({"loss": by_class}, rf"{OFF}the halves count .*{WEIGHT}"),
        ({"loss": of_tokens, "precision": "bf16"}, rf"{OFF}the halves count .*{WEIGHT}"),
        ({"loss": of_tokens, "weight": lambda batch: batch[1].numel() ** 2}, r"weight\(batch\) says 0\.50 to 0\.50"),
        ({"loss": summed}, r"is the sum of theirs, .*Divide the loss by the number of samples"),
        ({"loss": contrastive}, r"are coupled in it, .*Set accumulation = False"),
        ({"loss": spread}, r"are coupled in it, .*Set accumulation = False"),
        (
            {"training_step": step_over_tokens},
            rf"training_step\(model, batch, scale\) {OFF}the halves count .*{WEIGHT}",
        ),
        ({"training_step": step_without_scale}, r"does not multiply its loss by `scale`.*\(loss \* scale\)\.backward"),
        ({"training_step": step_of_its_own}, r"changes the model's parameters itself.*Set accumulation = False"),
    ],
    ids=[
        "tokens",
        "weight of classes",
        "bf16",
        "wrong weight",
        "sum",
        "contrastive",
        "spread",
        "own step over tokens",
        "scale ignored",
        "own optimizer",
    ],
)
def test_what_cannot_is_told_with_the_remedy(changes: dict[str, Any], message: str) -> None:
    (warning,) = found(**changes)
    assert re.search(message, warning), warning


@pytest.mark.parametrize(("loss", "count"), [(of_samples, 0), (of_tokens, 1)])
def test_the_batch_of_a_loader_of_ones_own_is_cut_by_rows(loss: Any, count: int) -> None:
    def loader(batch_size: int, seed: int) -> Iterator[Any]:
        return iter(DataLoader(tagged(), batch_size, generator=torch.Generator().manual_seed(seed), shuffle=True))

    assert len(found(train_data=None, train_loader=loader, loss=loss)) == count


@pytest.mark.parametrize("output", [None, Output])
def test_a_language_model_of_transformers_is_fine_by_default_and_not_by_a_loss_of_ones_own(output: Any) -> None:
    data = sentences(40)
    samples = [{name: value[index] for name, value in data.items()} for index in range(40)]

    def model() -> nn.Module:
        return Language() if output is None else Language(output)

    changes: dict[str, Any] = {"model": model, "train_data": lambda: samples, "val_data": lambda: samples[:8]}
    assert found(**changes) == ()
    (warning,) = found(loss=lambda model, batch: model(**batch).loss, **changes)
    assert "Define weight(batch)" in warning


def without(label: int) -> Any:
    return lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], ignore_index=label)


def last_word(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0])[:, :, -1], batch[1][:, -1])


def test_a_label_that_only_the_loss_leaves_out_is_told() -> None:
    def padded() -> TensorDataset:
        return tagged(ignored=0)

    changes: dict[str, Any] = {"train_data": padded, "val_data": padded, "weight": lambda batch: (batch[1] != 0).sum()}
    (warning,) = found(loss=without(0), **changes)
    assert re.search(r"leaves out the labels 0, which the default metric counts: .*label them -100, or define", warning)
    assert found(loss=without(0), metric=lambda model, batch: batch[1].float().mean(), **changes) == ()
    assert found(loss=last_word, **(changes | {"weight": len})) == ()
    assert found(loss=without(-100), weight=tokens) == ()


@pytest.mark.parametrize(("batch_size", "most"), [(1, 2), (2, 2), (3, 3), (4, 4), (32, 4)])
@pytest.mark.parametrize("loss", [of_tokens, of_samples])
def test_no_more_samples_go_through_than_the_baseline_has(batch_size: int, most: int, loss: Any) -> None:
    """But for one, which batch norm cannot take."""
    seen: list[int] = []

    def watched(model: nn.Module, batch: Any) -> Tensor:
        seen.append(len(batch[0]))
        answer: Tensor = loss(model, batch)
        return answer

    warnings = found(loss=watched, baseline={"batch_size": batch_size, "lr": 1e-3})
    assert max(seen) == most
    assert seen.count(1) + seen.count(2) >= 2  # halves were compared
    assert any("not that of its two halves" in warning for warning in warnings) == (loss is of_tokens)


def test_a_step_that_takes_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_LONGEST_STEP_S", 0.0)
    assert found(loss=of_tokens) == ()


class Detector(nn.Module):
    """Scores in training, finished predictions otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(20, 8), nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Any:
        scores = self.body(x).transpose(1, 2)
        return scores if self.training else [{"boxes": scores}]


def test_a_model_that_only_trains_in_its_own_mode_is_looked_at_in_it() -> None:
    (warning,) = found(model=Detector, loss=of_tokens, metric=lambda model, batch: batch[1].float().mean())
    assert "Define weight(batch)" in warning
    assert found(model=Detector, loss=of_samples, metric=lambda model, batch: batch[1].float().mean()) == ()


def test_gradients_and_modes_are_as_the_step_left_them() -> None:
    seen: list[Any] = []

    def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        class Watched(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                assert all(module.training for module in model.modules())
                seen.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])

        return Watched(model.parameters(), lr)

    found(optimizer=optimizer)
    whole = seen[0]
    seen.clear()
    found(optimizer=optimizer, accumulation=False)
    torch.testing.assert_close(whole, seen[0], rtol=0, atol=0)
