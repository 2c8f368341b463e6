"""What a sample is: what was collated, whatever the batch looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autobatch import Plan, Task
from autobatch.core.plan import Config
from autobatch.core.segment import TrainSegment
from autobatch.devices import open_device
from autobatch.errors import TaskError
from autobatch.tasks.data import Collated, DeviceLoader, val_loader
from autobatch.tasks.worst_case import checked_loader_batch, loader_batch
from autobatch.worker.check import check_task
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.training import Trainer

CPU = torch.device("cpu")
nested = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
one_core = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Graphs:
    """Neither tensor nor mapping, as the batches of a graph library are: nodes of all graphs in one tensor."""

    def __init__(self, nodes: Tensor, owner: Tensor, label: Tensor) -> None:
        self.nodes, self.owner, self.label = nodes, owner, label

    def to(self, device: Any) -> Graphs:
        return Graphs(self.nodes.to(device), self.owner.to(device), self.label.to(device))


def rows(count: int = 23, seed: int = 0) -> TensorDataset:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def model() -> nn.Module:
    return nn.Linear(6, 2)


def lists(samples: list[Any]) -> Any:
    """As a detector takes them: images, and a dict of targets for each."""
    return [x.reshape(3, 2) for x, _ in samples], [{"label": y, "box": torch.zeros(2, 4)} for _, y in samples]


def graphs(samples: list[Any]) -> Graphs:
    sizes = torch.tensor([2 + index % 3 for index in range(len(samples))])
    owner = torch.repeat_interleave(torch.arange(len(samples)), sizes)
    x = torch.stack([x for x, _ in samples])
    return Graphs(x[owner], owner, torch.stack([y for _, y in samples]))


def mean_of_nodes(batch: Graphs) -> Tensor:
    count = int(batch.owner.max()) + 1
    sums = torch.zeros(count, 6).index_add(0, batch.owner, batch.nodes)
    return sums / torch.bincount(batch.owner)[:, None]


def time_first(samples: list[Any]) -> Any:
    return torch.stack([x for x, _ in samples], dim=1), torch.stack([y for _, y in samples])


def two_views(samples: list[Any]) -> Any:
    x, y = torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
    return torch.cat([x, x]), torch.cat([y, y])


def strided(samples: list[Any]) -> Any:
    return torch.nested.nested_tensor([x for x, _ in samples]), torch.stack([y for _, y in samples])


def jagged(samples: list[Any]) -> Any:
    x = torch.nested.nested_tensor([x[:, None] for x, _ in samples], layout=torch.jagged)
    return {"x": x, "y": torch.stack([y for _, y in samples])}


def packed(samples: list[Any]) -> Any:
    return nn.utils.rnn.pack_sequence([x for x, _ in samples]), torch.stack([y for _, y in samples])


@dataclass
class Kind:
    """How samples are collated, and how a loss finds x of shape (B, 6) and y of shape (B,) in the batch."""

    collate: Callable[[list[Any]], Any]
    read: Callable[[Any], tuple[Tensor, Tensor]]


KINDS = {
    "lists": Kind(lists, lambda b: (torch.stack(b[0]).flatten(1), torch.stack([t["label"] for t in b[1]]))),
    "graphs": Kind(graphs, lambda b: (mean_of_nodes(b), b.label)),
    "time first": Kind(time_first, lambda b: (b[0].T, b[1])),
    "two views": Kind(two_views, lambda b: (b[0], b[1])),
    "strided": Kind(strided, lambda b: (torch.stack(b[0].unbind()), b[1])),
    "jagged": Kind(jagged, lambda b: (torch.stack(b["x"].unbind())[..., 0], b["y"])),
    "packed": Kind(packed, lambda b: (torch.stack(nn.utils.rnn.unpack_sequence(b[0])), b[1])),
}


def task(kind: Kind, *, mean: bool = False, **changes: Any) -> Task:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = kind.read(batch)
        return nn.functional.cross_entropy(model(x), y)

    def metric(model: nn.Module, batch: Any) -> Tensor:
        x, y = kind.read(batch)
        right: Tensor = (model(x).argmax(1) == y).float()
        return right.mean() if mean else right

    fields: dict[str, Any] = {
        "model": model,
        "train_data": rows,
        "val_data": lambda: rows(seed=1),
        "collate": kind.collate,
        "loss": loss,
        "metric": metric,
        "baseline": {"batch_size": 8, "lr": 1e-3},
    }
    return Task(**(fields | changes))


@nested
@one_core
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_score_is_the_mean_over_what_was_collated(name: str, mean: bool) -> None:
    made = task(KINDS[name], mean=mean)
    trained = Trainer(made, Config(plan=Plan(batch_size=4), lr=0.1), CPU, seed=0, total_steps=1)
    x, y = rows(seed=1).tensors
    with torch.no_grad():
        expected = float((trained.model(x).argmax(1) == y).double().mean())
    assert 0 < expected < 1
    for size in (1, 5, 23):
        assert trained.evaluate(val_loader(made, rows(seed=1), size)) == pytest.approx(expected, abs=1e-7)


@one_core
def test_counts_come_from_the_loaders_workers_too() -> None:
    made = task(KINDS["lists"], loader={"num_workers": 2})
    assert [samples for _, samples in val_loader(made, rows(), 10)] == [10, 10, 3]


def test_a_batch_that_is_pinned_keeps_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, device=None: self + 100)
    pinned = task(KINDS["lists"], loader={"pin_memory": True})
    found = list(val_loader(pinned, rows(), 10))
    assert [collated.samples for collated in found] == [10, 10, 3]
    assert all(isinstance(collated, Collated) and float(collated.batch[0][0].min()) > 50 for collated in found)


def test_what_a_task_evaluates_on_are_the_batches_that_it_collated() -> None:
    made = task(KINDS["lists"])
    loader = DeviceLoader(val_loader(made, rows(), 10), CPU)
    assert [(type(batch), len(batch[0]), len(batch[1])) for batch in loader] == [(tuple, n, n) for n in (10, 10, 3)]


@nested
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_batch_passes_the_check_is_probed_and_trained(name: str, tmp_path: Any) -> None:
    made = task(KINDS[name])
    assert check_task(made, CPU, 8).warnings == ()
    runner = TorchRunner(made, open_device("cpu"), checkpoints=tmp_path)
    assert runner.facts().train_size == 23
    assert runner.probe(Plan(batch_size=8), final=True).outcome == "ok"
    plan = Config(plan=Plan(batch_size=4), lr=0.01)
    segment = TrainSegment(trial=0, config=plan, seed=0, start_step=0, until_step=3, total_steps=3, eval_batch_size=10)
    result = runner.advance(segment)
    runner.close()
    assert result.outcome == "ok"
    assert result.score is not None
    assert round(result.score * 23, 5) in range(24)


def test_samples_that_a_collate_leaves_out_are_not_scored() -> None:
    def some(samples: list[Any]) -> Any:
        kept = [sample for index, sample in enumerate(samples) if index % 3]
        return torch.stack([x for x, _ in kept]), torch.stack([y for _, y in kept])

    made = task(Kind(some, lambda b: (b[0], b[1])))
    trained = Trainer(made, Config(plan=Plan(batch_size=4), lr=0.1), CPU, seed=0, total_steps=1)
    x, y = (part[torch.arange(23) % 10 % 3 > 0] for part in rows(seed=1).tensors)
    expected = float((trained.model(x).argmax(1) == y).double().mean())
    assert trained.evaluate(val_loader(made, rows(seed=1), 10)) == pytest.approx(expected, abs=1e-7)


def test_a_score_for_each_node_of_a_graph_is_refused_with_what_to_return() -> None:
    made = task(KINDS["graphs"], metric=lambda model, batch: model(batch.nodes).argmax(1).float())
    with pytest.raises(TaskError, match=r"one score per sample, shape \(4,\), or their mean, \(\); .*shape \(11,\)"):
        check_task(made, CPU, 8)


# -- a task's own train_loader


class Batches:
    """Batches that no DataLoader made."""

    def __init__(self, make: Callable[[int], Any], size: int) -> None:
        self.make, self.size = make, size

    def __iter__(self) -> Iterator[Any]:
        return iter([self.make(self.size)] * 3)


OWN: dict[str, Callable[[int], Any]] = {
    "rows": lambda n: (torch.zeros(n, 6), torch.zeros(n)),
    "time first": lambda n: (torch.zeros(7, n, 6), torch.zeros(7, n)),
    "images": lambda n: ([torch.zeros(3, 8, 8)] * n, [{"box": torch.zeros(2, 4)}] * n),
    "two views": lambda n: torch.zeros(2 * n, 6),
    "graphs": lambda n: graphs([(torch.zeros(6), torch.tensor(0))] * n),
    "nodes": lambda n: {"x": torch.zeros(3 * n + 1, 6), "edges": torch.zeros(2, 5 * n), "y": torch.zeros(n)},
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_a_loader_of_ones_own_is_trusted_with_the_size_it_was_asked_for(name: str, size: int) -> None:
    made = task(KINDS["lists"], train_data=None, train_loader=lambda batch_size, seed: Batches(OWN[name], batch_size))
    found = checked_loader_batch(made, size)
    assert type(found) is type(OWN[name](size))


@pytest.mark.parametrize("name", ["rows", "two views"])
def test_a_loader_of_ones_own_that_gives_too_few_is_told(name: str) -> None:
    made = task(KINDS["lists"], train_data=None, train_loader=lambda n, seed: Batches(OWN[name], min(n, 10)))
    assert loader_batch(made, 10) is not None
    with pytest.raises(TaskError, match=r"batch_size=64, seed=0\) gives batches of that many samples; the first had"):
        loader_batch(made, 64)


@pytest.mark.parametrize("name", ["rows", "time first", "two views"])
def test_a_loader_of_ones_own_that_goes_by_another_size_is_told(name: str) -> None:
    made = task(KINDS["lists"], train_data=None, train_loader=lambda batch_size, seed: Batches(OWN[name], 32))
    with pytest.raises(TaskError, match=r"batch_size=4, seed=0\) gives batches of that many samples; the first had"):
        checked_loader_batch(made, 4)


@pytest.mark.parametrize("kind", [KINDS["lists"], KINDS["graphs"], KINDS["two views"], KINDS["time first"]])
def test_what_a_dataloader_collates_is_counted(kind: Kind) -> None:
    def loader(size: int | None) -> Callable[[int, int], Any]:
        return lambda batch_size, seed: DataLoader(rows(), batch_size=size or batch_size, collate_fn=kind.collate)

    right = task(kind, train_data=None, train_loader=loader(None))
    assert type(loader_batch(right, 8)) is type(kind.collate([rows()[0]]))
    with pytest.raises(TaskError, match=r"the first had 23\. If the data holds no more"):
        loader_batch(right, 64)
    wrong = task(kind, train_data=None, train_loader=loader(12))
    with pytest.raises(TaskError, match=r"batch_size=4, seed=0\) gives batches of that many samples; the first had 12"):
        check_task(wrong, CPU, 8)


def test_an_iterator_made_once_is_no_train_loader() -> None:
    batches = iter([(torch.zeros(4, 6), torch.zeros(4, dtype=torch.long))] * 9)
    made = task(KINDS["two views"], train_data=None, train_loader=lambda batch_size, seed: batches)
    with pytest.raises(TaskError, match=r"returned the same iterator twice.*make it inside the function"):
        check_task(made, CPU, 8)


def test_views_that_a_collate_draws_are_not_taken_for_samples_that_meet() -> None:
    def drawn(samples: list[Any]) -> Any:
        x, y = two_views(samples)
        return x + torch.randn_like(x), y

    assert check_task(task(Kind(drawn, lambda b: (b[0], b[1]))), CPU, 8).warnings == ()


def test_time_steps_of_a_loader_are_not_taken_for_samples_that_meet() -> None:
    """Neither are the rows of two views; those of samples are looked at."""

    def mixed(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].flatten(0, -2)
        return nn.functional.mse_loss(model(x).cumsum(0)[:, 0], batch[1].flatten().float())  # each row adds to the next

    def found(make: Callable[[int], Any]) -> tuple[str, ...]:
        loaded: dict[str, Any] = {"train_data": None, "train_loader": lambda n, seed: Batches(make, n)}
        return check_task(task(KINDS["two views"], loss=mixed, **loaded), CPU, 8).warnings

    torch.manual_seed(0)
    assert found(lambda n: (torch.randn(7, n, 6), torch.randn(7, n))) == ()
    assert found(lambda n: (torch.randn(2 * n, 6), torch.randn(2 * n))) == ()
    assert any(
        "is not that of its two halves" in warning for warning in found(lambda n: (torch.randn(n, 6), torch.randn(n)))
    )


@dataclass
class Molecule:
    """A sample of a class that torch's default collate does not know, as a graph's."""

    x: Tensor
    y: int


@pytest.mark.parametrize("sample", [Molecule(torch.zeros(5), 1), (object(), 1), {"x": Molecule(torch.zeros(5), 1)}])
def test_samples_that_only_their_own_library_collates_are_refused_with_both_remedies(sample: Any) -> None:
    made = Task(model=lambda: nn.Linear(5, 2), train_data=lambda: [sample] * 40, val_data=lambda: [sample] * 40)
    with pytest.raises(
        TaskError, match=r"in collate\(samples\); for a model that is passed in, give as data= the DataLo"
    ):
        check_task(made, CPU, 8)
