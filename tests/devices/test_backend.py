"""The table of kinds of devices: it is whole, and nobody else knows a kind by its name."""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from autobatch.core.facts import DeviceKind
from autobatch.core.plan import Precision
from autobatch.devices import device_names, open_device
from autobatch.devices.backend import BACKENDS, CARDS, NAMED, PROCESSOR, Backend, is_processor, names_in_words
from autobatch.devices.cpu import CpuDevice
from autobatch.errors import DeviceError
from autobatch.tasks.state import rng_state, set_rng_state
from autobatch.tasks.task import load_task
from autobatch.worker.data_parallel import _collectives, device_of_rank
from autobatch.worker.torch_runner import TorchRunner

TASKS = Path(__file__).parents[1] / "task_files"
PACKAGE = Path(__file__).parents[2] / "autobatch"


def test_each_kind_of_device_has_one_row_and_a_file() -> None:
    assert tuple(BACKENDS) == get_args(DeviceKind)
    for kind, backend in BACKENDS.items():
        assert backend.kind == kind
        assert (PACKAGE / "devices" / f"{backend.home}.py").is_file()
        assert {*backend.benched} <= {*backend.precisions} <= {*get_args(Precision)}
        assert hasattr(torch, backend.torch_name)
        assert torch.device(backend.torch_name).type == backend.torch_name
    assert [backend for backend in BACKENDS.values() if backend.is_processor] == [PROCESSOR]


def test_kinds_that_share_a_name_differ_in_nothing_that_is_asked_by_name() -> None:
    for backend in BACKENDS.values():
        by_name = NAMED[backend.torch_name]
        assert replace(backend, kind=by_name.kind, benched=by_name.benched) == by_name


def test_no_other_file_compares_the_name_of_a_kind() -> None:
    words = {*BACKENDS, *NAMED}
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if constants & words:
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []


def test_the_processor_is_always_there_and_comes_last() -> None:
    assert (PROCESSOR.count(), PROCESSOR.names()) == (1, ["cpu"])
    assert device_names()[-1] == "cpu"
    assert is_processor(torch.zeros(1).device)
    assert not is_processor(torch.zeros(1, device="meta").device)


def test_cards_are_numbered_and_the_current_one_is_taken_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    for name in CARDS:
        module = getattr(torch, name)
        monkeypatch.setattr(module, "is_available", lambda: True)
        monkeypatch.setattr(module, "device_count", lambda: 3)
        monkeypatch.setattr(module, "current_device", lambda: 2)
    monkeypatch.setattr(Backend, "open", lambda self, index: opened.append((self.torch_name, index)))
    for name in CARDS:
        assert CARDS[name].names() == [f"{name}:0", f"{name}:1", f"{name}:2"]
        opened.clear()
        open_device(f" {name.upper()} ")
        open_device(f"{name}:1")
        assert opened == [(name, 2), (name, 1)]
        assert device_of_rank(name, 1, 3) == f"{name}:1"


def test_a_card_that_the_environment_hides_is_refused_with_what_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceError, match=r"found 'cuda:1' \(CUDA_VISIBLE_DEVICES is '7'\)\. There is: cuda:0"):
        open_device("cuda:1")
    with pytest.raises(DeviceError, match=r"found 'tpu'\. There is"):
        open_device("tpu")


@pytest.mark.parametrize("name", CARDS)
def test_generators_of_cards_in_use_are_put_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, states = getattr(torch, name), [torch.tensor([3]), torch.tensor([5])]
    put: list[object] = []
    monkeypatch.setattr(module, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(module, "set_rng_state_all", put.append)
    monkeypatch.setattr(module, "is_initialized", lambda: False)
    assert name not in rng_state()
    monkeypatch.setattr(module, "is_initialized", lambda: True)
    state = rng_state()
    drawn = random.random()
    set_rng_state(state)
    assert put == [states]
    assert random.random() == drawn


def test_a_collective_carries_the_processors_tensors_beside_the_cards() -> None:
    assert _collectives(PROCESSOR) == "gloo"
    assert _collectives(BACKENDS["cuda"]) == _collectives(BACKENDS["rocm"]) == "cpu:gloo,cuda:nccl"
    assert _collectives(BACKENDS["xpu"]) == "cpu:gloo,xpu:xccl"


def test_a_precision_that_the_kind_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuDevice, "backend", replace(PROCESSOR, precisions=("fp32", "bf16")))
    task = replace(load_task(TASKS / "minimal.py"), precision="fp16")
    with pytest.raises(DeviceError, match="cpu computes in fp32, bf16; found precision = 'fp16' in the task: take one"):
        TorchRunner(task, CpuDevice())


def test_the_words_for_a_device_are_those_that_open_one() -> None:
    assert names_in_words("1") == ["auto", "cpu", "cuda", "cuda:1", "xpu", "xpu:1", "mps"]
