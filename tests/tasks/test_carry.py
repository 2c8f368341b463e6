"""A live model reaches another process whole: its state, its hooks and its parametrizations; what cannot is named."""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import autobatch
from autobatch.errors import TaskError
from autobatch.tasks.carry import from_bytes, to_bytes
from autobatch.tasks.inputs import pickle_task, task_for_model, unpickle_task
from autobatch.tasks.task import Task

pytestmark = pytest.mark.usefixtures("ready_python")

SAMPLE = torch.linspace(-1.0, 1.0, 8)
BATCH = torch.stack([SAMPLE, 2 * SAMPLE])


def carried(model: nn.Module) -> nn.Module:
    """The model as another process gets it, which computes what this one does and can be trained."""
    task = unpickle_task(pickle_task(task_for_model(model, SAMPLE)[0]))
    first, second = task.model(), task.model()
    assert first is not second
    for copy in (first, second):
        assert [name for name, _ in copy.named_parameters()] == [name for name, _ in model.named_parameters()]
        assert [name for name, _ in copy.named_buffers()] == [name for name, _ in model.named_buffers()]
        torch.testing.assert_close(copy.eval()(BATCH), model.eval()(BATCH), rtol=0, atol=0)
        copy.train()(BATCH).sum().backward()
        assert all(parameter.grad is not None for parameter in copy.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    return first


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT

    def right_inverse(self, x: Tensor) -> Tensor:
        return x.triu()


class Scaled(nn.Module):
    """Gives one of several originals; with state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def _weight_norm_and_more() -> nn.Module:
    linear: nn.Module = parametrizations.weight_norm(nn.Linear(8, 8))
    parametrize.register_parametrization(linear, "weight", Symmetric(), unsafe=True)
    parametrize.register_parametrization(linear, "bias", Scaled(), unsafe=True)
    return linear


def _of_a_local_class() -> nn.Module:
    class Local(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.weight.sum()

    return parametrizations.spectral_norm(Local(8, 3))


def _parametrized_buffer() -> nn.Module:
    norm = nn.BatchNorm1d(8)
    parametrize.register_parametrization(norm, "running_mean", nn.Tanh(), unsafe=True)
    return norm


class Wraps(nn.Module):
    """Looks up what it has not in what it wraps, its parametrizations too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = parametrizations.weight_norm(nn.Linear(8, 3))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


@pytest.mark.parametrize(
    "make",
    [
        Wraps,
        lambda: parametrizations.spectral_norm(nn.Linear(8, 3)),
        lambda: parametrizations.weight_norm(nn.Linear(8, 3)),
        lambda: parametrizations.orthogonal(nn.Linear(8, 3)),
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2)),
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8)), parametrizations.spectral_norm(nn.Conv1d(1, 4, 3)), nn.Flatten()
        ),
        _weight_norm_and_more,
        _of_a_local_class,
        _parametrized_buffer,
    ],
    ids=[
        "wrapped",
        "spectral_norm",
        "weight_norm",
        "orthogonal",
        "nested",
        "convolution",
        "several",
        "local",
        "buffer",
    ],
)
def test_a_parametrized_model_is_carried(make: Callable[[], nn.Module]) -> None:
    model = make()
    copy = carried(model)
    for original, module in zip(model.modules(), copy.modules(), strict=True):
        assert parametrize.is_parametrized(module) == parametrize.is_parametrized(original)
        assert type(module).__name__ == type(original).__name__


def test_a_carried_parametrization_can_be_removed_and_goes_on_computing() -> None:
    model = nn.Linear(8, 8)
    parametrize.register_parametrization(model, "weight", Symmetric())
    copy: Any = carried(model)
    with torch.no_grad():
        copy.parametrizations.weight.original.add_(torch.ones(8, 8))
    torch.testing.assert_close(copy.weight, copy.weight.mT)
    assert not torch.equal(copy.weight, model.weight)
    parametrize.remove_parametrizations(copy, "weight")
    assert type(copy) is nn.Linear
    assert isinstance(copy.weight, nn.Parameter)


class Held(nn.Linear):
    """Holds what has no state: it is made anew."""

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.lock, self.again, self.ready = threading.Lock(), threading.RLock(), threading.Event()
        self.local = threading.local()
        self.me, self.gone = weakref.ref(self), weakref.ref(Symmetric())
        self.method, self.gone_method = weakref.WeakMethod(self.twice), weakref.WeakMethod(Held.Short().twice)
        self.by_name = weakref.WeakValueDictionary({"me": self})
        self.names = weakref.WeakKeyDictionary({self: "me"})
        self.all = weakref.WeakSet([self])
        self.cached = functools.lru_cache(maxsize=3)(self.twice)
        self.noise = torch.Generator().manual_seed(3)
        self.ready.set()

    class Short:
        def twice(self) -> None:
            raise NotImplementedError

    def twice(self, number: int) -> int:
        return 2 * number

    def forward(self, x: Tensor) -> Tensor:
        with self.lock, self.again:
            return super().forward(x) * self.cached(2)


