"""A guarded batch has the gradient of the whole batch, wherever memory runs out, and a failed attempt leaves no trace.

Run as a program, this file is one rank of two: `python -m tests.guarding.test_guard RANK FILE_TO_MEET_IN`.
"""

from __future__ import annotations

import copy
import gc
import math
import os
import random
import re
import sys
import textwrap
import warnings
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_sequence

from autobatch import Task, oom_safe
from autobatch.devices.environment import worker_environment
from autobatch.errors import AutobatchError, DoesNotFit, SettingError, TaskError
from autobatch.guarding.guard import OomSafeBackward

from ..helpers.ready_python import Started, run
from ..helpers.transformers_like import Images, Language, Output, Tokens, sentences

pytestmark = pytest.mark.usefixtures("ready_python")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def fast_garbage_collection() -> Iterator[None]:
    """Leave what has been imported out of the collections that follow each halving: there are many here."""
    gc.freeze()
    yield
    gc.unfreeze()


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Sample:
    inputs: dict[str, Tensor]
    target: Tensor
    names: tuple[str, ...]


class Net(nn.Module):
    """Parameters that are used, one that is not, and what may run out of memory in the backward pass between them."""

    def __init__(self, most: float = math.inf) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        self.unused = nn.Parameter(torch.zeros(2))
        self.bomb = Bomb(most, self.above.weight)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.above(self.bomb(torch.tanh(self.below(x))))
        return scores


class Bomb(nn.Module):
    """The identity, whose backward pass has memory for `most` samples.

    Attributes:
        partial: for each backward pass, whether the parameter `above` had its gradient already.
    """

    def __init__(self, most: float, above: Tensor | None = None) -> None:
        super().__init__()
        self.most, self.watched, self.partial = most, [above], list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.clone()
            x.register_hook(self._explode)
        return x

    def _explode(self, gradient: Tensor) -> None:
        self.partial.extend(above.grad is not None for above in self.watched if above is not None)
        if len(gradient) > self.most:
            raise torch.OutOfMemoryError("in the backward pass")


def samples(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(2, (count,), generator=generator)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def refuse_above(most: int, loss: Callable[[nn.Module, Any], Tensor] = cross_entropy) -> Callable[..., Tensor]:
    """The loss, on a device with memory for `most` samples: it runs out when the forward pass is done."""

    def limited(model: nn.Module, batch: Any) -> Tensor:
        value = loss(model, batch)
        if len(batch[0]) > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(batch[0])} GiB\nand more words")
        return value

    return limited


def gradients(model: nn.Module) -> list[Any]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def plain(model: nn.Module, batch: Any, loss: Callable[..., Tensor] = cross_entropy) -> tuple[Tensor, list[Any]]:
    """The loss of the whole batch and its gradients, on a copy."""
    model = copy.deepcopy(model)
    model.zero_grad()
    value = loss(model, batch)
    value.backward()
    return value.detach(), gradients(model)


