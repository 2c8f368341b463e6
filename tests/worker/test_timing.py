"""Times of real steps, and what they consist of."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from autobatch.core.medians import median_interval
from autobatch.core.plan import Config, Plan
from autobatch.devices import open_device
from autobatch.measuring.profiling import find_remedy
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.simulated.sim import VirtualClock
from autobatch.tasks.data import Collated, training_batches
from autobatch.tasks.task import Task
from autobatch.worker import torch_runner
from autobatch.worker.flops import matmul_flops_per_s, step_flops
from autobatch.worker.timing import Timing, measure_energy, repeat, time_step
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.training import Trainer

CPU = open_device("cpu")


def rows(size: int = 64) -> TensorDataset:
    return TensorDataset(torch.randn(size, 4), torch.arange(size) % 3)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def task(**changes: Any) -> Task:
    return Task(**({"model": net, "train_data": rows, "val_data": rows} | changes))


def timed(made: Task, plan: Plan, budget_s: float = 0.2, **changes: Any) -> Timing:
    bench = Trainer(made, Config(plan=plan, lr=1e-3), CPU.torch_device, seed=0, total_steps=10_000)
    return time_step(bench, CPU, training_batches(made, rows(), plan, seed=0, **changes), budget_s)


def test_the_parts_of_a_step_are_told_and_the_slow_one_is_the_longest() -> None:
    def slow_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        class Slow(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                time.sleep(0.05)
                return super().step(closure)

        return Slow(model.parameters(), lr)

    found = timed(task(optimizer=slow_optimizer), Plan(batch_size=8, accumulation_steps=2))
    assert set(found.phases_s) == {"copy", "forward", "backward", "optimizer"}
    assert max(found.phases_s, key=lambda part: found.phases_s[part]) == "optimizer"
    assert found.phases_s["optimizer"] >= 0.05
    assert len(found.step_s) >= 3
    assert min(found.step_s) >= 0.05


def test_a_training_step_of_the_users_is_one_part() -> None:
    def step(model: nn.Module, batch: Any, scale: float) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(model(x), y)
        (loss * scale).backward()
        return loss

    assert set(timed(task(training_step=step), Plan(batch_size=8)).phases_s) == {
        "copy",
        "forward and backward",
        "optimizer",
    }


def test_after_timing_a_step_tells_nobody_of_its_parts() -> None:
    bench = Trainer(task(), Config(plan=Plan(batch_size=8), lr=1e-3), CPU.torch_device, seed=0, total_steps=1000)
    time_step(bench, CPU, training_batches(task(), rows(), Plan(batch_size=8), seed=0), 0.05)
    assert bench.on_part is None


class Whose(Dataset[Any]):
    """Samples that tell which process made them."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        return torch.ones(4), os.getpid()


def test_a_loader_that_is_changed_for_a_measurement_is_the_one_that_is_used() -> None:
    makers: list[set[int]] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, pids = batch
        makers.append(set(pids.tolist()))
        return model(x).mean()  # type: ignore[no-any-return]

    def score(model: nn.Module, batch: Any) -> Tensor:
        return torch.zeros(len(batch[0]))

    runner = TorchRunner(task(train_data=Whose, val_data=Whose, loss=loss, metric=score), open_device("cpu"))
    assert runner.facts().loader == {"num_workers": 0, "pin_memory": False}
    makers.clear()
    runner.time(Plan(batch_size=8), budget_s=0.05)
    assert set().union(*makers) == {os.getpid()}
    makers.clear()
    runner.time(Plan(batch_size=8), budget_s=0.05, loader={"num_workers": 1})
    assert os.getpid() not in set().union(*makers)
    runner.close()


def test_repeat_waits_for_the_device_around_each_block() -> None:
    calls: list[str] = []

    class Device:
        def synchronize(self) -> None:
            calls.append("wait")

    def work() -> None:
        calls.append("work")
        time.sleep(0.03)

    times = repeat(work, Device(), 0.0, fewest=2)  # type: ignore[arg-type]
    assert calls == ["wait", "work", "wait"] * len(times)
    assert len(times) == 2
    assert min(times) >= 0.03


def test_operations_are_counted_as_by_hand() -> None:
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    # Forward 2*6*(4*8 + 8*3); backward the same for the weights of both layers, and for the input of the second.
    assert step_flops(task(), (x, y)) == 2 * 6 * (2 * (4 * 8 + 8 * 3) + 8 * 3)


