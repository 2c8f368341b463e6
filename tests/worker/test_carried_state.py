"""A trial in legs equals one that is not paused, wherever it keeps what it has learnt; and the next begins anew."""

from __future__ import annotations

import copy
import functools
import itertools
import random
import re
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from autobatch import Plan, Task
from autobatch.core.checkpoints import checkpoint_path
from autobatch.core.plan import Config
from autobatch.core.segment import TrainSegment
from autobatch.devices import open_device
from autobatch.errors import CheckpointError, TaskError
from autobatch.tasks import object_writer
from autobatch.worker import training, trial_state
from autobatch.worker.carried_state import objects_of, plain_of
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.trial_state import read_checkpoint, restore_trainer

PLAN = Plan(batch_size=8)


def blobs(seed: int = 0) -> TensorDataset:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


def segment(start: int, until: int, trial: int = 0) -> TrainSegment:
    config = Config(plan=PLAN, lr=0.05)
    return TrainSegment(
        trial=trial, config=config, seed=1, start_step=start, until_step=until, total_steps=12, eval_batch_size=64
    )


def task(**changes: Any) -> Task:
    made: dict[str, Any] = {"model": Net, "train_data": blobs, "val_data": lambda: blobs(1)}
    return Task(**(made | changes))


def scores(made: Task, folder: Path, *legs: tuple[int, int], trial: int = 0, runner: Any = None) -> list[float]:
    """Of each leg, every one with a model of its own."""
    own = runner or TorchRunner(made, open_device("cpu"), checkpoints=folder)
    found = []
    for start, until in legs:
        result = own.advance(segment(start, until, trial))
        assert result.outcome == "ok", result.message
        assert result.score is not None
        found.append(result.score)
    if runner is None:
        own.close()
    return found


def weights(folder: Path, trial: int = 0) -> Tensor:
    state = read_checkpoint(checkpoint_path(folder, trial, 12))["model"]
    return torch.cat([value.double().flatten() for value in state.values()])


def assert_legs_equal_one(made: Task, folder: Path) -> None:
    runner = TorchRunner(made, open_device("cpu"), checkpoints=folder)
    (whole,) = scores(made, folder, (0, 12), runner=runner)
    legs = scores(made, folder, (0, 3), (3, 7), (7, 12), trial=1, runner=runner)
    assert legs[-1] == whole
    assert torch.equal(weights(folder, 1), weights(folder))
    assert scores(made, folder, (0, 12), trial=2, runner=runner) == [whole]  # nothing is left over from the others
    runner.close()


class Net(nn.Module):
    """A model whose loss has a weight that what it keeps decides: what is lost shows in weights and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 2)
        self.prepare()

    def prepare(self) -> None: ...

    def note(self, x: Tensor) -> None: ...

    def strength(self) -> Tensor | float:
        return 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.note(x.detach())
        scores: Tensor = self.net(x) * (1 + 0.01 * self.strength())
        return scores


class Counter(Net):
    """`counter.py`."""

    def prepare(self) -> None:
        self.seen = 0

    def note(self, x: Tensor) -> None:
        self.seen += 1

    def strength(self) -> float:
        return self.seen


class Bank(Net):
    def prepare(self) -> None:
        self.bank = torch.zeros(4, 5)
        self.at = torch.tensor(0)

    def note(self, x: Tensor) -> None:
        self.bank[int(self.at) % 4] = x.mean(dim=0)
        self.at += 1

    def strength(self) -> Tensor:
        return self.bank.abs().sum()


class Rolled(Net):
    """A queue that is bound anew at each step, and grows at first."""

    def prepare(self) -> None:
        self.queue = torch.empty(0, 5)

    def note(self, x: Tensor) -> None:
        self.queue = torch.cat([self.queue, x])[-20:]

    def strength(self) -> Tensor:
        return self.queue[:3].sum()


class Lists(Net):
    def prepare(self) -> None:
        self.history: dict[str, Any] = {"means": [], "last": deque(maxlen=3), "by": defaultdict(list)}
        self.pair = (0, [1.0])
        self.names: set[str] = set()

    def note(self, x: Tensor) -> None:
        self.history["means"].append(x.mean())
        self.history["last"].append(float(x.sum()))
        self.history["by"][len(self.names) % 2].append(np.float64(x.max()))
        self.pair = (self.pair[0] + 1, [*self.pair[1], float(self.pair[0])])
        self.names.add(f"step {self.pair[0]}")

    def strength(self) -> Any:
        held = self.history
        return (
            sum(held["means"], torch.zeros(()))
            + sum(held["last"])
            + sum(self.pair[1])
            + len(self.names)
            + sum(map(sum, held["by"].values()))
        )


class Arrays(Net):
    def prepare(self) -> None:
        self.counts = np.zeros(5)
        self.draws = np.random.default_rng(3)
        self.python = random.Random(4)
        self.torch = torch.Generator().manual_seed(5)

    def note(self, x: Tensor) -> None:
        self.counts += x.mean(dim=0).numpy()
        self.counts += self.draws.normal() + self.python.random() + float(torch.rand((), generator=self.torch))

    def strength(self) -> float:
        return float(self.counts.sum())


class Meter:
    """An object of the user's, as `AverageMeter` in many a training script; one with slots inside."""

    class Inner:
        __slots__ = ("count", "total")

        def __init__(self) -> None:
            self.total, self.count = 0.0, 0

    def __init__(self) -> None:
        self.inner = Meter.Inner()

    def update(self, value: float) -> None:
        self.inner.total += value
        self.inner.count += 1