@contextmanager
def halvings(count: int) -> Iterator[None]:
    """Exactly so many warnings of a halving, and no others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert ["memory ran out with" in str(warning.message) for warning in caught] == [True] * count


STRUCTURES: dict[str, tuple[Callable[..., Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "tuple": (lambda x, y: (x, y), lambda b: (b[0], b[1])),
    "list": (lambda x, y: [x, y], lambda b: (b[0], b[1])),
    "named": (Pair, lambda b: (b.x, b.y)),
    "dict": (
        lambda x, y: {"y": y, "x": x, "temperature": torch.tensor(1.0)},
        lambda b: (b["x"] * b["temperature"], b["y"]),
    ),
    "mapping": (lambda x, y: UserDict({"x": x, "y": y}), lambda b: (b["x"], b["y"])),
    "dataclass": (
        lambda x, y: Sample({"x": x}, y, tuple(map(str, y.tolist()))),
        lambda b: (b.inputs["x"], torch.tensor(list(map(int, b.names))) + 0 * b.target),
    ),
    "arrays": (
        lambda x, y: (x, y.numpy(), "x" * len(x), ["of", "another", "length"] * len(x)),
        lambda b: (b[0] + 0 * len(b[2]) * len(b[3]), torch.from_numpy(b[1])),
    ),
    "nested": (
        lambda x, y: ({"images": [x[:, :2], x[:, 2:]]}, [[int(i)] for i in y]),
        lambda b: (torch.cat(b[0]["images"], dim=1), torch.tensor(b[1])[:, 0]),
    ),
}


@given(
    count=st.integers(1, 17),
    size=st.integers(1, 20),
    structure=st.sampled_from(sorted(STRUCTURES)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_the_gradient_is_that_of_the_whole_batch(count: int, size: int, structure: str, seed: int) -> None:
    build, take = STRUCTURES[structure]
    seen = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = take(batch)
        seen.append(len(x))
        return nn.functional.cross_entropy(model(x), y)

    model, batch = Net(), samples(count, seed)
    expected, expected_gradients = plain(model, batch)
    backward = oom_safe(model, loss, micro_batch_size=size)
    mean = backward(build(*batch))
    torch.testing.assert_close((mean, gradients(model)), (expected, expected_gradients))
    assert not mean.requires_grad
    asked, seen = seen[: -backward.accumulation_steps], seen[-backward.accumulation_steps :]
    assert asked in ([], [1, 2, 2, 2, 2])  # whether they are samples, where two lists of two could be anything
    assert sum(seen) == count
    assert max(seen) <= size
    assert max(seen) - min(seen) <= 1
    assert backward.accumulation_steps == len(seen) == math.ceil(count / size)
    assert (backward.micro_batch_size, backward.oom_count) == (size, 0)


@given(count=st.integers(2, 33), most=st.integers(1, 33), in_forward=st.booleans())
@settings(max_examples=60)
def test_a_batch_that_runs_out_of_memory_is_halved_until_it_fits(count: int, most: int, in_forward: bool) -> None:
    model, batch = Net(), samples(count)
    expected = plain(model, batch)
    sizes = [count]
    while math.ceil(count / math.ceil(count / sizes[-1])) > most:  # a batch is split evenly: 13 in sixes are 5, 4, 4
        sizes.append(sizes[-1] // 2)
    model.bomb.most = math.inf if in_forward else most
    backward = oom_safe(model, refuse_above(most) if in_forward else cross_entropy)
    with halvings(len(sizes) - 1):
        mean = backward(batch)
    torch.testing.assert_close((mean, gradients(model)), expected)
    assert backward.oom_count == len(sizes) - 1
    assert backward.accumulation_steps == math.ceil(count / sizes[-1])
    assert backward.micro_batch_size == (None if len(sizes) == 1 else sizes[-1])
    # What was found stays, and a batch that needs no splitting is not split.
    model.zero_grad()
    with halvings(0):
        backward(batch)
        torch.testing.assert_close(gradients(model), expected[1])
        backward(samples(1))
    assert backward.accumulation_steps == 1


def test_a_failure_in_the_backward_pass_leaves_no_partial_gradient() -> None:
    model = Net(most=0)
    with pytest.raises(DoesNotFit):
        oom_safe(model, cross_entropy)(samples(4))
    assert model.bomb.partial == [True, True, True]  # so there was something to leave
    assert gradients(model) == [None] * 5


def set_gradients(model: nn.Module) -> list[Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("most", [2, 100])
def test_gradients_that_were_there_are_added_to_in_place(most: int) -> None:
    model, batch = Net(), samples(7)
    tensors = set_gradients(model)
    before = gradients(model)
    backward = oom_safe(model, refuse_above(most))
    with halvings(0 if most > 7 else 2):
        backward(batch)
    added = [0.0 if gradient is None else gradient for gradient in plain(model, batch)[1]]
    expected = [there + gradient for there, gradient in zip(before, added, strict=True)]
    torch.testing.assert_close(gradients(model), expected)
    assert all(p.grad is tensor for p, tensor in zip(model.parameters(), tensors, strict=True))


def fails_in_the_second_micro_batch() -> Callable[..., Tensor]:
    calls = iter(range(100))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if next(calls) == 1:
            raise ZeroDivisionError("a bug")
        return cross_entropy(model, batch)

    return loss


@pytest.mark.parametrize(
    ("loss", "size", "error"),
    [(refuse_above(0), None, DoesNotFit), (fails_in_the_second_micro_batch(), 2, ZeroDivisionError)],
)
def test_gradients_that_were_there_come_back_when_it_fails(loss: Any, size: int | None, error: type[Exception]) -> None:
    model = Net()
    tensors = set_gradients(model)
    before = gradients(model)
    backward = oom_safe(model, loss, micro_batch_size=size)
    with pytest.raises(error):
        backward(samples(4))
    assert all(p.grad is tensor for p, tensor in zip(model.parameters(), tensors, strict=True))
    torch.testing.assert_close(gradients(model), before, rtol=0, atol=0)
    assert backward.micro_batch_size == size  # nothing was found


def test_an_error_that_is_no_out_of_memory_comes_through_as_it_is() -> None:
    bug = ValueError("a bug of the user's")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        cross_entropy(model, batch).backward()
        raise bug

    model = Net()
    with pytest.raises(ValueError, match="a bug of the user's") as caught:
        oom_safe(model, loss)(samples(4))
    assert caught.value is bug
    assert gradients(model) == [None] * 5


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def test_buffers_and_generators_are_as_if_the_found_size_had_been_tried_first() -> None:
    batch = samples(8)

    def noisy(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        model.register_buffer("last", torch.tensor(len(x)))  # another object each time
        return cross_entropy(model, (x + noise, y))

    def run(loss: Callable[..., Tensor], size: int | None) -> tuple[Any, ...]:
        random.seed(5)
        np.random.seed(5)
        model = normed()
        model.register_buffer("last", torch.tensor(0))
        backward = oom_safe(model, loss, micro_batch_size=size)
        mean, ooms = backward(batch), backward.oom_count
        assert ooms == (2 if size is None else 0)
        return mean, gradients(model), dict(model.named_buffers()), random.random(), np.random.rand(), torch.rand(3)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        halved = run(refuse_above(2, noisy), None)
    straight = run(noisy, 2)
    torch.testing.assert_close(halved, straight, rtol=0, atol=0)
    assert straight[2]["1.num_batches_tracked"] == 4
    different = run(noisy, 4)
    assert not torch.equal(different[2]["1.running_mean"], straight[2]["1.running_mean"])


def test_a_batch_that_does_not_fit_leaves_buffers_and_generators_as_they_were() -> None:
    model = normed()
    before, generator = copy.deepcopy(dict(model.named_buffers())), torch.get_rng_state()
    with pytest.raises(DoesNotFit):
        oom_safe(model, refuse_above(0, lambda model, batch: model(torch.cat([batch[0]] * 2)).sum()))(samples(4))
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)


def test_batch_norm_in_training_mode_is_warned_of_once() -> None:
    backward = oom_safe(normed(), refuse_above(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backward(samples(8))
        backward.micro_batch_size = None
        backward(samples(8))
    texts = [str(warning.message) for warning in caught]
    starts = ["memory ran out with 8", "memory ran out with 4"]
    assert [text[:21] for text in texts] == [*starts, "batch norm in trainin", *starts]
    assert re.match(r"batch norm in training mode \(1 layers, '1' the first\) now sees at most 2 samples", texts[2])
    assert all(warning.filename == __file__ for warning in caught)


def test_batch_norm_in_eval_mode_is_not_warned_of() -> None:
    model = normed().eval()
    backward = oom_safe(model, refuse_above(4))
    expected = plain(model, samples(8))
    with halvings(1):
        mean = backward(samples(8))
    torch.testing.assert_close((mean, gradients(model)), expected)


def test_a_warning_made_an_error_puts_all_back() -> None:
    model = Net()
    backward = oom_safe(model, refuse_above(4))
    with pytest.raises(UserWarning, match=r"8 samples at a time .*run 4 at a time"):  # pyproject.toml makes it one
        backward(samples(8))
    assert gradients(model) == [None] * 5
    assert backward.micro_batch_size is None


def test_tensors_of_a_failed_attempt_are_gone_before_the_next() -> None:
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        alive.append(sum(reference() is not None for reference in kept))
        activation = model(batch[0])
        kept.append(weakref.ref(activation))
        try:
            if len(batch[0]) > 2:
                raise torch.OutOfMemoryError
        except torch.OutOfMemoryError as error:
            error.add_note(str(activation.shape))
            activation.error = error  # a ring, which only the collector opens
            raise
        return nn.functional.cross_entropy(activation, batch[1])

    gc.disable()
    try:
        with halvings(2):
            oom_safe(Net(), loss)(samples(8))
    finally:
        gc.enable()
    assert alive[:3] == [0, 0, 0]
    assert len(kept) == 6


def test_an_error_holds_no_tensors_of_the_attempts() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        activation = model(batch[0])
        kept.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("first line\nsecond line")

    with pytest.raises(DoesNotFit) as caught:
        oom_safe(Net(), loss)(samples(5))
    assert [reference() for reference in kept] == [None] * 3
    assert caught.value.__cause__ is None
    assert str(caught.value) == (
        "not even one sample at a time fits: forward and backward ran out of memory with 5, 2, 1 at a time "
        "(OutOfMemoryError: first line). Free memory, or use shorter samples, a lower precision, activation "
        "checkpointing or a smaller model"
    )


UNSPLITTABLE: list[tuple[Any, str]] = [
    (pack_sequence([torch.zeros(3), torch.zeros(2)]), r"batch is a PackedSequence: pass split="),
    ((torch.zeros(4, 2), {"mask": torch.zeros(3)}), r"of 4 samples .*; batch\[1\]\['mask'\] has shape \(3,\)"),
    (Pair(torch.zeros(4, 2), torch.zeros(2, 2)), r"of 4 samples .*; batch\.y has shape \(2, 2\)"),
    ((torch.zeros(4, 2), nn.Linear(1, 1)), r"batch\[1\] is a Linear"),
    ((torch.zeros(4), np.zeros((1, 4))), r"batch\[1\] has shape \(1, 4\)"),
    ("no tensor at all", r"memory ran out \(OutOfMemoryError: \), and this batch cannot be split: .*found str"),
    (torch.tensor(1.0), r"memory ran out .*cannot be split"),
]


@pytest.mark.parametrize(("batch", "message"), UNSPLITTABLE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_batch_that_cannot_be_split_is_only_refused_where_it_must_be(batch: Any, message: str) -> None:
    full = False

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if full:
            raise torch.OutOfMemoryError
        scores: Tensor = model(torch.ones(1, 3).double())
        return scores.sum()

    model = Net()
    backward = oom_safe(model, loss)
    assert backward(batch) == model(torch.ones(1, 3).double()).sum()
    full = True
    with pytest.raises(TaskError, match=message):
        backward(batch)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    backward = oom_safe(Net(), lambda model, batch: model(batch[0]))
    with pytest.raises(TaskError, match=r"returns a scalar tensor, the mean over the batch; .*shape \(4, 2\)"):
        backward(samples(4))


def test_an_error_after_a_halving_says_that_there_was_one() -> None:
    backward = oom_safe(normed(), refuse_above(1))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        backward(samples(4))
    assert caught.value.__notes__ == [
        "oom_safe ran this batch 1 samples at a time, because memory ran out with 2 (OutOfMemoryError: CUDA out of "
        "memory. Tried to allocate 2 GiB)"
    ]


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {"model": Net, "train_data": lambda: None, "val_data": lambda: None}
    return Task(**(fields | changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulation": False}, r"couples the samples .*find_max_batch"),
        ({"loss": task(accumulation=False)}, r"couples the samples"),
        ({"loss": task(training_step=lambda model, batch, scale: None)}, r"does its own backward pass"),
        ({"loss": task(precision="fp16")}, r"needs scaler=torch.amp.GradScaler"),
        ({"micro_batch_size": 0}, r"at least 1, or None for whole batches; got 0"),
        ({"micro_batch_size": 2.5}, r"got 2.5"),
        ({"micro_batch_size": True}, r"got True"),
        ({"model": torch.relu}, r"model is a torch.nn.Module; got builtin"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_the_reason(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        oom_safe(**({"model": Net()} | arguments))


def test_a_size_set_later_is_checked_too() -> None:
    backward = oom_safe(Net())
    backward.micro_batch_size = -1
    with pytest.raises(SettingError, match="got -1"):
        backward(samples(4))


def test_a_sharded_model_is_refused() -> None:
    from torch.distributed.fsdp import FSDPModule

    layer = nn.Linear(2, 2)
    layer.__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})  # as fully_shard does it
    with pytest.raises(SettingError, match=r"sharded over ranks \(FSDP, DTensor\)"):
        oom_safe(nn.Sequential(layer))


def test_an_optimizer_in_the_backward_pass_is_refused() -> None:
    model = Net()
    model.below.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(SettingError, match="do it after backward"):
        oom_safe(model)(samples(4))


def test_a_task_brings_its_loss_and_its_precision() -> None:
    seen = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return cross_entropy(model, batch)

    backward = oom_safe(Net(), task(loss=loss, precision="bf16"), micro_batch_size=2)
    backward(samples(4))
    oom_safe(Net(), task(loss=loss))(samples(4))
    assert seen == [True, True, False]


def test_without_a_loss_it_is_the_cross_entropy() -> None:
    model, batch = Net(), samples(6)
    mean = oom_safe(model, micro_batch_size=4)(batch)
    torch.testing.assert_close((mean, gradients(model)), plain(model, batch))


def test_each_loss_is_scaled_for_fp16() -> None:
    model, batch = Net(), samples(5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    mean = oom_safe(model, cross_entropy, scaler=scaler, micro_batch_size=2)(batch)
    expected, expected_gradients = plain(model, batch)
    torch.testing.assert_close(mean, expected)
    scaled = [None if gradient is None else gradient * 8 for gradient in expected_gradients]
    torch.testing.assert_close(gradients(model), scaled)


@given(labels=st.lists(st.sampled_from([-100, 0, 1]), min_size=1, max_size=12), size=st.integers(1, 12))
def test_a_mean_over_tokens_is_weighted_by_their_count(labels: list[int], size: int) -> None:
    model, (x, _) = Net(), samples(len(labels))
    batch = (x, torch.tensor(labels))
    backward = oom_safe(model, cross_entropy, micro_batch_size=size, weight=lambda batch: (batch[1] != -100).sum())
    mean = backward(batch)
    torch.testing.assert_close((mean, gradients(model)), plain(model, batch), equal_nan=True)


@given(
    labels=st.lists(st.lists(st.sampled_from([-100, 0, 1]), min_size=3, max_size=3), min_size=2, max_size=9),
    size=st.integers(1, 9),
)
@settings(max_examples=40)
def test_the_default_loss_counts_its_labels_by_itself(labels: list[list[int]], size: int) -> None:
    class Words(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).movedim(-1, 1)

    model, y = Words(), torch.tensor(labels)
    x = torch.randn(*y.shape, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean = oom_safe(model, micro_batch_size=size)((x, y))
    expected, expected_gradients = plain(model, (x, y))
    torch.testing.assert_close((mean, gradients(model)), (expected.nan_to_num(0.0), expected_gradients))


@pytest.mark.parametrize("model", [Language(), Language(Output), Tokens(), Tokens(dict)], ids=repr)
@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_of_transformers_is_understood_and_counted_by_its_labels(model: nn.Module, size: int) -> None:
    batch = sentences(8, seed=size)
    model = copy.deepcopy(model).double()
    model.zero_grad()
    mean = oom_safe(model, micro_batch_size=size)(batch)
    expected = plain(model, batch, lambda model, batch: _loss(model(**batch)))
    torch.testing.assert_close((mean, gradients(model)), expected)


def _loss(output: Any) -> Tensor:
    loss: Tensor = output["loss"] if isinstance(output, dict) else output.loss
    return loss


def test_images_and_their_labels_in_a_mapping_are_split() -> None:
    model = Images()
    batch = {"pixel_values": torch.randn(6, 3, 2, 2), "labels": torch.tensor([0, 1, 2, 2, 1, 0])}
    expected = plain(model, batch, lambda model, batch: _loss(model(**batch)))
    backward = oom_safe(model, micro_batch_size=4)
    torch.testing.assert_close((backward(batch), gradients(model)), expected)
    assert backward.accumulation_steps == 2


def test_a_task_brings_its_weight() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([0.1, 3.0]).double())

    model, batch = Net(), samples(7)
    made = task(loss=loss, weight=lambda batch: torch.tensor([0.1, 3.0])[batch[1]].sum())
    mean = oom_safe(model, made, micro_batch_size=2)(batch)
    torch.testing.assert_close((mean, gradients(model)), plain(model, batch, loss), rtol=1e-6, atol=1e-6)


def test_what_a_loss_that_is_a_module_learns_is_guarded_too() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2).double())
            self.bomb = Bomb(2)

        def forward(self, model: nn.Module, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.bomb(model(batch[0])) * self.scale, batch[1])

    loss = Loss()
    expected = copy.deepcopy(loss)
    model, batch = Net(), samples(8)
    expected(Net(), batch)
    with torch.enable_grad():
        nn.functional.cross_entropy(Net()(batch[0]) * expected.scale, batch[1]).backward()
    with halvings(2):
        oom_safe(model, loss)(batch)
    torch.testing.assert_close(loss.scale.grad, expected.scale.grad)


def test_a_compiled_model_is_guarded_too() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2)).double()
    expected = plain(model, samples(8))
    compiled = torch.compile(model, backend="eager")
    with halvings(1):
        mean = oom_safe(compiled, refuse_above(4))(samples(8))  # type: ignore[arg-type]
    torch.testing.assert_close((mean, gradients(model)), expected)


REAL = """
import copy, resource, warnings
import torch
from torch import nn
import autobatch
from autobatch.devices import host_memory
from autobatch.devices.environment import count_exactly
from autobatch.devices.oom import is_out_of_memory

