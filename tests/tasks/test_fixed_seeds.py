"""A seed that the user's code sets does not make the trials of several seeds one trial, and is told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, manual_seed, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from autobatch import Plan, Task
from autobatch.core.plan import Config
from autobatch.tasks.data import training_batches
from autobatch.tasks.fixed_seeds import fixed_seeds_undone, seeds_set, seeds_text
from autobatch.worker.check import check_inference, check_task
from autobatch.worker.training import Trainer

CPU = torch.device("cpu")


def blobs() -> TensorDataset:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 2))


def seeded_net() -> nn.Module:
    torch.manual_seed(42)
    return net()


def seeded_under_another_name() -> nn.Module:
    manual_seed(42)
    return net()


def seeded_all() -> nn.Module:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    return net()


def seeded_numpy() -> nn.Module:
    np.random.seed(7)
    return net()


def task(**changes: Any) -> Task:
    return Task(**({"model": net, "train_data": blobs, "val_data": blobs} | changes))


def losses(task: Task, seed: int, steps: int = 3) -> list[float]:
    """Of steps on one and the same batch, so that only what the trial draws can tell two seeds apart."""
    trainer = Trainer(task, Config(plan=Plan(batch_size=8), lr=0.1), CPU, seed=seed, total_steps=8)
    batch = [part[:8] for part in blobs().tensors]
    return [float(trainer.step(iter([batch]))) for _ in range(steps)]  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [seeded_net, seeded_under_another_name, seeded_all, seeded_numpy, net])
def test_dropout_differs_between_seeds_and_is_the_same_under_one(model: Any) -> None:
    made = task(model=model)
    assert losses(made, 1) != losses(made, 2)
    assert losses(made, 1) == losses(made, 1)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (seeded_net, r"torch.manual_seed\(42\): the initial weights are the same under every seed"),
        (seeded_under_another_name, r"torch.manual_seed\(42\): the initial weights are the same"),
        (seeded_all, r"random.seed\(1\), np.random.seed\(2\), torch.manual_seed\(3\): the initial weights"),
        (seeded_numpy, r"np.random.seed\(7\): what it draws from that generator is the same under every seed"),
    ],
)
def test_a_seed_in_model_is_a_warning(model: Any, said: str) -> None:
    (warning,) = check_task(task(model=model), CPU, 8).warnings
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(warning)


def test_a_seed_in_a_data_function_is_what_makes_a_split_one_split() -> None:
    def split() -> TensorDataset:
        torch.manual_seed(0)
        random.seed(0)
        return blobs()

    assert check_task(task(train_data=split, val_data=lambda: blobs()), CPU, 8).warnings == ()
    assert losses(task(train_data=split), 1) != losses(task(train_data=split), 2)


def seeded_loss(model: nn.Module, batch: Any) -> Tensor:
    torch.manual_seed(0)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class SeededSamples(Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        torch.manual_seed(index)
        return torch.randn(5), index % 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": seeded_loss}, "a training step sets a seed itself, torch.manual_seed(0)"),
        ({"train_data": SeededSamples}, "a sample of train_data() sets a seed itself, torch.manual_seed("),
    ],
)
def test_a_seed_in_a_step_or_a_sample_is_a_warning(changes: dict[str, Any], said: str) -> None:
    (warning,) = check_task(task(**changes), CPU, 8).warnings
    assert said in warning


def drawn(task: Task, seed: int, data: Any = None) -> list[float]:
    torch.manual_seed(seed)
    random.seed(seed)
    stream = training_batches(task, data, Plan(batch_size=8), seed=seed)
    return [float(torch.rand(())) + random.random() for _ in islice(stream, 9)]


def test_samples_that_set_a_seed_leave_the_trial_its_own_draws() -> None:
    assert drawn(task(), 1, SeededSamples()) != drawn(task(), 2, SeededSamples())
    # The order is the seed's too, so a step on the same samples is what tells: the dropout after sample 5.
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stream = training_batches(task(), Subset(SeededSamples(), [5] * 64), Plan(batch_size=1), seed=seed)
        next(stream)
        found.append(float(torch.rand(())))
    assert found[0] != found[1]


def fixed_function(batch_size: int, seed: int) -> list[Any]:
    torch.manual_seed(0)
    random.seed(0)
    return [[part[:batch_size] for part in blobs().tensors]] * 4


def fixed_generator(batch_size: int, seed: int) -> Iterator[Any]:
    torch.manual_seed(0)
    random.seed(0)
    for _ in range(4):
        yield [part[:batch_size] for part in blobs().tensors]


@pytest.mark.parametrize("loader", [fixed_function, fixed_generator])
def test_a_seed_in_the_loader_leaves_the_trial_its_own_draws(loader: Any) -> None:
    made = task(train_data=None, train_loader=loader)
    one, other = drawn(made, 1), drawn(made, 2)
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_a_loader_that_uses_the_seed_it_is_given_is_left_alone() -> None:
    def loader(batch_size: int, seed: int) -> list[Any]:
        torch.manual_seed(seed)
        return [[part[:batch_size] for part in blobs().tensors]] * 4

    made = task(train_data=None, train_loader=loader)
    torch.manual_seed(5)
    next(training_batches(made, None, Plan(batch_size=8), seed=11))
    assert torch.initial_seed() == 11
    assert not any("seed" in warning for warning in check_task(made, CPU, 8).warnings)


def test_setting_seeds_works_as_before_inside_and_afterwards() -> None:
    functions = (random.seed, np.random.seed, torch.manual_seed)
    with seeds_set() as found:
        np.random.seed(seed=3)
        expected = float(np.random.rand())
    with pytest.raises(ValueError, match="between 0 and"), seeds_set():
        np.random.seed(-1)
    assert functions == (random.seed, np.random.seed, torch.manual_seed)
    assert found == {"np.random.seed": 3}
    assert seeds_text(found) == "np.random.seed(3)"
    np.random.seed(3)
    assert float(np.random.rand()) == expected
    with fixed_seeds_undone(9):
        np.random.seed(3)
    assert float(np.random.rand()) != expected


def test_a_seed_may_be_of_any_kind_and_is_never_compared() -> None:
    with seeds_set() as found:
        np.random.seed(np.arange(3))
        random.seed("a text")
        torch.manual_seed(np.int64(4))
    assert found == {"np.random.seed": None, "random.seed": None, "torch.manual_seed": 4}
    assert seeds_text(found) == "np.random.seed(...), random.seed(...), torch.manual_seed(4)"

    def loader(batch_size: int, seed: int) -> list[Any]:
        np.random.seed(np.arange(seed, seed + 3))
        return [[part[:batch_size] for part in blobs().tensors]] * 4

    made = task(train_data=None, train_loader=loader)
    np.random.seed(3)
    expected = float(np.random.rand())
    np.random.seed(3)
    next(training_batches(made, None, Plan(batch_size=8), seed=11))
    assert float(np.random.rand()) == expected


def forked_net(seed: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        noise = torch.randn(2)
    layers = net()
    layers.register_buffer("noise", noise)
    return layers


def test_the_commonest_seed_in_a_fork_is_not_warned_of() -> None:
    assert not any("seed" in warning for warning in check_task(task(model=lambda: forked_net(0)), CPU, 8).warnings)


class Drawn(TensorDataset):
    """Samples that are drawn under a seed of their own, in a fork of the generators or not."""

    def __init__(self, seed: int, *, forks: bool) -> None:
        super().__init__(*blobs().tensors)
        self.seed, self.forks = seed, forks

    def __getitem__(self, index: Any) -> Any:
        with torch.random.fork_rng(devices=[], enabled=self.forks):
            torch.manual_seed(self.seed)
            return super().__getitem__(index)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("forks", [True, False])
def test_the_check_of_inference_tells_the_same_seeds(seed: int, forks: bool) -> None:
    data = Drawn(seed, forks=forks)
    made = task(train_data=lambda: data)
    trained, ran = check_task(made, CPU, 8).warnings, check_inference(made, lambda name: data)
    assert any(f"torch.manual_seed({seed})" in warning for warning in ran) == (not forks)
    assert [warning for warning in trained if "manual_seed" in warning] == list(ran)


def test_a_seed_that_is_put_back_fixes_nothing_outside() -> None:
    with seeds_set() as found:
        forked_net()
    assert found == {}
    made = task(model=forked_net)
    assert not any("seed" in warning for warning in check_task(made, CPU, 8).warnings)
    config = Config(plan=Plan(batch_size=8), lr=1e-2)
    first, second = (Trainer(made, config, CPU, seed=seed, total_steps=4).model for seed in (1, 2))
    assert not torch.equal(first.get_parameter("0.weight"), second.get_parameter("0.weight"))