class Meters(Net):
    def prepare(self) -> None:
        self.meters = {"x": Meter()}
        self.latest: Meter | None = None

    def note(self, x: Tensor) -> None:
        if self.latest is None:
            self.latest = Meter()  # made in training: there is none in a new model
        self.latest.update(float(x.max()))
        self.meters["x"].update(float(x.mean()))

    def strength(self) -> float:
        return sum(meter.inner.total * meter.inner.count for meter in (self.meters["x"], self.latest) if meter)


class Hidden(Net):
    """A teacher that no module registers, so that its weights are not trained, moved through `.data`."""

    def prepare(self) -> None:
        self.teacher = [copy.deepcopy(self.net)]

    def note(self, x: Tensor) -> None:
        for mine, theirs in zip(self.net.parameters(), self.teacher[0].parameters(), strict=True):
            theirs.data.mul_(0.9).add_(mine.data, alpha=0.1)

    def strength(self) -> Tensor:
        return self.teacher[0].weight.detach().sum()


class LateTeacher(Net):
    def prepare(self) -> None:
        self.holder: dict[str, Any] = {}

    def note(self, x: Tensor) -> None:
        if "teacher" not in self.holder:
            self.holder["teacher"] = copy.deepcopy(self.net)
        for mine, theirs in zip(self.net.parameters(), self.holder["teacher"].parameters(), strict=True):
            theirs.data.lerp_(mine.data, 0.1)

    def strength(self) -> Any:
        return self.holder["teacher"].weight.detach().sum() if self.holder else 0.0


class Buffers(Net):
    """A buffer that is not persistent, one that grows, and one that is there only later."""

    later: Tensor | None
    scratch: Tensor
    grown: Tensor

    def prepare(self) -> None:
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("grown", torch.zeros(1))
        self.register_buffer("later", None)

    def note(self, x: Tensor) -> None:
        self.scratch += x.mean()
        self.grown = torch.cat([self.grown, x.mean()[None]])
        self.later = x.sum() if self.later is None else self.later + x.sum()

    def strength(self) -> Tensor:
        return self.scratch.sum() + self.grown.sum() + (0 if self.later is None else self.later)


class OfTheClass(Net):
    seen = 0

    def note(self, x: Tensor) -> None:
        OfTheClass.seen += 1

    def strength(self) -> float:
        return OfTheClass.seen


class ExtraState(Net):
    """State that a module gives by itself, an object in it."""

    def prepare(self) -> None:
        self.meter = Meter()

    def get_extra_state(self) -> Any:
        return {"meter": self.meter, "kind": "mean"}

    def set_extra_state(self, state: Any) -> None:
        self.meter = state["meter"]

    def note(self, x: Tensor) -> None:
        self.meter.update(float(x.mean()))

    def strength(self) -> float:
        return self.meter.inner.total


