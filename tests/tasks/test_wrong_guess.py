"""A guess that the model does not run on is told as such, with the `sample=` to pass; layers that wait get a shape."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import autobatch
from autobatch.errors import DoesNotFit, TaskError
from autobatch.tasks.inputs import pickle_task, task_for_model, unpickle_task
from autobatch.tasks.wrong_guess import explained

pytestmark = pytest.mark.usefixtures("ready_python")


def lenet() -> nn.Sequential:
    """Made for images of 32 x 32, which its layers alone do not say."""
    return nn.Sequential(nn.Conv2d(3, 6, 5, 2), nn.ReLU(), nn.Conv2d(6, 8, 5, 2), nn.Flatten(), nn.Linear(200, 4))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[edge_index]
        return out


class Learned(nn.Module):
    """With a table of positions that is no embedding layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 4)
        self.places = nn.Parameter(torch.zeros(64, 4))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.tokens(ids) + self.places
        return out


def told_of(model: nn.Module, **given: Any) -> str:
    """What is said where the guess was tried and something came of it."""
    task, assumed = task_for_model(model, **given)
    return str(explained(task, assumed[0], TaskError("the check failed")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lenet,
            r"Sequential does not run on .*: an image is 3 x 224 x 224, .*RuntimeError: mat1 and mat2 .*Pass sample=",
        ),
        (
            lenet,
            r"without a batch dimension, such as sample=torch\.zeros\(3, 32, 32\), on which it runs; or data=, ",
        ),
        (lambda: lenet().to(torch.float64), r"such as sample=torch\.zeros\(3, 32, 32, dtype=torch\.float64\)"),
        (
            Learned,
            r"a sequence is 512 tokens.*such as sample=torch\.zeros\(64, dtype=torch\.int64\), on which it runs",
        ),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten(), nn.Linear(138, 2)), r"sample=torch\.zeros\(2, 50\)"),
        (Graph, r"missing 1 required .*'edge_index'. Pass sample=.*: here a tuple of x, edge_index, each without"),
    ],
    ids=["what", "which", "dtype", "tokens", "series", "two"],
)
def test_it_is_said_what_was_assumed_and_which_sample_to_pass(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(told_of(make()))


def test_the_hint_works() -> None:
    assert autobatch.find_max_batch(lenet(), torch.zeros(3, 32, 32), device="cpu", max_batch_size=4) == 4


def test_a_guess_that_the_model_runs_on_is_not_blamed() -> None:
    assert told_of(nn.Linear(4, 2)) == "the check failed"
    model = lenet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told_of(model)
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


class Nodes:
    """As a graph library's batch: neither a tensor nor a mapping."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: Any) -> Nodes:
        return Nodes(self.x.to(device))


class OfNodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, batch: Nodes) -> Tensor:
        out: Tensor = self.layer(batch.x)
        return out


def test_a_model_of_batches_that_are_objects_is_measured_with_their_loader() -> None:
    with pytest.raises(
        AssertionError, match=r"'Tensor' object has no attribute 'x'.*; or data=, your Dataset or DataLoa"
    ):
        raise AssertionError(told_of(OfNodes()))
    with pytest.raises(TaskError, match=r"found Nodes: of other kinds, such as graphs, pass data=, your DataLoader"):
        task_for_model(OfNodes(), Nodes(torch.zeros(4)))
    loader: DataLoader[Any] = DataLoader(
        [Nodes(torch.zeros(4)) for _ in range(6)],  # type: ignore[arg-type]
        collate_fn=lambda nodes: Nodes(torch.stack([node.x for node in nodes])),
    )
    assert autobatch.find_max_batch(OfNodes(), data=loader, device="cpu", isolate=False) == 6


def test_a_loss_that_needs_more_than_the_model_says_so() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    with pytest.raises(
        AssertionError, match=r"loss\(model, batch\) does not run .*RuntimeError: .*such as a pair \(x, y\)"
    ):
        raise AssertionError(told_of(nn.Linear(4, 3), loss=loss))


@pytest.mark.parametrize("isolate", [None, False])
def test_nobody_is_told_of_a_metric(isolate: bool | None) -> None:
    with pytest.warns(UserWarning, match="assumed: an image is .* pass sample="), pytest.raises(TaskError) as told:
        autobatch.find_max_batch(lenet(), device="cpu", isolate=isolate)
    assert "metric" not in str(told.value)
    assert "sample=torch.zeros(3, 32, 32)" in str(told.value)


def test_an_assumed_sample_that_does_not_fit_is_said_to_be_assumed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 256, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with (
        pytest.warns(UserWarning, match="assumed"),
        pytest.raises(
            DoesNotFit, match=r"It was assumed that an image is 3 x 224 x 224, .*: pass sample= where yours is"
        ),
    ):
        autobatch.find_max_batch(model, device="cpu", memory_limit="24MiB")


# -- layers that wait for their first batch --------------------------------------------------------------------------


def _lazy(*layers: Callable[[], nn.Module]) -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls lazy modules a new feature
        return nn.Sequential(*(layer() for layer in layers))


def test_layers_that_wait_get_the_shape_of_the_sample_and_the_users_go_on_waiting() -> None:
    model = _lazy(
        lambda: nn.LazyConv1d(4, 3), lambda: nn.LazyBatchNorm1d(), nn.Flatten, lambda: nn.LazyLinear(2)
    ).eval()
    model[3].train()
    state = torch.get_rng_state()
    task, told = task_for_model(model, torch.zeros(2, 9))
    assert torch.equal(torch.get_rng_state(), state)
    made: Any = task.model()
    assert (made[0].in_channels, made[1].num_features, made[3].in_features) == (2, 4, 28)
    assert [module.training for module in made] == [False, False, False, True]
    assert int(made[1].num_batches_tracked) == 0
    assert "LazyConv1d '0' has the shape that this sample gives it" in told
    assert isinstance(model[0], nn.LazyConv1d)
    assert isinstance(model[0].weight, nn.UninitializedParameter)
    assert isinstance(unpickle_task(pickle_task(task)).model(), nn.Sequential)


def test_a_lazy_head_behind_a_layer_that_says_what_it_takes_needs_no_sample() -> None:
    model = _lazy(lambda: nn.Conv2d(3, 4, 3, 4), lambda: nn.AdaptiveAvgPool2d(2), nn.Flatten, lambda: nn.LazyLinear(5))
    task, told = task_for_model(model)
    made: Any = task.model()
    assert made[3].in_features == 16
    assert told[0] == "an image is 3 x 224 x 224, for the first layer, Conv2d(3, ...)"


def test_a_lazy_model_is_measured() -> None:
    model = _lazy(lambda: nn.LazyLinear(8), nn.ReLU, lambda: nn.LazyLinear(2))
    assert autobatch.find_max_batch(model, torch.zeros(6), device="cpu", max_batch_size=4, isolate=False) == 4
    assert isinstance(model[0].weight, nn.UninitializedParameter)


def test_a_layer_that_waits_and_cannot_be_given_a_shape_is_named() -> None:
    with pytest.raises(
        TaskError, match=r"cannot be assumed \(LazyLinear '0' waits for its first batch\): pass sample="
    ):
        task_for_model(_lazy(lambda: nn.LazyLinear(2)))
    broken = _lazy(lambda: nn.LazyLinear(4), lambda: nn.Linear(5, 5))
    with pytest.raises(
        TaskError, match=r"LazyLinear '0' waits .*mat1 and mat2.*or run the model once on a batch before"
    ):
        task_for_model(broken, torch.zeros(6))


def test_a_model_of_several_inputs_whose_layers_say_nothing_is_asked_for_by_name() -> None:
    with pytest.raises(TaskError, match=r"here a tuple of input1, input2, each without a batch dimension"):
        task_for_model(nn.Bilinear(2, 2, 2))


# -- what a library says of a training that is not its own -----------------------------------------------------------


class Logs(nn.Linear):
    """As a LightningModule without a trainer: each thing that it logs is a warning."""

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn(
            "You are trying to `self.log()` but the `self.trainer` reference is not registered on the model yet. This "
            "is most likely because the model hasn't been passed to the `Trainer`",
            stacklevel=1,
        )
        return super().forward(x)


@pytest.mark.parametrize("isolate", [None, False])
def test_lightning_is_not_heard_about_its_trainer(isolate: bool | None, capfd: pytest.CaptureFixture[str]) -> None:
    found = autobatch.find_max_batch(Logs(4, 2), torch.zeros(4), device="cpu", max_batch_size=4, isolate=isolate)
    assert found == 4
    assert "self.trainer" not in capfd.readouterr().err


def test_it_is_heard_again_afterwards() -> None:
    autobatch.find_max_batch(Logs(4, 2), torch.zeros(4), device="cpu", max_batch_size=2, isolate=False)
    with pytest.warns(UserWarning, match="reference is not registered"):
        Logs(4, 2)(torch.zeros(1, 4))
