"""`TorchRunner`: the real runner. It runs a task's own steps on a device of this process and reports what they took.

Everything of the user's runs inside `_guarded`, which turns an out-of-memory into an answer and any other failure into
a `TaskError` with the user's own frames.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoints import checkpoint_path, forget_checkpoints
from ..devices import Device
from ..devices.oom import is_device_lost
from ..errors import (
    AutobatchError,
    CheckpointError,
    DeviceError,
    DeviceLost,
    NoValidResult,
    RankLost,
    StorageError,
    TaskError,
)
from ..files import full_disk, sync_folder
from ..plan import (
    Config,
    DeviceInfo,
    LrSweep,
    Measurement,
    MemoryLimit,
    Mode,
    Outcome,
    Plan,
    Rung,
    RungResult,
    Runner,
    TaskFacts,
    Workload,
    WorstCase,
)
from ..tasks.data import (
    Batch,
    counted_samples,
    load_data,
    num_samples,
    seed_everything,
    to_device,
    training_batches,
    val_loader,
)
from ..tasks.state import preserve, preserve_generators
from ..tasks.task import Task, blame
from ..tasks.worst_case import WorstSamples, find_worst_case, loader_batch
from ..units import format_size
from .check import check_inference, check_task, peak_lr_fraction
from .data_parallel import DataParallel, is_rank_lost
from .flops import matmul_flops_per_s, step_flops
from .timing import Timing, time_step
from .training import NormWatch, Trainer, autocast, read_checkpoint

T = TypeVar("T")

# Steps before the evaluation batch, the short batch and one more step. The first step allocates the optimizer's state,
# which the last one runs beside (+1241 MiB for GPT-2 small in FakeTensor traces).
_EXPLORE_STEPS, _VERDICT_STEPS = 1, 3
# The length of the schedule of a model that is only measured. Assumed: no measurement comes near it, and a schedule
# that is computed ahead for all of its steps is still quick to make and small.
_BENCH_STEPS = 1_000_000
_COUNTED_SAMPLES = 2  # of a batch whose operations are counted: batch norm takes no batch of one
_EVALUATION_SAMPLE_S = 1.0  # an evaluation longer than this is timed in part
_SWEEP_BLOW_UP = (
    4.0  # a range test ends when the loss is this many times its lowest (as torch-lr-finder's diverge_th=5, assumed)
)


@dataclass(frozen=True, slots=True)
class _Refused:
    """The allocator said no; the message is all that is kept of the error (its traceback would keep the tensors)."""

    message: str


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


class TorchRunner(Runner):
    """Runs a task on a device in this process.

    Args:
        task: what is trained.
        device: an open device, its memory limit not yet set.
        memory_limit_bytes: make the device behave as if it had this much; None for what is there.
        headroom: the share of the capacity that a batch must leave free.
        mode: "training" for whole optimizer steps, "inference" for forward passes without gradients.
        live: `task.model()` returns the user's own object: it is borrowed and given back as it was.
        checkpoints: folder for paused trials; a temporary one by default.
        worst_cases: from the facts of another runner of this task, which are then not looked for again.
        soak_steps: optimizer steps on batches of the training data that a verdict takes beside its own.
        group: the ranks that train together, each of which has a runner like this one; None for one process. All take
            the calls that take steps. An evaluation takes no step, so rank 0 is asked alone, and of a rung it scores
            alone: what the others return as its score is 0.
    """

    def __init__(
        self,
        task: Task,
        device: Device,
        *,
        memory_limit_bytes: int | None = None,
        headroom: float = 0.05,
        mode: Mode = "training",
        live: bool = False,
        checkpoints: Path | None = None,
        worst_cases: Mapping[str, WorstCase] | None = None,
        soak_steps: int = 0,
        group: DataParallel | None = None,
    ) -> None:
        self._group = group
        self._task, self._device, self._mode, self._live = task, device, mode, live
        self._limit = device.set_limit(memory_limit_bytes, headroom)
        self._checkpoints, self._soak_steps = checkpoints, soak_steps
        self._own_checkpoints: tempfile.TemporaryDirectory[str] | None = None
        self._probes = 0
        self._data: dict[str, Any] = {}
        self._worst_cases = dict(worst_cases or {})
        self._samples: dict[str, WorstSamples] = {}
        self._facts: TaskFacts | None = None
        self._bench: Trainer | None = None  # one model for all probes and timings of this process
        self._last_model: weakref.ref[nn.Module] | None = None
        self._is_lost = False  # the device answers this process no longer
        self._products_before: str | None = None  # torch's precision of matrix products to go back to
        if task.precision == "tf32":
            if device.torch_device.type != "cuda":
                raise DeviceError(f"tf32 is a mode of NVIDIA's tensor cores; {device.torch_device} has none: use bf16")
            self._products_before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")  # convolutions take TF32 by default

    # -- what is known ------------------------------------------------------------------------------------------------

    def facts(self) -> TaskFacts:
        """Facts of the task, after a check of all of it; the first call runs the check.

        Raises:
            TaskError: it lists every problem found.
        """
        if self._facts is None:
            baseline, is_users = self._task.baseline_config()
            if self._group is not None:
                baseline = replace(baseline, plan=replace(baseline.plan, ranks=self._group.size))
            trains = self._mode == "training"  # a model that only predicts may well be frozen, without an optimizer
            warnings = self._check(baseline.plan.batch_size) if trains else check_inference(self._task, self._load)
            self._look_for_worst_cases(("train_data", "val_data") if trains else ("train_data",))
            self._facts = TaskFacts(
                name=self._task.name,
                train_size=self._train_size(),
                val_size=num_samples(self._load("val_data")),
                direction=self._task.direction,
                baseline=baseline,
                baseline_is_users=is_users,
                precision=self._task.precision,
                accumulates=self._task.accumulation,
                has_test_data=self._task.test_data is not None,
                peak_lr_fraction=self._peak_lr_fraction() if trains else 0.0,
                warnings=warnings if self._group is None else (*warnings, *self._group.warnings(self._task)),
                worst_cases=self._worst_cases,
                loader=self._loader(),
                leaves_out=self._group is not None and trains and self._leaves_out(),
            )
        return self._facts

    def _leaves_out(self) -> bool:
        """Whether a step, of one process, leaves a trainable parameter without a gradient.

        Raises:
            TaskError: the model cannot be put into DistributedDataParallel.
        """
        group = self._group
        assert group is not None

        def step() -> bool:
            config = self._task.baseline_config()[0]
            trainer = Trainer(self._task, config, self._device.torch_device, seed=0, total_steps=_BENCH_STEPS)
            group.check(trainer.model)
            trainer.backward(to_device(self._worst_batch(_COUNTED_SAMPLES), self._device.torch_device))
            return any(p.grad is None for p in trainer.model.parameters() if p.requires_grad)

        with self._borrow():
            found = self._guarded("a training step", step)
        self._device.clean_up()
        return False if isinstance(found, _Refused) else found

    def _loader(self) -> dict[str, Any] | None:
        if self._task.train_loader is not None:
            return None
        return {"num_workers": 0, "pin_memory": False} | {
            name: value for name, value in self._task.loader.items() if name in ("num_workers", "pin_memory")
        }

    def _check(self, batch_size: int) -> tuple[str, ...]:
        with self._borrow():
            found = self._guarded(
                "the check", lambda: check_task(self._task, self._device.torch_device, batch_size, load=self._load)
            )
        if isinstance(found, _Refused):
            return ("memory ran out while the task was checked with a few samples: the check was cut short",)
        return found

    def _look_for_worst_cases(self, names: Sequence[str]) -> None:
        for name in names:
            if name == "val_data" or self._task.train_loader is None:
                self._guarded(f"going through {name}()", partial(self._worst_samples, name))

    def _peak_lr_fraction(self) -> float:
        found = self._guarded("the schedule", lambda: peak_lr_fraction(self._task))
        return 0.0 if isinstance(found, _Refused) else found  # what does not fit is the memory probe's to say

    def device(self) -> DeviceInfo:
        return self._device.info()

    def memory(self) -> MemoryLimit:
        return self._limit

    def _load(self, name: str) -> Any:
        """The dataset that a function of the task returns; the function runs once in a process."""
        if name not in self._data:
            self._data[name] = load_data(self._task, name)
        return self._data[name]

    def _train_data(self) -> Any:
        return None if self._task.train_loader is not None else self._load("train_data")

    def _train_size(self) -> int | None:
        data = self._train_data()
        if self._task.train_loader is not None:
            data = getattr(self._task.train_loader(1, 0), "dataset", None)
        size = num_samples(data)
        if size is not None:
            return size
        if "train_data" in self._worst_cases and self._worst_cases["train_data"].num_samples is not None:
            return self._worst_cases["train_data"].num_samples  # all of it was gone through
        with preserve_generators():
            found = self._guarded("going through the training data", lambda: counted_samples(self._task, data))
        return None if isinstance(found, _Refused) else found

    # -- borrowed models, guarded steps -------------------------------------------------------------------------------

    @contextmanager
    def _borrow(self) -> Iterator[None]:
        lost: DeviceLost | None = None
        try:
            with preserve(self._task.model()) if self._live else preserve_generators():
                try:
                    yield
                except DeviceLost as error:
                    lost = error
                    raise
        except Exception:
            if lost is not None:  # nothing can be put back on that device: what is told is why, not that it failed
                raise lost from None
            raise

    def _guarded(self, what: str, work: Callable[[], T]) -> T | _Refused:
        """What `work` returns, or that memory was refused; the user's own errors come out as `TaskError`."""
        try:
            return work()
        except AutobatchError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the user's code may raise anything
            if self._group is not None and is_rank_lost(error):
                raise RankLost(f"rank {self._group.rank} lost the others: {_first_line(error)}") from None
            if is_device_lost(error):
                self._is_lost = True
                raise DeviceLost(
                    f"{blame(what, error, self._task.path)}\nThis process can use {self._device.torch_device} no "
                    "longer: run such steps in a process of their own (`isolate=True`, or the command line)"
                ) from None
            if (refusal := full_disk(error)) is not None:
                where = refusal.filename or self._folder()
                raise StorageError(f"{where} cannot be written: {refusal.strerror}") from None
            if not self._device.is_out_of_memory(error):
                raise blame(what, error, self._task.path) from None
            message = _first_line(error)
        # Here the except block is left: the traceback, and with it the failed step's tensors, is gone.
        self._bench = None
        self._device.clean_up()
        return _Refused(message)

    def _workbench(self, plan: Plan) -> Trainer:
        """A model to step for measurements, whose scores nobody reads; kept between calls of one precision."""
        bench = self._bench
        used_up = bench is not None and bench.step_count > _BENCH_STEPS // 2
        if bench is None or used_up or bench.config.plan.precision != plan.precision:
            self._bench = bench = None
            lr = self._task.baseline_config()[0].lr
            bench = self._trainer(Config(plan=plan, lr=lr), seed=0, total_steps=_BENCH_STEPS)
            self._bench = bench
        bench.config = replace(bench.config, plan=plan)
        return bench

    def _trainer(self, config: Config, *, seed: int, total_steps: int) -> Trainer:
        trainer = Trainer(
            self._task, config, self._device.torch_device, seed=seed, total_steps=total_steps, group=self._group
        )
        if not self._live and self._last_model is not None and self._last_model() is trainer.model:
            raise TaskError(
                "model() must return a new module at each call; it returned the one of the call before, so every trial "
                "would go on training the weights of the trial before"
            )
        self._last_model = weakref.ref(trainer.model)
        return trainer

    @property
    def _rank(self) -> int:
        return 0 if self._group is None else self._group.rank

    def _mean_of_ranks(self, losses: Tensor) -> float:
        """The mean of these losses, over all ranks where there are several, so that they go on or give up together."""
        mean = float(losses.cpu().double().mean())  # MPS has no float64
        return mean if self._group is None else self._group.mean(mean)

    def _drop_bench(self) -> None:
        if self._bench is not None:
            self._bench = None
            self._device.clean_up()

    # -- memory -------------------------------------------------------------------------------------------------------

    def probe(self, plan: Plan, *, verdict: bool = False) -> Measurement:
        started = perf_counter()
        self._probes += 1
        others = self._device.others_bytes()
        self._device.reset_peak()
        retries = self._device.alloc_retries()
        with self._borrow(), self._device.held_to_budget() if verdict else nullcontext():
            what = "a training step" if self._mode == "training" else "a forward pass"
            finite = self._guarded(what, lambda: self._probe_steps(plan, verdict))
            peak, allocated = self._device.peak_bytes(), self._device.peak_allocated_bytes()
            if self._live:
                self._bench = None  # it holds the borrowed model
        fresh = self._probes == 1
        others_now = self._device.others_bytes()
        if others is not None and others_now is not None:
            others = max(others, others_now)
        if isinstance(finite, _Refused):
            return Measurement(
                plan=plan,
                outcome="oom",
                others_bytes=others,
                seconds=perf_counter() - started,
                fresh=fresh,
                message=finite.message if peak is None else f"{finite.message} (beside {format_size(peak)} in use)",
            )
        outcome: Outcome = "ok" if finite else "nonfinite"
        if peak is not None and peak > self._limit.budget_bytes:
            outcome = "over_limit"
        now = self._device.alloc_retries()
        return Measurement(
            plan=plan,
            outcome=outcome,
            peak_bytes=peak,
            allocated_bytes=allocated,
            others_bytes=others,
            alloc_retries=None if retries is None or now is None else now - retries,
            seconds=perf_counter() - started,
            fresh=fresh,
        )

    def _probe_steps(self, plan: Plan, verdict: bool) -> bool:
        """Run the steps of a probe; whether every loss was finite."""
        steps = _VERDICT_STEPS if verdict else _EXPLORE_STEPS
        if self._mode == "inference":
            return self._probe_forward(plan, steps)
        bench = self._workbench(plan)
        batch = self._worst_batch(plan.batch_size)
        losses = [bench.step(cycle([batch])) for _ in range(steps)]
        if bench.scaler is not None:
            bench.step_with_zeros()
        self._probe_evaluation(bench, plan)
        size = None if self._task.train_loader is not None else num_samples(self._train_data())
        rest = size % plan.batch_size if size is not None else 0
        # Nobody's training is harmed by a last batch of one sample but batch norm's, which cannot take it.
        if rest > 1:
            self._probe_short_batch(bench, rest)
        losses.append(bench.step(cycle([batch])))
        if verdict and self._soak_steps:
            batches = training_batches(self._task, self._train_data(), plan, seed=0, rank=self._rank)
            losses.extend(bench.step(batches) for _ in range(self._soak_steps))
        self._device.synchronize()
        return all(bool(torch.isfinite(loss)) for loss in losses if loss is not None)

    def _probe_short_batch(self, bench: Trainer, size: int) -> None:
        """A step on what an epoch may leave for its last batch."""
        try:
            bench.step(cycle([self._worst_batch(size)]))
        except (Exception, SystemExit) as error:
            # A loss over pairs cannot take an odd number: who trains on such a model drops the last batch.
            if self._device.is_out_of_memory(error) or is_device_lost(error):
                raise
            bench.optimizer.zero_grad(set_to_none=True)

    def _worst_batch(self, batch_size: int) -> Batch:
        """A training batch of the largest samples; of the task's own loader, its first."""
        if self._task.train_loader is not None:
            return loader_batch(self._task, batch_size)
        return self._worst_samples("train_data").batch(batch_size)

    def _worst_samples(self, name: str) -> WorstSamples:
        if name not in self._samples:
            if name not in self._worst_cases:
                self._worst_cases[name] = find_worst_case(self._load(name), self._task.sample_size)
            self._samples[name] = WorstSamples(self._task, self._load(name), self._worst_cases[name])
        return self._samples[name]

    def _probe_evaluation(self, bench: Trainer, plan: Plan) -> None:
        """One evaluation batch of the same size, or as long as there is data, on its largest samples."""
        val_size = num_samples(self._load("val_data"))
        batch = self._worst_samples("val_data").batch(min(plan.batch_size, val_size or plan.batch_size))
        try:
            bench.evaluate([batch])
        except (Exception, SystemExit) as error:
            # An F1 or an area under the curve may not exist for one batch; the forward pass that it is of has run.
            no_batch = self._task.evaluate is not None and not is_device_lost(error)
            if not no_batch or self._device.is_out_of_memory(error):
                raise

    def _probe_forward(self, plan: Plan, passes: int) -> bool:
        model = self._task.model().to(self._device.torch_device).eval()
        batch = to_device(self._worst_batch(plan.batch_size), self._device.torch_device)
        with torch.no_grad(), autocast(self._device.torch_device, plan.precision):
            outputs = [self._task.loss(model, batch) for _ in range(passes)]
        self._device.synchronize()
        return all(bool(torch.isfinite(output).all()) for output in outputs)

    # -- speed --------------------------------------------------------------------------------------------------------

    def time(self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None) -> Measurement:
        started = perf_counter()
        with self._borrow():
            timed = self._guarded("a training step", lambda: self._time_step(plan, budget_s, loader))
            if self._live:
                self._bench = None
        seconds = perf_counter() - started
        if isinstance(timed, _Refused):
            return Measurement(plan=plan, outcome="oom", seconds=seconds, message=timed.message)
        return Measurement(
            plan=plan,
            outcome="ok",
            step_s=timed.step_s,
            compute_s=timed.compute_s,
            loader_s=timed.loader_s,
            phases_s=timed.phases_s,
            joules=timed.energy.joules if timed.energy else None,
            watts=timed.energy.watts if timed.energy else None,
            remarks=timed.remarks,
            seconds=seconds,
        )

    def _time_step(self, plan: Plan, budget_s: float, loader: Mapping[str, Any] | None) -> Timing:
        batches = training_batches(self._task, self._train_data(), plan, seed=0, loader=loader, rank=self._rank)
        bench = self._workbench(plan)
        if self._group is None:
            return time_step(bench, self._device, batches, budget_s)
        return time_step(bench, self._device, batches, budget_s, self._group.lead)

    def workload(self) -> Workload:
        with self._borrow():
            counted = self._guarded("counting the model's operations", self._count)
        if isinstance(counted, _Refused):
            raise TaskError(f"there is no memory to count the model's operations in: {counted.message}")
        return counted

    def _count(self) -> Workload:
        model = self._task.model()
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        del model
        if self._live:  # there is one model, and it is to stay where it is
            return Workload(parameters=parameters, flops_per_sample=None)
        flops = step_flops(self._task, self._worst_batch(_COUNTED_SAMPLES))
        return Workload(parameters=parameters, flops_per_sample=None if flops is None else flops / _COUNTED_SAMPLES)

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        self._drop_bench()
        reached = self._guarded(
            "a matrix product", lambda: matmul_flops_per_s(self._device, self._task.precision, budget_s)
        )
        self._device.clean_up()
        return None if isinstance(reached, _Refused) else reached

    def time_evaluation(self, batch_size: int) -> float:
        data = self._load("val_data")
        bench = self._workbench(self._task.baseline_config()[0].plan)
        loader = val_loader(self._task, data, batch_size)
        size = num_samples(data)
        started = perf_counter()
        seen = 0

        def part() -> Iterator[Batch]:
            nonlocal seen
            for batch in loader:
                seen += batch_size
                yield batch
                if perf_counter() - started > _EVALUATION_SAMPLE_S:
                    return

        # A task's own `evaluate` needs all of the data, and may ask for the loader's length. Of data that does not say
        # its size nobody knows which part has been seen.
        whole = self._task.evaluate is not None or size is None
        refused = self._guarded("an evaluation", lambda: bench.evaluate(loader if whole else part()))
        self._device.synchronize()
        elapsed = perf_counter() - started
        if isinstance(refused, _Refused):
            raise TaskError(f"an evaluation batch of {batch_size} does not fit in memory: {refused.message}")
        return elapsed if whole or size is None else elapsed * max(1.0, size / max(1, seen))

    # -- learning rate ------------------------------------------------------------------------------------------------

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        started = perf_counter()
        self._drop_bench()
        with self._borrow():
            swept = self._guarded("a training step", lambda: self._sweep(plan, lowest, highest, steps, seed))
        self._device.clean_up()
        if isinstance(swept, _Refused):
            raise TaskError(f"the range test at batch {plan.batch_size} does not fit in memory: {swept.message}")
        lrs, losses, diverged = swept
        seconds = perf_counter() - started
        return LrSweep(plan=plan, lrs=tuple(lrs), losses=tuple(losses), diverged=diverged, seconds=seconds)

    def _sweep(
        self, plan: Plan, lowest: float, highest: float, steps: int, seed: int
    ) -> tuple[list[float], list[float], bool]:
        # Without the task's schedule: the sweep sets the rate itself. Groups keep their ratio to the rate asked for.
        task = replace(self._task, scheduler=None)
        config = Config(plan=plan, lr=lowest)
        trainer = Trainer(task, config, self._device.torch_device, seed=seed, total_steps=steps, group=self._group)
        groups = [group["lr"] / lowest for group in trainer.optimizer.param_groups]
        batches = training_batches(task, self._train_data(), plan, seed=seed, rank=self._rank)
        ratio = (highest / lowest) ** (1 / (steps - 1))
        lrs: list[float] = []
        losses: list[float] = []
        for index in range(steps):
            lr = lowest * ratio**index
            for group, share in zip(trainer.optimizer.param_groups, groups, strict=True):
                group["lr"] = lr * share
            try:
                loss = trainer.step(batches)
            except (Exception, SystemExit) as error:
                if not losses or self._device.is_out_of_memory(error) or is_rank_lost(error):
                    raise
                return lrs, losses, True  # many a training loop gives up by itself when the loss blows up
            if loss is None:
                raise NoValidResult("a range test needs the loss: let training_step return it")
            value = self._mean_of_ranks(loss)
            if not math.isfinite(value):
                return lrs, losses, True
            lrs.append(lr)
            losses.append(value)
            if value > _SWEEP_BLOW_UP * max(min(losses), 1e-12) and index > steps // 10:
                return lrs, losses, True
        return lrs, losses, False

    # -- trials -------------------------------------------------------------------------------------------------------

    def _folder(self) -> Path:
        if self._checkpoints is None:
            self._own_checkpoints = tempfile.TemporaryDirectory(prefix="autobatch-")
            self._checkpoints = Path(self._own_checkpoints.name)
        return self._checkpoints

    def advance(self, rung: Rung) -> RungResult:
        started = perf_counter()
        self._drop_bench()
        state = self._paused(rung) if rung.start_step else None
        with self._borrow():
            done = self._guarded("training", lambda: self._advance(rung, state, started))
        self._device.clean_up()
        if isinstance(done, _Refused):
            done = RungResult(rung=rung, outcome="oom", message=done.message)
        return replace(done, seconds=perf_counter() - started)

    def _paused(self, rung: Rung) -> dict[str, Any]:
        """The checkpoint that a rung goes on from."""
        path = checkpoint_path(self._folder(), rung.trial, rung.start_step)
        try:
            state = read_checkpoint(path)
        except FileNotFoundError:
            raise CheckpointError(
                f"trial {rung.trial} has no checkpoint at step {rung.start_step} to go on from: {path} is not there"
            ) from None
        if (state["step"], state["total_steps"]) != (rung.start_step, rung.total_steps):
            raise CheckpointError(
                f"{path} is of step {state['step']} of {state['total_steps']}, not of {rung.start_step} of "
                f"{rung.total_steps}"
            )
        return state

    def _advance(self, rung: Rung, state: dict[str, Any] | None, started: float) -> RungResult:
        deadline = math.inf if rung.limit_s is None else started + rung.limit_s
        trainer = self._trainer(rung.config, seed=rung.seed, total_steps=rung.total_steps)
        batches = training_batches(
            self._task,
            self._train_data(),
            rung.config.plan,
            seed=rung.seed,
            start_step=rung.start_step,
            rank=self._rank,
        )
        if state is not None:
            trainer.restore(state)
        steps = rung.until_step - rung.start_step
        tenth = max(1, math.ceil(steps / 10))
        begun = perf_counter()
        means: list[float] = []
        pending: list[Tensor] = []
        norms = NormWatch(self._task.clip_grad_norm)
        for index in range(1, steps + 1):
            loss = trainer.step(batches)
            norms.see(trainer.grad_norm)
            if loss is not None:
                pending.append(loss)
            if perf_counter() > deadline:
                return RungResult(rung=rung, outcome="timeout", message="out of its allotted time")
            if index % tenth and index != steps:
                continue
            # Reading a loss or a norm waits for the device, so it is done ten times a rung, not at every step.
            norms.read()
            if pending:
                means.append(self._mean_of_ranks(torch.stack(pending)))
                pending.clear()
                if not math.isfinite(means[-1]):
                    message = f"the loss was not finite by step {rung.start_step + index}"
                    return RungResult(
                        rung=rung,
                        outcome="diverged",
                        message=message,
                        grad_norms=norms.summary(),
                        train_s=perf_counter() - begun,
                    )
        self._device.synchronize()
        train_s = perf_counter() - begun
        path = checkpoint_path(self._folder(), rung.trial, rung.until_step)
        new = path.with_suffix(".pt.new")
        trainer.save(new)  # before the evaluation, which draws
        begun = perf_counter()
        score = 0.0
        if self._rank == 0:
            score = self._evaluate(trainer, "val_data", rung)
            # After it: should it bring the process down, the rung is run again from where it began.
            new.replace(path)
            sync_folder(path.parent)
        if not math.isfinite(score):
            return RungResult(
                rung=rung,
                outcome="diverged",
                message=f"the score was {score}",
                grad_norms=norms.summary(),
                train_s=train_s,
            )
        return RungResult(
            rung=rung,
            outcome="ok",
            score=score,
            first_loss=means[0] if means else None,
            last_loss=means[-1] if means else None,
            grad_norms=norms.summary(),
            train_s=train_s,
            eval_s=perf_counter() - begun,
        )

    def _evaluate(self, trainer: Trainer, name: str, rung: Rung) -> float:
        seed_everything(rung.seed)  # an evaluation that draws is repeatable; the trial's own state is in its checkpoint
        return trainer.evaluate(val_loader(self._task, self._load(name), rung.eval_batch_size))

    def test_score(self, rung: Rung) -> float | None:
        if self._task.test_data is None:
            return None
        with self._borrow():
            scored = self._guarded("the evaluation on test_data()", lambda: self._test(rung))
        self._device.clean_up()
        return None if isinstance(scored, _Refused) else scored

    def _test(self, rung: Rung) -> float:
        trainer = self._trainer(rung.config, seed=rung.seed, total_steps=rung.total_steps)
        trainer.restore(read_checkpoint(checkpoint_path(self._folder(), rung.trial, rung.until_step)))
        return self._evaluate(trainer, "test_data", rung)

    def forget(self, trial: int, before: int | None = None) -> None:
        forget_checkpoints(self._folder(), trial, before)

    def close(self) -> None:
        if self._products_before is not None:
            torch.set_float32_matmul_precision(self._products_before)
            self._products_before = None
        self._bench = None
        self._data.clear()
        self._samples.clear()
        # A device that is lost may refuse this as it refuses everything; why it is lost has been told.
        refusals = suppress(RuntimeError) if self._is_lost else nullcontext()
        with refusals:
            self._device.clean_up()
        with refusals:
            self._device.lift_limit()
        if self._own_checkpoints is not None:
            self._own_checkpoints.cleanup()