class Slotted:
    """Has a private name in a slot, which Python stores with the name of the class."""

    __slots__ = ("__count", "phase")

    def __init__(self) -> None:
        self.__count = 0
        self.phase = torch.ones(2, dtype=torch.complex64).conj()

    def add(self) -> None:
        self.__count += 1
        self.phase = (self.phase * 1j).conj()

    def strength(self) -> float:
        return self.__count + float(self.phase.real.sum())


class WithSlots(Net):
    def prepare(self) -> None:
        self.slotted = Slotted()

    def note(self, x: Tensor) -> None:
        self.slotted.add()

    def strength(self) -> Tensor | float:
        return self.slotted.strength()


def refused(*given: Any, **named: Any) -> Any:
    raise TypeError("it is frozen")


class FrozenOrder(OrderedDict[str, float]):
    """As the configuration of a diffusers model: its own methods refuse every change."""

    update = clear = pop = setdefault = __setitem__ = __delitem__ = __setattr__ = refused


class FrozenDict(dict[str, float]):
    update = clear = pop = setdefault = __setitem__ = __delitem__ = refused
    keys = values = items = __iter__ = refused


class FrozenDefault(defaultdict[str, float]):
    def __init__(self, named: str) -> None:
        super().__init__(float)

    update = clear = __setitem__ = refused


class FrozenList(list[float]):
    extend = append = clear = __setitem__ = __iter__ = refused


class FrozenDeque(deque[float]):
    def __init__(self, most: int, named: str) -> None:
        super().__init__(maxlen=most)

    extend = append = clear = refused


class FrozenSet(set[float]):
    def __new__(cls, named: str) -> FrozenSet:
        return super().__new__(cls)

    def __init__(self, named: str) -> None:
        super().__init__()

    update = add = clear = refused


class Frozen(Net):
    """Containers whose methods are of the user's; one of each is there from the beginning, one is made in training."""

    def prepare(self) -> None:
        self.held = self.made()
        self.later: tuple[Any, ...] | None = None

    @staticmethod
    def made() -> tuple[Any, ...]:
        return (
            FrozenOrder(), FrozenDict(), FrozenDefault("it"), FrozenList(), FrozenDeque(2, "it"), FrozenSet("it"),
        )  # fmt: skip

    def note(self, x: Tensor) -> None:
        if self.later is None:
            self.later = self.made()
        for order, plain, default, items, last, names in (self.held, self.later):
            size = len(order)
            OrderedDict.__setitem__(order, f"{size}", float(x.mean()))
            OrderedDict.move_to_end(order, "0")
            dict.__setitem__(plain, f"{size}", float(x.max()))
            defaultdict.__setitem__(default, f"{size}", default.default_factory() + size)
            list.append(items, float(x.min()))
            deque.append(last, float(x.sum()))
            set.add(names, float(size))

    def strength(self) -> float:
        order, plain, default, items, last, names = self.held
        sums = [sum(dict.values(plain)), sum(default.values()), sum(list.__iter__(items)), sum(last), sum(names)]
        return sum(map(float, sums)) + sum(place * float(held) for place, held in enumerate(order.values()))


MODELS = [
    Counter, Bank, Rolled, Lists, Arrays, Meters, Hidden, LateTeacher, Buffers, OfTheClass, ExtraState,
    WithSlots, Frozen,
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_what_a_module_keeps_goes_on(model: Any, tmp_path: Path) -> None:
    assert_legs_equal_one(task(model=model), tmp_path)


def test_the_counter_of_the_issue_counts_on(tmp_path: Path) -> None:
    made = task(model=Counter, metric=lambda model, batch: torch.tensor(float(model.seen)))
    assert scores(made, tmp_path, (0, 3), (3, 7), (7, 12)) == [3.0, 7.0, 12.0]


# Outside of the model: a second optimizer, globals, closures, objects


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.judge = nn.Linear(5, 2), nn.Linear(5, 1)
        self.second = torch.optim.Adam(self.judge.parameters(), 0.01)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.second, 3, gamma=0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x) * torch.sigmoid(self.judge(x))
        return scores


def of_two(model: Any, batch: Any, scale: float) -> Tensor:
    x, y = batch
    judged = model.judge(x).square().mean()
    model.second.zero_grad()
    judged.backward()
    model.second.step()
    model.schedule.step()
    model.second.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    (loss * scale).backward()
    return loss.detach()


