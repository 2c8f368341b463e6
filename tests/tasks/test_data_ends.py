"""Data that can be read only once, and data that never ends, are told as what they are, before any training."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from autobatch import Plan, Task
from autobatch.core.facts import TaskFacts
from autobatch.core.plan import Config
from autobatch.core.segment import TrainSegment
from autobatch.devices import open_device
from autobatch.errors import TaskError
from autobatch.runs.run_folder import RunFolder, RunState
from autobatch.runs.settings import TuneSettings
from autobatch.searching.budget.costs import LEAST_EQUIVALENTS, RUNGS
from autobatch.searching.budget.ledger import Ledger
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tasks.data import training_batches
from autobatch.tasks.worst_case import WorstSamples, find_worst_case
from autobatch.tuning.pipeline import _Tune
from autobatch.worker.check import check_task
from autobatch.worker.torch_runner import TorchRunner

from ..helpers.ready_python import run

pytestmark = pytest.mark.usefixtures("ready_python")
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
one_core = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def rows(count: int = 64) -> TensorDataset:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {"model": lambda: nn.Linear(3, 2), "train_data": rows, "val_data": rows}
    return Task(**(fields | changes))


class Stored(IterableDataset[Any]):
    """Hands out the one iterator that it was made with."""

    def __init__(self, rows: Any) -> None:
        self.rows: Iterator[Any] = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


class GoesOn(IterableDataset[Any]):
    """A new iterator each time, over what the one before has left."""

    def __init__(self, rows: Any) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        yield from self.rows


class Anew(IterableDataset[Any]):
    """Its own iterator, which begins anew where it is asked for one."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.index = rows, 0

    def __iter__(self) -> Iterator[Any]:
        self.index = 0
        return self

    def __next__(self) -> Any:
        self.index += 1
        if self.index > len(self.rows):
            raise StopIteration
        return self.rows[self.index - 1]


class Lines(IterableDataset[Any]):
    """Says how many it has, or does not, and gives so many."""

    def __init__(self, gives: int | None, says: int | None = None) -> None:
        self.gives, self.says = gives, says

    def __iter__(self) -> Iterator[Any]:
        count = itertools.count() if self.gives is None else range(self.gives)
        return ((torch.ones(3) * (number % 7), number % 2) for number in count)

    def __len__(self) -> int:
        if self.says is None:
            raise TypeError
        return self.says


WHERE = r"(Stored|GoesOn)\.__iter__ \(test_data_ends\.py, line \d+\) goes on where it stopped"


@pytest.mark.parametrize("name", ["train_data", "val_data", "test_data"])
@pytest.mark.parametrize("made", [lambda: Stored(rows(200)), lambda: Stored(rows(32)), lambda: GoesOn(rows(32))])
def test_data_that_can_be_read_once_is_told_by_the_check(name: str, made: Callable[[], Any]) -> None:
    with pytest.raises(TaskError, match=rf"{name}\(\) must return data that can be read more than once: {WHERE}"):
        check_task(task(**{name: made}), CPU, 8)


def test_a_generator_is_no_dataset() -> None:
    for made in (lambda: (n for n in range(9)), lambda: zip(*rows().tensors, strict=True), lambda: iter([1])):
        with pytest.raises(TaskError, match=r"which can be read only once: return a Dataset, or .*anew each time"):
            check_task(task(train_data=made), CPU, 8)


@pytest.mark.parametrize("made", [lambda: Anew(rows()), lambda: Lines(64)])
def test_data_that_begins_anew_is_none_of_these(made: Callable[[], Any]) -> None:
    assert check_task(task(train_data=made, val_data=made), CPU, 8).warnings == ()


def test_data_that_was_read_to_its_end_and_is_then_empty_is_told_where_it_shows() -> None:
    data = GoesOn(rows(100))
    found = find_worst_case(data)
    assert found.num_scanned == 100
    with pytest.raises(TaskError, match=rf"it gave 100 when it was read first and no sample 0 when .* again: {WHERE}"):
        WorstSamples(task(), data, found)


@pytest.mark.parametrize("own", [False, True])
def test_a_second_epoch_without_batches_is_told(own: bool) -> None:
    data = GoesOn(rows(40))
    loader = (lambda batch_size, seed: DataLoader(data, batch_size=batch_size)) if own else None
    batches = training_batches(task(train_loader=loader), data, Plan(batch_size=16), seed=0)
    where = "inside the function" if own else WHERE
    who = r"train_loader\(batch_size, seed\) \(test_data_ends\.py, line \d+\)" if own else r"train_data\(\)"
    with pytest.raises(TaskError, match=rf"{who} gave batches in one epoch and none in the next: .*({where})"):
        list(itertools.islice(batches, 9))


# -- data without an end


def runner(**changes: Any) -> TorchRunner:
    return TorchRunner(task(**changes), open_device("cpu"))