def test_a_task_that_looks_at_values_has_unknown_operations() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        scale: float = x.max().item()
        mean: Tensor = model(x).mean()
        return mean * scale

    assert step_flops(task(loss=loss), (torch.randn(6, 4), torch.zeros(6))) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_matrix_product_reaches_something(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autobatch.worker.flops._LAST_SIDE", 256)
    assert matmul_flops_per_s(CPU, precision, 0.01) > 1e6


def test_a_workload_is_of_the_model_and_the_model_stays() -> None:
    runner = TorchRunner(task(), open_device("cpu"))
    found = runner.workload()
    assert found.parameters == 4 * 8 + 8 + 8 * 3 + 3
    assert found.flops_per_sample == 2 * (2 * (4 * 8 + 8 * 3) + 8 * 3)
    runner.close()


def test_of_a_live_model_parameters_alone_are_counted() -> None:
    model = net()
    runner = TorchRunner(task(model=lambda: model), open_device("cpu"), live=True)
    assert runner.workload().flops_per_sample is None
    assert next(model.parameters()).device.type == "cpu"
    runner.close()


# -- memory format and TF32


class Seen(nn.Module):
    """Notes whether its images and weights have their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        both = x, self.conv.weight
        self.last.append(all(t.is_contiguous(memory_format=torch.channels_last) for t in both))
        found: Tensor = self.conv(x).mean((2, 3))
        return found


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_holds_for_weights_training_and_evaluation(channels_last: bool) -> None:
    def images() -> TensorDataset:
        return TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 4)

    made = task(model=Seen, train_data=images, val_data=images, channels_last=channels_last)
    plan = Plan(batch_size=4)
    trainer = Trainer(made, Config(plan=plan, lr=0.1), CPU.torch_device, seed=0, total_steps=4)
    batches: Iterator[Any] = training_batches(made, images(), plan, seed=0)
    trainer.step(batches)
    trainer.evaluate([Collated(next(batches), 4)])
    assert isinstance(trainer.model, Seen)
    assert trainer.model.last == [channels_last] * 2


def test_both_formats_learn_the_same() -> None:
    def images() -> TensorDataset:
        generator = torch.Generator().manual_seed(1)
        return TensorDataset(torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 4)

    losses = []
    for channels_last in (False, True):
        made = task(model=Seen, train_data=images, val_data=images, channels_last=channels_last)
        trainer = Trainer(made, Config(plan=Plan(batch_size=8), lr=0.1), CPU.torch_device, seed=0, total_steps=9)
        batches = training_batches(made, images(), Plan(batch_size=8), seed=0)
        losses.append([float(trainer.step(batches)) for _ in range(5)])  # type: ignore[arg-type]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_tf32_is_refused_where_there_are_no_tensor_cores() -> None:
    from autobatch.errors import DeviceError

    with pytest.raises(DeviceError, match="tf32 is a mode of NVIDIA's tensor cores; cpu has none: use bf16"):
        TorchRunner(task(precision="tf32"), open_device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_workers_arguments_are_left_out_where_a_measurement_has_none() -> None:
    made = task(loader={"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4})
    batches = training_batches(made, rows(), Plan(batch_size=8), seed=0, loader={"num_workers": 0})
    assert len(next(batches)[0]) == 8


def test_whole_steps_alone_have_no_parts() -> None:
    plan = Plan(batch_size=8)
    bench = Trainer(task(), Config(plan=plan, lr=1e-3), CPU.torch_device, seed=0, total_steps=10_000)
    found = time_step(bench, CPU, training_batches(task(), rows(), plan, seed=0), 0.1, parts=False)
    assert len(found.step_s) >= 3
    assert (found.compute_s, found.loader_s, found.phases_s) == ((), (), {})


class Told:
    """The processor, with what another device would tell of itself."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        answer = self._answers.get(name)
        return getattr(CPU, name) if answer is None else answer


def remarks_of(device: Any) -> tuple[str, ...]:
    plan = Plan(batch_size=8)
    bench = Trainer(task(), Config(plan=plan, lr=1e-3), CPU.torch_device, seed=0, total_steps=10_000)
    return time_step(bench, device, training_batches(task(), rows(), plan, seed=0), 0.2).remarks


def test_what_makes_a_time_doubtful_is_told() -> None:
    queued: list[str] = []

    def slowed_by() -> tuple[str, ...]:
        queued.append("asked")
        return ("its temperature",)

    waited = iter([0.0, 1000.0])
    found = remarks_of(
        Told(slowed_by=slowed_by, others_bytes=lambda: 3 << 30, waited_s=lambda: next(waited), synchronize=lambda: None)
    )
    assert "the clocks were held back by its temperature" in found
    assert "other processes held 3 GiB of the device" in found
    assert any(said.startswith("other processes had the processor ") for said in found)
    quiet = remarks_of(Told(slowed_by=lambda: (), others_bytes=lambda: None, waited_s=lambda: None))
    assert not [said for said in quiet if "steps became" not in said]


def test_the_clocks_are_asked_while_the_device_is_at_work() -> None:
    happened: list[str] = []

    def note(what: str, answer: Any = None) -> Any:
        happened.append(what)
        return answer

    remarks_of(Told(slowed_by=lambda: note("asked", ()), synchronize=lambda: note("waited"), waited_s=lambda: None))
    *_, last = (index for index, what in enumerate(happened) if what == "asked")
    assert happened[last + 1] == "waited"  # for steps that were queued and not waited for before


def test_ranks_take_equally_many_steps_whatever_their_own_clocks_and_drivers_say() -> None:
    """Rank 0's answers are followed by another whose steps take longer, and whose driver tells of no clocks."""
    told: list[Any] = []

    def steps_of(lead: Any, **answers: Any) -> int:
        plan = Plan(batch_size=8)
        bench = Trainer(task(), Config(plan=plan, lr=1e-3), CPU.torch_device, seed=0, total_steps=10_000)
        batches = training_batches(task(), rows(), plan, seed=0)
        time_step(bench, Told(**answers), batches, 0.05, lead, parts=False)  # type: ignore[arg-type]
        return bench.step_count

    def first(value: Any) -> Any:
        told.append(value)
        return value

    taken = steps_of(first, slowed_by=lambda: ())
    answers = iter(told)
    assert steps_of(lambda value: next(answers), synchronize=lambda: time.sleep(0.001)) == taken
    assert next(answers, None) is None


def test_energy_is_counted_over_steps_as_training_takes_them() -> None:
    used = 0.0

    def joules() -> float:
        nonlocal used
        used += 0.5  # each reading finds a tick more
        return used

    plan = Plan(batch_size=8)
    bench = Trainer(task(), Config(plan=plan, lr=1e-3), CPU.torch_device, seed=0, total_steps=10_000_000)
    batches = training_batches(task(), rows(), plan, seed=0)
    found = measure_energy(bench, Told(joules=joules), batches, 0.5)  # type: ignore[arg-type]
    assert found is not None
    assert found.joules > 0
    assert found.seconds >= 0.5
    assert measure_energy(bench, Told(joules=joules), batches, 0.1) is None  # type: ignore[arg-type]


# -- by a clock that only steps move


class Paced:
    """Takes steps as a trainer does; the n-th takes `seconds(n)` of a clock that nothing else moves."""

    def __init__(self, clock: VirtualClock, seconds: Callable[[int], float]) -> None:
        self.config = Config(plan=Plan(batch_size=1), lr=1e-3)
        self.on_part: Callable[[str], None] | None = None
        self._clock, self._seconds, self._taken = clock, seconds, 0

    def step(self, batches: Iterator[Any]) -> None:
        next(batches)
        self._clock.advance(self._seconds(self._taken))
        self._taken += 1
        if self.on_part is not None:
            self.on_part("forward")


def paced(seconds: Callable[[int], float], budget_s: float) -> tuple[Timing, float]:
    """What is told of whole steps that take so long, and the seconds before the first of those that count."""
    clock = VirtualClock()
    bench: Any = Paced(clock, seconds)
    quiet: Any = Told(waited_s=lambda: None, others_bytes=lambda: None)
    found = time_step(bench, quiet, cycle([torch.zeros(1)]), budget_s, parts=False, clock=clock)
    return found, clock() - sum(found.step_s)


class Prefetching:
    """A loader whose workers make a batch in `batch_s` of a clock, and have at most so many ready."""

    def __init__(self, clock: VirtualClock, batch_s: float, most: int) -> None:
        self._clock, self._batch_s, self._most, self._made_at = clock, batch_s, most, 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        # When the last batch of those that are not taken yet was begun: where all are ready, the workers waited.
        self._made_at = max(self._made_at, self._clock() - self._most * self._batch_s) + self._batch_s
        self._clock.advance(max(0.0, self._made_at - self._clock()))
        return torch.zeros(1)


@pytest.mark.parametrize("batch_s", [0.002, 0.01, 0.3])  # ten, two and one in a block
def test_what_a_loaders_workers_had_ready_is_no_speed_of_theirs(batch_s: float) -> None:
    """The compute that is timed before the loader takes no batches, so that its workers get eight ahead."""
    clock = VirtualClock()
    bench: Any = Paced(clock, lambda _: 0.1)
    quiet: Any = Told(waited_s=lambda: None, others_bytes=lambda: None)
    found = time_step(bench, quiet, Prefetching(clock, batch_s, most=8), 40.0, clock=clock)
    assert found.loader_s == pytest.approx([batch_s] * len(found.loader_s))


@given(
    slower=st.lists(st.floats(1.06, 3.0), max_size=12),  # each than the one after it
    steady_s=st.floats(0.02, 1.0),  # from where a block is one step
)
def test_steps_count_from_when_they_have_become_steady_and_until_they_are_known(
    slower: list[float], steady_s: float
) -> None:
    first_s = [steady_s * math.prod(slower[index:]) for index in range(len(slower))]
    found, before_s = paced(lambda n: first_s[n] if n < len(first_s) else steady_s, 100 * (sum(first_s) + steady_s))
    assert found.step_s == pytest.approx([steady_s] * 6)  # the fewest that have an interval
    assert before_s >= sum(first_s) * (1 - 1e-9)
    assert found.remarks == ()


def test_warming_up_ends_with_its_share_of_the_time_where_steps_never_become_steady() -> None:
    found, before_s = paced(lambda n: 0.93**n, 10.0)
    first_two_s, share_s, one_more_s = 1 + 0.93, 0.15 * 10, 0.93**2
    assert first_two_s + share_s <= before_s <= first_two_s + share_s + one_more_s
    assert len(found.step_s) > 3


@pytest.mark.parametrize(("rate", "word"), [(1.01, "slower"), (0.99, "faster")])
def test_steps_that_drift_are_told_with_how_much(rate: float, word: str) -> None:
    """Each step takes a hundredth more or less than the one before; half of them lie between the two medians."""
    found, _ = paced(lambda n: 0.1 * rate**n, 10.0)
    change = rate ** (len(found.step_s) / 2) - 1
    assert abs(change) > 0.2
    assert found.remarks == (f"steps became {abs(change):.0%} {word} while they were timed",)


@given(step_s=st.sampled_from([1e-4, 0.03, 2.0]), spread=st.floats(0, 0.3), seed=st.integers(0, 2**16))
def test_steps_are_repeated_until_the_median_is_known_to_two_percent_and_no_longer(
    step_s: float, spread: float, seed: int
) -> None:
    clock, noise = VirtualClock(), random.Random(seed)
    times = repeat(lambda: clock.advance(step_s * (1 + spread * noise.random())), CPU, 1e5, clock=clock)

    def is_known(values: list[float]) -> bool:
        interval = median_interval(values)
        return interval is not None and (interval[1] - interval[0]) / 2 <= 0.02 * median(values)

    assert is_known(times)
    assert not is_known(times[:-1])
    assert clock() < 1e5


def test_steps_whose_median_stays_unknown_end_with_their_time() -> None:
    clock, seconds = VirtualClock(), cycle([0.03, 0.05])
    times = repeat(lambda: clock.advance(next(seconds)), CPU, 10.0, clock=clock)
    assert 10.0 <= clock() < 10.05
    assert sum(times) == pytest.approx(clock())


# -- what would help a loader


def test_pinned_memory_goes_to_the_real_loader_and_is_told_where_its_copies_are_quicker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the accelerator is made up: the loader pins what it gives, and the copy of a pinned batch takes a third."""
    clock = VirtualClock()

    class Hosted(Tensor):
        copy_s = 3 / 32  # in binary, so that equal times are equal

        def pin_memory(self, device: Any = None) -> Tensor:
            return self.as_subclass(Pinned)

        def to(self, *arguments: Any, **changes: Any) -> Tensor:
            clock.advance(self.copy_s)
            return self.as_subclass(Tensor)

    class Pinned(Hosted):
        copy_s = 1 / 32

    def collate(samples: list[Any]) -> Tensor:
        return torch.stack([x for x, _ in samples]).as_subclass(Hosted)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        clock.advance(1 / 32)
        return model(batch).mean()  # type: ignore[no-any-return]

    made = task(collate=collate, loss=loss, metric=lambda model, batch: torch.zeros(len(batch)))
    monkeypatch.setattr(torch_runner, "time_step", partial(time_step, clock=clock))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    runner = TorchRunner(made, open_device("cpu"))
    curve = ThroughputCurve(measurements=(runner.time(Plan(batch_size=4), budget_s=10.0),))
    assert curve.loader_bound
    found = find_remedy(runner, curve, cores=0, pins_memory=True, budget_s=30.0).remedy
    runner.close()
    assert found is not None
    assert (found.loader, found.before) == ({"pin_memory": True}, {"pin_memory": False})
    assert (found.samples_per_s, found.samples_per_s_before) == (4 * 16, 4 * 8)