def test_a_second_optimizer_with_a_schedule_goes_on(tmp_path: Path) -> None:
    made = task(
        model=Gan, training_step=of_two, optimizer=lambda model, lr: torch.optim.Adam(model.net.parameters(), lr)
    )
    assert_legs_equal_one(made, tmp_path)


late: Any = None
steps = 0
book: dict[str, Any] = {"losses": [], "optimizer": None}
settings = SimpleNamespace(strength=1.0)  # of Python's own library: an object like any other


def with_globals(model: nn.Module, batch: Any, scale: float) -> Tensor:
    global late, steps
    if late is None:
        late = copy.deepcopy(model)
    if book["optimizer"] is None:
        book["optimizer"] = torch.optim.Adam(late.parameters(), 0.01)
    steps += 1
    x, y = batch
    pull = nn.functional.mse_loss(model(x), late(x))
    loss: Tensor = nn.functional.cross_entropy(model(x), y) + pull * steps + 0.01 * sum(book["losses"])
    (loss * scale).backward()
    book["losses"].append(float(loss.detach()))
    book["optimizer"].step()
    book["optimizer"].zero_grad()
    return loss.detach()


def test_globals_go_on_and_each_trial_begins_anew(tmp_path: Path) -> None:
    assert_legs_equal_one(task(training_step=with_globals), tmp_path)


def test_a_checkpoint_is_not_kept_in_memory_while_the_trial_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loss keeps may be large: a second copy of it for the whole segment may be one too many."""
    read: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def reading(path: Path, rank: int = 0) -> dict[str, Any]:
        state = read_checkpoint(path, rank)
        tensors = [*state["model"].values(), *state["carried"][0]["tensors"]]
        read.extend(map(weakref.ref, tensors))
        return state

    def looking(trainer: training.Trainer, batches: Any) -> Tensor | None:
        alive.append(sum(tensor() is not None for tensor in read))
        return step(trainer, batches)

    step = training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", looking)
    monkeypatch.setattr("autobatch.worker.torch_runner.read_checkpoint", reading)
    monkeypatch.setattr(f"{__name__}.last", {"x": None})
    scores(task(loss=with_a_large_global), tmp_path, (0, 3), (3, 7))
    assert len(read) > 2  # with what the loss keeps
    assert alive == [0] * 7


large: list[Any] = []
last: dict[str, Any] = {"x": None}


def with_a_large_global(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    pull = 0.0 if last["x"] is None else 0.1 * (model(x) * last["x"]).mean()
    last["x"] = x[:, :2].clone()
    return nn.functional.cross_entropy(model(x), y) + pull + 0 * len(large)


@pytest.mark.filterwarnings("ignore:the global `large`")
def test_what_comes_after_a_global_that_is_too_large_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_writer, "_MOST_OBJECTS", 500)
    monkeypatch.setattr(f"{__name__}.large", [[number] for number in range(1_000)])
    assert_legs_equal_one(task(loss=with_a_large_global), tmp_path)


def counting_loss() -> Callable[[nn.Module, Any], Tensor]:
    seen, past = 0, [0.0]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal seen
        seen += 1
        value = nn.functional.cross_entropy(model(batch[0]), batch[1]) * (1 + 0.01 * seen + 0.01 * sum(past))
        past.append(float(value.detach()))
        return value

    return loss


class Centered(nn.Module):
    """A loss that is a module with a buffer, as DINO's."""

    def __init__(self) -> None:
        super().__init__()
        self.center = nn.Buffer(torch.zeros(2))

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0])
        self.center = 0.9 * self.center + 0.1 * scores.detach().mean(dim=0)
        return nn.functional.cross_entropy(scores - self.center, batch[1])


class Shadow:
    """An EMA without a `state_dict`, which the score is taken of, and which pulls the weights."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def update(self, model: nn.Module, step: int) -> None:
        for name, value in model.named_parameters():
            mean = self.kept.setdefault(name, value.detach().clone())
            mean.lerp_(value.detach(), 0.2)
            value.data.lerp_(mean, 0.1)

    __call__ = update

    def score(self, model: nn.Module, loader: Any) -> float:
        return float(sum(value.sum() for value in self.kept.values()))


class Teacher(nn.Module):
    """A net and torch's average of it, which the first step makes and which is found by no walk over modules."""

    teacher: Any

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 2)
        object.__setattr__(self, "teacher", None)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = (self.teacher if self.teacher and not self.training else self.net)(x)
        return made


