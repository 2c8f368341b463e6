"""A borrowed model comes back as it was, whatever was done to it."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

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