@pytest.mark.parametrize("wrap", [lambda model: model, parametrizations.weight_norm], ids=["plain", "parametrized"])
def test_what_has_no_state_is_made_anew_and_refers_to_the_copy(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model: Any = wrap(Held())
    with model.lock:
        data = pickle_task(task_for_model(model, SAMPLE)[0])
    copy: Any = unpickle_task(data).model()
    assert not copy.lock.locked()
    assert copy.ready.is_set()
    assert copy.me() is copy.by_name["me"] is copy.method().__self__ is copy
    assert copy.gone() is None
    assert copy.gone_method() is None
    assert copy.names[copy] == "me"
    assert copy in copy.all
    assert (copy.cached(4), copy.cached.cache_parameters()["maxsize"]) == (8, 3)
    assert torch.equal(torch.rand(3, generator=copy.noise), torch.rand(3, generator=torch.Generator().manual_seed(3)))
    carried(model)


def test_a_cached_function_of_a_module_stays_that_function() -> None:
    cached = functools.lru_cache(_shared)
    assert from_bytes(to_bytes(warnings.filterwarnings)) is warnings.filterwarnings
    assert from_bytes(to_bytes(cached))() == 7


def _shared() -> int:
    return 7


def test_hooks_are_carried_those_of_parameters_too() -> None:
    model = nn.Sequential(nn.Linear(8, 3))
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    layer.weight.register_hook(torch.zeros_like)

    def after(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.fill_(5.0)

    layer.bias.register_post_accumulate_grad_hook(after)
    copy: Any = carried(model)
    assert float(copy[0].weight.grad.abs().max()) == 0.0
    assert copy[0].bias.grad.tolist() == [5.0] * 3


def test_an_optimizer_that_steps_in_the_backward_pass_steps_the_copy() -> None:
    model = nn.Linear(8, 3)
    optimizers = {parameter: torch.optim.SGD([parameter], lr=1.0) for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda held: optimizers[held].step())
    before = model.weight.detach().clone()
    task = unpickle_task(pickle_task(task_for_model(model, SAMPLE)[0]))
    copy: Any = task.model()
    copy(SAMPLE[None]).sum().backward()
    torch.testing.assert_close(copy.weight, before - SAMPLE)
    torch.testing.assert_close(model.weight, before)


def test_weight_norm_of_old_and_a_scripted_module_are_carried() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates both
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 4)), torch.jit.script(nn.Linear(4, 2)))
    carried(model)


def test_tied_parametrized_layers_stay_tied() -> None:
    shared = parametrizations.spectral_norm(nn.Linear(8, 8))
    copy: Any = carried(nn.Sequential(shared, nn.ReLU(), shared))
    assert copy[0] is copy[2]


def test_a_modules_own_say_about_its_state_holds_under_a_parametrization() -> None:
    class WithStream(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 3)
            self.stream: Iterator[int] | None = (number for number in range(9))

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "stream": None}

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)  # type: ignore[no-untyped-call]
            self.stream = iter([4])

    copy: Any = carried(parametrizations.weight_norm(WithStream()))
    assert next(copy.stream) == 4


def _stream() -> Iterator[int]:
    yield from itertools.count()


def _with(value: Any) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    model[1].held = value
    return model


def _hooked() -> nn.Module:
    model, numbers = nn.Linear(8, 3), _stream()
    model.register_forward_hook(lambda module, inputs, output: output * next(numbers))
    return model


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: _with(_stream()), r"model\.1\.held \(generator\): TypeError: cannot pickle 'generator' object"),
        (lambda: _with({"a": [1, _stream()]}), r"model\.1\.held\['a'\]\[1\] \(generator\)"),
        (lambda: _with(queue.SimpleQueue()), r"model\.1\.held \(_queue\.SimpleQueue\)"),
        (
            lambda: _with(threading.Thread(target=print, name="feeder")),
            r"model\.1\.held .*cannot pickle a thread \(fee",
        ),
        (lambda: _with(functools.partial(print, _stream())), r"model\.1\.held \(argument 0\) \(generator\)"),
        (_hooked, r"model\._forward_hooks\[\d+\] \(its numbers\) \(generator\)"),
        (lambda: parametrizations.weight_norm(_with(_stream())[1]), r"model\.held \(generator\)"),
    ],
    ids=["generator", "deep", "queue", "thread", "partial", "hook", "parametrized"],
)
def test_what_cannot_be_carried_is_named_by_its_place_with_what_to_do(
    make: Callable[[], nn.Module], place: str
) -> None:
    with pytest.raises(TaskError, match=rf"because of {place}.*__getstate__ .* into a task file, .* isolate=False"):
        pickle_task(task_for_model(make(), SAMPLE)[0])


def test_what_cannot_be_carried_is_measured_in_this_process_where_it_was_asked_for() -> None:
    found = autobatch.find_max_batch(_hooked(), SAMPLE, device="cpu", isolate=False, max_batch_size=4)
    assert found == 4


def test_an_open_file_of_a_loss_is_named_and_so_is_that_of_a_task(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            log.write("step\n")
            out: Tensor = model(batch)
            return out.mean()

        with pytest.raises(
            TaskError, match=r"because of loss \(its log\) \(TextIOWrapper\).*Make that inside the func"
        ):
            pickle_task(task_for_model(nn.Linear(8, 3), SAMPLE, loss=loss)[0])
        with pytest.raises(TaskError, match=r"because of loss \(its log\).*put the task into a file"):
            pickle_task(Task(model=lambda: nn.Linear(8, 3), train_data=list, val_data=list, loss=loss))


def test_a_model_that_cannot_be_made_anew_there_says_so() -> None:
    class Stubborn(nn.Linear):
        def __setstate__(self, state: dict[str, Any]) -> None:
            raise KeyError("no such state")

    data = pickle_task(task_for_model(Stubborn(8, 3), SAMPLE)[0])
    with pytest.raises(TaskError, match=r"cannot be made again in another process: KeyError: 'no such state'.*Put it"):
        unpickle_task(data)


def test_a_parametrized_model_is_measured_in_processes_of_its_own() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = autobatch.find_max_batch(model, SAMPLE, device="cpu", max_batch_size=8)
    assert found == 8
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