def average(model: nn.Module, step: int) -> None:
    assert isinstance(model, Teacher)
    if model.teacher is None:
        object.__setattr__(model, "teacher", AveragedModel(model.net, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
    model.teacher.update_parameters(model.net)


def test_a_function_made_in_training_is_made_anew_with_what_it_closes_over(tmp_path: Path) -> None:
    assert_legs_equal_one(task(model=Teacher, after_step=average), tmp_path)


def scaled(factor: float) -> Callable[..., float]:
    def by(value: float, *, more: float = 3.0) -> float:
        return factor * value + more

    return by


def two_on_a_line(factor: float) -> tuple[Callable[[float], float], ...]:
    return (lambda value: factor * value), (lambda value: factor + value)  # fmt: skip


def test_a_closure_is_written_as_data_and_made_of_the_code_that_is_there() -> None:
    read = objects_of(plain_of({"one": scaled(2.0), "other": scaled(5.0)}))
    assert [read["one"](1.0), read["other"](1.0), read["one"](1.0, more=0.0)] == [5.0, 8.0, 2.0]
    assert objects_of(plain_of({"one": two_on_a_line(2.0)[0]})) == {"one": None}  # which of them cannot be told


def test_closures_modules_and_objects_go_on(tmp_path: Path) -> None:
    assert_legs_equal_one(task(loss=counting_loss()), tmp_path / "closure")
    assert_legs_equal_one(task(loss=Centered()), tmp_path / "module")
    assert_legs_equal_one(task(loss=functools.partial(weighed, {"at": 0})), tmp_path / "partial")
    shadow = Shadow()
    assert_legs_equal_one(task(after_step=shadow, evaluate=shadow.score), tmp_path / "object")
    assert_legs_equal_one(task(after_step=shadow.update, evaluate=shadow.score), tmp_path / "method")


class Doubling:
    """A collate that keeps a count, by which it weighs what it gathers."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, samples: list[Any]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        x, y = zip(*samples, strict=True)
        return torch.stack(x) * (1 + 0.1 * self.calls), torch.stack(y)


gathered = 0


def rolling(samples: list[Any]) -> tuple[Tensor, Tensor]:
    global gathered
    gathered += 1
    x, y = zip(*samples, strict=True)
    return torch.stack(x).roll(gathered, dims=1), torch.stack(y)


@pytest.mark.parametrize("collate", [Doubling(), rolling])
def test_what_collate_keeps_goes_on_and_each_trial_begins_anew(collate: Any, tmp_path: Path) -> None:
    assert_legs_equal_one(task(collate=collate), tmp_path)


def weighed(state: dict[str, int], model: nn.Module, batch: Any) -> Tensor:
    state["at"] += 1
    return nn.functional.cross_entropy(model(batch[0]), batch[1]) * state["at"]


def test_what_a_data_function_tells_the_loss_is_there_in_every_trial(tmp_path: Path) -> None:
    def train_data() -> TensorDataset:
        told["scale"] = 2.0
        return blobs()

    assert_legs_equal_one(task(train_data=train_data, loss=scaled_by_data), tmp_path)


told: dict[str, float] = {}


def scaled_by_data(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1]) * told["scale"]


# Optimizers


order = itertools.count()


def other_order(values: list[Any]) -> list[Any]:
    """Another order at each call, as a set of objects has another in each process."""
    shift = next(order) % len(values)
    return values[shift:] + values[:shift]


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))


def shuffled(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """`sets.py`: shapes that agree, and parameters that come in another order each time."""
    return torch.optim.AdamW(other_order(list(model.parameters())), lr=lr)


def shuffled_groups(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    groups = [
        {"params": other_order(list(layer.parameters())), "lr": lr * (at + 1), "name": str(at)}
        for at, layer in enumerate(model.children())
        if any(True for _ in layer.parameters())
    ]
    return torch.optim.AdamW(other_order(groups), lr=lr)


def by_group(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    def rate(at: int, step: int) -> float:
        return 1 / (1 + at * step)

    rates: Any = [functools.partial(rate, int(group["name"])) for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rates)


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total_steps + 1)


def in_turn(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    kinds = torch.optim.lr_scheduler
    parts = [kinds.LinearLR(optimizer, total_iters=3), kinds.CosineAnnealingLR(optimizer, 9)]
    return kinds.SequentialLR(optimizer, parts, [3])


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        *((shuffled, schedule) for schedule in (None, in_turn)),
        *((shuffled_groups, schedule) for schedule in (None, by_group, one_cycle, in_turn)),
    ],
)
def test_state_goes_to_the_parameter_it_is_of(optimizer: Any, scheduler: Any, tmp_path: Path) -> None:
    assert_legs_equal_one(task(model=deep, optimizer=optimizer, scheduler=scheduler), tmp_path)


class Unfreezing(nn.Module):
    """The body joins at step 5: thawed, and with a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 2)
        self.body.requires_grad_(False)
        self.optimizer: Any = None

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores


def of_head(model: Any, lr: float) -> torch.optim.Optimizer:
    model.optimizer = torch.optim.AdamW(model.head.parameters(), lr)
    return model.optimizer  # type: ignore[no-any-return]


def thaw(model: Any, step: int) -> None:
    if step == 4:
        model.body.requires_grad_(True)
        model.optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.01})


