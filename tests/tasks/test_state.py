"""A borrowed model comes back as it was, whatever was done to it."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobatch import find_max_batch
from autobatch.tasks.state import preserve, preserve_generators, rng_state, set_rng_state


class Tied(nn.Module):
    """Batch norm buffers, a frozen layer, tied weights, a non-persistent buffer, an empty slot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.BatchNorm1d(6)
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("later", None)
        self.norm.eval()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.out(self.frozen(self.norm(self.embed(tokens))))
        return scores


def snapshot(model: nn.Module) -> dict[str, object]:
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "gradients": gradients,
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "identities": [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()],
        "storages": [p.data_ptr() for p in model.parameters()],
    }


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def train_hard(model: nn.Module) -> None:
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randint(11, (8,))).square().sum().backward()
        optimizer.step()
    model.scratch = torch.ones(5)
    model.later = torch.ones(2)


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    model = Tied()
    model.embed.weight.grad = torch.full_like(model.embed.weight, 0.25)
    return model


def test_a_borrowed_model_comes_back_as_it_was(model: Tied) -> None:
    before = snapshot(model)
    with preserve(model):
        train_hard(model)
        assert not torch.equal(model.out.weight, before["state"]["out.weight"])  # type: ignore[index]
    assert_same(before, snapshot(model))
    assert model.out.weight is model.embed.weight
    assert model.later is None


def test_also_when_the_step_raises(model: Tied) -> None:
    before = snapshot(model)

    def fail() -> None:
        with preserve(model):
            train_hard(model)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert_same(before, snapshot(model))


def test_also_when_it_was_moved_to_another_type(model: Tied) -> None:
    before = snapshot(model)
    with preserve(model):
        model.double()
        train_hard(model)
    assert_same(before, snapshot(model))


def test_a_borrowed_model_still_trains_as_a_copy_of_it_does(model: Tied) -> None:
    twin = copy.deepcopy(model)
    with preserve(model):
        train_hard(model)
    torch.manual_seed(1)
    train_hard(model)
    torch.manual_seed(1)
    train_hard(twin)
    assert_same({"state": dict(twin.state_dict())}, {"state": dict(model.state_dict())})


class Keeps(nn.Module):
    """A module with state in plain attributes, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.seen = 0
        self.history: dict[str, Any] = {"losses": [1.0]}
        self.bank = torch.zeros(4)
        self.teacher = [copy.deepcopy(self.net)]
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.counts = np.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.history["losses"].append(2.0)
        self.bank[self.seen % 4] += 1
        self.counts += 1
        self.late = self.seen
        self.teacher[0].weight.data.mul_(2)
        out: torch.Tensor = self.net(x)
        out.sum().backward()
        self.optimizer.step()
        self.bank = self.bank + 1
        return out


def test_plain_attributes_come_back_the_same_objects_with_what_they_held() -> None:
    model = Keeps()
    bank, history, teacher, weight = (
        model.bank,
        model.history,
        model.teacher[0],
        model.teacher[0].weight.detach().clone(),
    )
    with preserve(model):
        model(torch.ones(1, 3))
        model(torch.ones(1, 3))
    assert (model.seen, history) == (0, {"losses": [1.0]})
    assert (model.bank is bank, model.history is history, model.teacher[0] is teacher) == (True, True, True)
    assert torch.equal(model.bank, torch.zeros(4))
    assert torch.equal(teacher.weight, weight)
    assert not hasattr(model, "late")
    assert model.counts.tolist() == [0, 0]
    assert len(model.optimizer.state) == 0
    assert model.optimizer.param_groups[0]["params"][0] is model.net.weight


def test_a_live_model_probed_in_this_process_counts_as_before() -> None:
    model = Keeps()
    find_max_batch(
        model, torch.ones(3), isolate=False, device="cpu", max_batch_size=4, loss=lambda m, x: m.net(x).sum()
    )
    assert model.seen == 0

    class Counts(nn.Module):
        seen = 3

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            out: torch.Tensor = self.net(x)
            return out

    counts = Counts()
    find_max_batch(counts, torch.ones(3), isolate=False, device="cpu", max_batch_size=4, loss=lambda m, x: m(x).sum())
    assert (counts.seen, "seen" in vars(counts)) == (3, False)


def draw_all() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_generators_go_on_as_if_nothing_had_drawn_from_them() -> None:
    state = rng_state()
    expected = draw_all()
    set_rng_state(state)
    with preserve_generators():
        draw_all()
        torch.manual_seed(3)
    assert draw_all() == expected


def test_the_state_of_the_generators_survives_a_safe_load(tmp_path: object) -> None:
    path = f"{tmp_path}/state.pt"
    random.gauss(0, 1)  # leaves a cached second value behind, which is part of the state
    np.random.randn()
    torch.save(rng_state(), path)
    expected = (*draw_all(), random.gauss(0, 1), float(np.random.randn()))
    set_rng_state(torch.load(path, weights_only=True))
    assert (*draw_all(), random.gauss(0, 1), float(np.random.randn())) == expected


def test_a_tensor_whose_storage_was_freed_is_left_as_it_is() -> None:
    """As FSDP keeps the gathered parameters of a model that waits for its next step: shapes without memory."""
    model: Any = nn.Linear(2, 2)
    model.gathered, model.count, model.shape = torch.ones(1000), 1, torch.Size([2, 3])
    model.gathered.untyped_storage().resize_(0)
    with preserve(model):
        model.count, model.shape = 2, None
    assert model.count == 1
    assert model.shape == torch.Size([2, 3])
    assert model.gathered.shape == (1000,)
    assert model.gathered.untyped_storage().nbytes() == 0