def mean(model: nn.Module, loader: Any) -> float:
    scores: list[Tensor] = [model(x).mean() for x, _ in loader]
    return float(torch.stack(scores).mean())


def test_an_error_of_our_own_about_a_task_names_its_file(tmp_path: Path) -> None:
    data = GoesOn(rows(40))
    running = runner(train_data=lambda: data, path=tmp_path / "model.py")
    config = Config(plan=Plan(batch_size=16), lr=0.1)
    segment = TrainSegment(
        trial=0, config=config, seed=0, start_step=0, until_step=9, total_steps=9, eval_batch_size=16
    )
    with pytest.raises(TaskError, match=r"^model\.py: train_data\(\) gave batches in one epoch and none in the next"):
        running.advance(segment)
    running.close()


@one_core
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"val_data": lambda: Lines(None)},
        {"test_data": lambda: Lines(None)},
        {"val_data": lambda: Lines(None), "evaluate": mean},
        {
            "val_data": lambda: Lines(None),
            "train_data": None,
            "train_loader": lambda batch_size, seed: DataLoader(rows(), batch_size=batch_size),
        },
    ],
    ids=["val", "test", "evaluate", "train_loader"],
)
def test_evaluation_data_that_never_ends_is_told(changes: dict[str, Any], workers: int) -> None:
    opened = runner(loader={"num_workers": workers}, **changes)
    name = next(name for name in ("val_data", "test_data") if name in changes)
    with pytest.raises(TaskError, match=rf"{name}\(\) did not end: it has no length, and gave [\d,]+ samples"):
        opened.see_evaluation_end(0.05)
    opened.close()


@pytest.mark.parametrize("data", [Lines(40), Lines(40, says=40), Lines(None, says=40), rows()])
def test_evaluation_data_that_ends_or_says_where_is_let_be(data: Any) -> None:
    opened = runner(val_data=lambda: data, test_data=lambda: data)
    opened.see_evaluation_end(600.0)
    opened.close()


def test_what_the_look_for_the_largest_samples_saw_the_end_of_is_not_gone_through_again() -> None:
    reads = 0

    class Watched(Lines):
        def __iter__(self) -> Iterator[Any]:
            nonlocal reads
            reads += 1
            return super().__iter__()

    opened = runner(val_data=lambda: Watched(40))
    opened.facts()
    before = reads
    opened.see_evaluation_end(0.0)
    opened.close()
    assert reads == before


@one_core
@pytest.mark.parametrize(
    ("workers", "gives", "is_told"), [(0, None, True), (2, None, True), (0, 90, False), (2, 90, False)]
)
def test_data_that_gives_more_than_it_says_is_told(workers: int, gives: int | None, is_told: bool) -> None:
    """Of two workers each may give all of it, which changes no mean."""
    opened = runner(val_data=lambda: Lines(gives, says=90), loader={"num_workers": workers})
    if is_told:
        with pytest.raises(TaskError, match=r"its length is 90 samples \(__len__\) and gave"):
            opened.time_evaluation(30)
    else:
        assert opened.time_evaluation(30) > 0
    opened.close()


class Unsized(SimRunner):
    """Whose validation data does not say its size."""

    limits: list[float]

    def facts(self) -> TaskFacts:
        return sim_facts(val_size=None)

    def see_evaluation_end(self, limit_s: float) -> None:
        self.limits = [limit_s]
        raise TaskError("val_data() did not end")


def test_a_search_asks_before_anything_else_with_a_share_of_its_time(tmp_path: Path) -> None:
    simulated = Unsized()
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="t"))
    with RunFolder.made(tmp_path, "t") as folder:
        tune = _Tune(simulated, Ledger(600.0, clock=simulated.clock), lambda _: None, folder, state)
        with pytest.raises(TaskError, match="did not end"):
            tune.run()
    assert simulated.probes == []
    assert 20 < simulated.limits[0] < 600 / (LEAST_EQUIVALENTS * RUNGS)


CLI = """
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset
def data(): return TensorDataset(torch.randn(400, 3), torch.randint(2, (400,)))
def model(): return nn.Linear(3, 2)
train_data = val_data = data
"""
ONCE = """
class Once(IterableDataset):
    def __init__(self, rows): self.rows = iter(rows)
    def __iter__(self): return self.rows
def train_data(): return Once(data())
"""
ENDLESS = """
class Endless(IterableDataset):
    def __iter__(self):
        while True: yield torch.randn(3), 0
def test_data(): return Endless()
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            ONCE,
            "model.py: train_data() must return data that can be read more than once: "
            "Once.__iter__ (model.py, line 11)",
        ),
        (ENDLESS, "model.py: test_data() did not end"),
    ],
)
def test_tune_says_so_and_advises_no_longer_budget(code: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CLI + code)
    command = [sys.executable, "-m", "autobatch", "tune", "model.py", "--budget", "90s", "-q"]
    done = run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=1800)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Give at least" not in done.stderr