def test_a_group_that_is_added_in_training_and_what_was_thawed_go_on(tmp_path: Path) -> None:
    assert_legs_equal_one(task(model=Unfreezing, optimizer=of_head, after_step=thaw), tmp_path)


class Sam(torch.optim.Optimizer):
    """One optimizer around another, whose state its own `state_dict` leaves out; both share their groups."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.Adam(self.param_groups, lr)
        self.param_groups = self.base.param_groups
        self.taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        self.base.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1 - 0.001 * self.taken)


def test_one_optimizer_around_another_goes_on(tmp_path: Path) -> None:
    made = task(optimizer=lambda model, lr: Sam(model.parameters(), lr), scheduler=in_turn)
    assert_legs_equal_one(made, tmp_path)


def test_a_checkpoint_is_plain_data_and_the_optimizers_state_has_names(tmp_path: Path) -> None:
    scores(task(model=Lists, optimizer=shuffled), tmp_path, (0, 12))
    state = torch.load(checkpoint_path(tmp_path, 0, 12), weights_only=True)
    assert "parameter net.weight" in state["carried"][0]["text"]


# Checkpoints of before


def of_before(made: Task, folder: Path) -> Path:
    """A checkpoint of step 3 as it was written when optimizer state was kept by position."""
    runner = TorchRunner(made, open_device("cpu"), checkpoints=folder)
    runner.advance(segment(0, 3))
    runner.close()
    path = checkpoint_path(folder, 0, 3)
    again = TorchRunner(made, open_device("cpu"), checkpoints=folder)
    state = read_checkpoint(path)
    trainer = again._trainer(segment(0, 3).config, seed=1, total_steps=12)
    restore_trainer(trainer, state)
    again.close()
    old = {name: value for name, value in state.items() if name not in ("carried", "extra")}
    torch.save(old | {"optimizer": trainer.optimizer.state_dict(), "rng": state["rng"][0]}, path)
    return folder


def adamw_groups(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    layers = [layer for layer in model.children() if list(layer.parameters())]
    return torch.optim.AdamW([{"params": list(layer.parameters())} for layer in layers], lr)


def test_a_checkpoint_of_before_goes_on_where_position_says_enough(tmp_path: Path) -> None:
    plain = task(model=deep, scheduler=in_turn)
    (whole,) = scores(plain, tmp_path / "whole", (0, 12))
    assert scores(plain, of_before(plain, tmp_path / "legs"), (3, 12)) == [whole]
    groups = task(model=deep, optimizer=adamw_groups)
    runner = TorchRunner(groups, open_device("cpu"), checkpoints=of_before(groups, tmp_path / "groups"))
    with pytest.raises(CheckpointError, match=r"kept the optimizer's state by position.*start a new run"):
        runner.advance(segment(3, 12))
    runner.close()


# What cannot be kept is told


class Iterates(Net):
    def prepare(self) -> None:
        self.strengths = self.rising()

    @staticmethod
    def rising() -> Iterator[float]:
        yield from itertools.count()

    def note(self, x: Tensor) -> None:
        next(self.strengths)


class SaysItself(Iterates):
    def get_extra_state(self) -> Any:
        return 3

    def set_extra_state(self, state: Any) -> None:
        self.strengths = islice(self.rising(), state, None)


def test_what_cannot_be_kept_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_state, "_WARNED", set())
    runner = TorchRunner(task(model=Iterates), open_device("cpu"), checkpoints=tmp_path)
    named = "`Iterates.strengths` changes in training and cannot be kept in a checkpoint"
    (warning,) = runner.facts().warnings
    assert warning.startswith(f"{named}, so `tune` pauses no trial: each is trained in one go")
    assert not runner.facts().is_pausable
    runner.advance(segment(0, 12))  # to its end: warnings are errors here
    with pytest.warns(UserWarning, match=f"{named}, so a trial that is paused goes on without"):
        runner.advance(segment(0, 3, trial=1))
    runner.close()


@pytest.mark.parametrize("model", [Net, Counter, SaysItself])
def test_what_is_kept_can_be_paused(model: Any, tmp_path: Path) -> None:
    runner = TorchRunner(task(model=model), open_device("cpu"), checkpoints=tmp_path)
    assert runner.facts().is_pausable
    runner.close()


class Replays(Net):
    """Keeps what it has seen, an object for each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = [[number] for number in range(1_000)]