count_exactly()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10))
batches = [(torch.randn(1024, 64), torch.randint(10, (1024,))) for _ in range(3)]
twin = copy.deepcopy(model)
loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])

def train(model, backward):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches:
        backward(batch)
        optimizer.step()
        optimizer.zero_grad()

train(copy.deepcopy(model), lambda batch: loss(model, (batch[0][:1], batch[1][:1])).backward())  # what is made once
model.zero_grad()
soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (host_memory.process_memory()["VmData"] + (24 << 20), hard))
try:
    loss(model, batches[0]).backward()
    message = "it fitted"
except RuntimeError as error:
    assert is_out_of_memory(error)
    message = "refused"
print(message)
model.zero_grad()
backward = autobatch.oom_safe(model, loss)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    train(model, backward)
print(1 <= backward.oom_count == len(caught), backward.micro_batch_size == 1024 >> backward.oom_count)
resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
train(twin, lambda batch: loss(twin, batch).backward())
torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))
print("equal")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit on a CPU's memory is RLIMIT_DATA, of Linux")
def test_where_a_plain_step_is_refused_the_guarded_loop_trains_to_the_same_weights() -> None:
    environment = {**os.environ, **worker_environment(1), "PYTHONPATH": str(ROOT)}
    done = run([sys.executable, "-c", textwrap.dedent(REAL)], env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["refused", "True True", "equal", ""]


def test_the_code_on_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "training-loops.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if "oom_safe" in block]
    (tmp_path / "script.py").write_text(block)
    done = run([sys.executable, "script.py"], cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"None 1\n", done.stdout)


# -- several ranks -----------------------------------------------------------------------------------------------------

WORLD = 2


class Mixed(nn.Module):
    """Layers whose gradients travel in every way: large, small, scattered, used on one rank, on none."""

    def __init__(self, *, everywhere: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        weight = self.convolution.weight
        weight.data = weight.data.to(memory_format=torch.channels_last)
        self.large = nn.Linear(64, 4200)  # 1.03 MiB in fp32
        self.out = nn.Linear(4200, 2)
        self.first_only = nn.Parameter(torch.ones(()))
        self.never = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        if everywhere:
            del self.never
        self.everywhere = everywhere

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.convolution(x).flatten(1)
        scores: Tensor = self.out(torch.tanh(self.large(hidden)))
        return scores * self.first_only if self.everywhere or dist.get_rank() == 0 else scores


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 4, 4, generator=generator), torch.randint(2, (count,), generator=generator)


def wrapped(model: nn.Module, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(copy.deepcopy(model), **options)


def own_batch(rank: int) -> tuple[Tensor, Tensor]:
    return images(9 - 4 * rank, rank)  # 9 samples and 5


def guarded(model: nn.Module, rank: int, most: int, *, backward_pass: bool = False) -> OomSafeBackward:
    """Rank 1 has no room for more than `most` samples."""
    bomb = Bomb(most)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0])
        return nn.functional.cross_entropy(bomb(scores) if rank == 1 and backward_pass else scores, batch[1])

    return oom_safe(model, refuse_above(most, loss) if rank == 1 and not backward_pass else loss)