class ReplaysLater(Net):
    """The same, from when it has been trained for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[int]] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(self.seen) < 2_000:
            self.seen |= {len(self.seen) + number: [number] for number in range(300)}
        return super().forward(x)


class ReplaysAndSays(Replays):
    def get_extra_state(self) -> Any:
        return len(self.seen)

    def set_extra_state(self, state: Any) -> None:
        self.seen = [[number] for number in range(state)]


def with_large(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 0 * len(large)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": Replays}, r"`Replays\.seen` \(a list of 1,000\) leads to more than"),
        ({"model": ReplaysLater}, r"`ReplaysLater\.seen` \(a dict of [\d,]+\) leads to more than"),
        ({"loss": with_large}, r"the global `large` \(a list of 1,000\) leads to more than"),
    ],
)
def test_what_is_too_large_to_be_kept_is_named_with_its_size(
    changes: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_state, "_WARNED", set())
    monkeypatch.setattr(object_writer, "_MOST_OBJECTS", 500)
    monkeypatch.setattr(f"{__name__}.large", [[number] for number in range(1_000)])
    runner = TorchRunner(task(**changes), open_device("cpu"), checkpoints=tmp_path)
    if changes.get("model") is not ReplaysLater:
        assert any(re.search(told, warning) for warning in runner.facts().warnings)
    with pytest.warns(UserWarning, match=rf"{told}.* keep a tensor or an array there, or give the module get_extra_st"):
        runner.advance(segment(0, 6))
    runner.close()


def test_a_module_that_says_its_large_state_itself_is_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_writer, "_MOST_OBJECTS", 500)
    runner = TorchRunner(task(model=ReplaysAndSays), open_device("cpu"), checkpoints=tmp_path)
    assert runner.facts().warnings == ()
    runner.close()


def test_an_optimizer_that_keeps_too_much_is_an_error_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remembers(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float) -> None:
            super().__init__(parameters, lr)
            self.steps = [[number] for number in range(1_000)]

    monkeypatch.setattr(object_writer, "_MOST_OBJECTS", 500)
    made = task(optimizer=lambda model, lr: Remembers(model.parameters(), lr))
    runner = TorchRunner(made, open_device("cpu"), checkpoints=tmp_path)
    with pytest.raises(TaskError, match=r"`Remembers\.steps` cannot be kept in a checkpoint: it leads to more than"):
        runner.advance(segment(0, 3))
    runner.close()


@pytest.mark.parametrize("model", [Net, *MODELS, SaysItself, deep])
def test_what_is_kept_is_no_warning(model: Any, tmp_path: Path) -> None:
    runner = TorchRunner(task(model=model), open_device("cpu"), checkpoints=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runner.facts().warnings == ()
        assert runner.advance(segment(0, 3)).outcome == "ok"
    runner.close()