def equal_gradients(rank: int) -> None:
    cases: list[dict[str, Any]] = [
        {"find_unused_parameters": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
        {},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
    ]
    for options in cases:
        model = Mixed(everywhere="find_unused_parameters" not in options)
        expected, own = wrapped(model, **options), wrapped(model, **options)
        cross_entropy(expected, own_batch(rank)).backward()
        backward = guarded(own, rank, 2, backward_pass="static_graph" in options)
        with halvings(rank):  # rank 1 went from 5 to 2; rank 0 had no trouble itself
            backward(own_batch(rank))
        assert (backward.micro_batch_size, backward.accumulation_steps) == (2, 5 - 2 * rank)
        torch.testing.assert_close(gradients(own), gradients(expected))
        assert all(p.grad is not None for name, p in own.module.named_parameters() if name != "never")
        everybodys: list[Any] = [None] * WORLD
        dist.all_gather_object(everybodys, [g.sum().item() for g in gradients(own) if g is not None])
        assert everybodys[0] == everybodys[1]


def mixed_with_plain_steps(rank: int) -> None:
    for options in ({}, {"gradient_as_bucket_view": True}):
        model = Mixed(everywhere=True)
        expected, own = wrapped(model, **options), wrapped(model, **options)
        backward = guarded(own, rank, 2)
        steps: list[tuple[DistributedDataParallel, list[Any]]] = [(expected, [None] * 5), (own, [None, 1, 1, None, 1])]
        for net, which in steps:
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for step, guard in enumerate(which):
                batch = images(9 - 4 * rank, 10 * step + rank)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    backward(batch) if guard else cross_entropy(net, batch).backward()
                if step != 2:  # and accumulate over two
                    optimizer.step()
                    optimizer.zero_grad()
        torch.testing.assert_close(list(own.parameters()), list(expected.parameters()))


def compiled(rank: int) -> None:
    for outside in (True, False):
        model = Mixed(everywhere=True)
        expected = wrapped(model)
        cross_entropy(expected, own_batch(rank)).backward()
        if outside:
            own = wrapped(model)
            net: Any = torch.compile(own, backend="eager")
        else:
            net = own = DistributedDataParallel(torch.compile(model, backend="eager"))
        with halvings(rank):
            guarded(net, rank, 2)(own_batch(rank))
        torch.testing.assert_close(gradients(own), gradients(expected))


def buffers_of_the_first_rank(rank: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.register_buffer("flag", torch.tensor([False]))
    own = wrapped(model)
    own.module.flag[0] = rank == 0
    backward = oom_safe(own, cross_entropy)
    backward(own_batch(rank))
    alone = copy.deepcopy(model)
    cross_entropy(alone, own_batch(0))
    torch.testing.assert_close(dict(own.module.named_buffers())["2.running_mean"], alone[2].running_mean)
    assert own.module.flag[0]
    kept = wrapped(model)
    kept.broadcast_buffers = False  # torch 2.13 warns of the argument
    oom_safe(kept, cross_entropy)(own_batch(rank))
    kept_mean = dict(kept.module.named_buffers())["2.running_mean"]
    assert torch.equal(kept_mean, dict(alone.named_buffers())["2.running_mean"]) == (rank == 0)


def one_rank_has_a_bug(rank: int) -> None:
    own = wrapped(Mixed(everywhere=True))
    tensors = set_gradients(own)
    broken = True

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = cross_entropy(model, batch)
        if broken and rank == 1:
            raise ValueError("a bug on one rank")
        return value

    backward = oom_safe(own, loss, micro_batch_size=4)
    message = "a bug on one rank" if rank == 1 else "rank 1 failed in its own part of the batch.*this is rank 0"
    with pytest.raises(ValueError if rank == 1 else AutobatchError, match=message):
        backward(own_batch(rank))
    assert all(p.grad is tensor for p, tensor in zip(own.parameters(), tensors, strict=True))
    broken = False
    backward(own_batch(rank))  # both go on


def one_rank_does_not_fit(rank: int) -> None:
    own = wrapped(Mixed(everywhere=True))
    backward = guarded(own, rank, 0)
    message = "with 5, 2, 1 at a time .OutOfMemoryError" if rank == 1 else "with 5, 2, 1 at a time .on rank 1"
    with pytest.raises(DoesNotFit, match=message):
        backward(own_batch(rank))
    assert set(gradients(own)) == {None}
    assert backward.micro_batch_size is None
    with pytest.raises(DoesNotFit, match="OutOfMemoryError" if rank == 1 else "on rank 1"):
        backward(images(8 - 7 * rank, 0))  # where one sample was all that it had


def refused_with_several_ranks(rank: int) -> None:
    own = wrapped(Mixed(everywhere=True))
    with own.join(), pytest.raises(SettingError, match=r"does not work inside `model.join\(\)`"):
        oom_safe(own)(own_batch(rank))
    with pytest.raises(SettingError, match="once, as a whole; found 2 in it"):
        oom_safe(nn.ModuleList([own, wrapped(nn.Linear(2, 2))]))
    synced = wrapped(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
    synced.module.add_module("norm", nn.SyncBatchNorm(2))
    with pytest.raises(SettingError, match="SyncBatchNorm in training mode"):
        oom_safe(synced)(own_batch(rank))
    sparse = wrapped(nn.Embedding(5, 2, sparse=True))
    with pytest.raises(SettingError, match="no sparse gradients"):
        oom_safe(sparse)((torch.tensor([1, 2]), torch.tensor([0, 1])))
    from torch.distributed.fsdp import fully_shard

    sharded: Any = fully_shard(nn.Linear(4, 4))
    with pytest.raises(SettingError, match="sharded over ranks"):
        oom_safe(sharded)


SCENARIOS = (
    equal_gradients,
    mixed_with_plain_steps,
    compiled,
    buffers_of_the_first_rank,
    one_rank_has_a_bug,
    one_rank_does_not_fit,
    refused_with_several_ranks,
)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_end_with_the_gradients_of_plain_steps_and_none_is_left_waiting(tmp_path: Path) -> None:
    ranks = []
    for rank in range(WORLD):
        with open(tmp_path / f"rank{rank}", "w") as output:
            command = [sys.executable, "-m", "tests.guarding.test_guard", str(rank), str(tmp_path / "meeting")]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            ranks.append(Started(command, cwd=ROOT, env=environment, stdout=output, stderr=output))
    try:
        codes = [process.wait(timeout=900) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        told = [(tmp_path / f"rank{rank}").read_text() for rank in range(WORLD)]
        print(*told, sep="\n")
    assert codes == [0, 0]
    expected = "".join(f"{scenario.__name__} went well\n" for scenario in SCENARIOS)
    assert told == [expected] * WORLD


def main(rank: int, meeting: str) -> None:
    # A rank that waits for one that will not come fails here, before the test gives up.
    patience = timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD, timeout=patience)
    import torch._dynamo  # noqa: F401  # the wrapper imports it

    gc.freeze()
    for scenario in SCENARIOS:
        scenario(rank)
        dist.barrier()
        print(f"{scenario.__name__} went well", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
