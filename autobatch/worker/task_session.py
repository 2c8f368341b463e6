"""A task open in this process: its data loaded once, its models borrowed, its steps guarded, its facts known.

All of the user's code runs inside `_guarded`, which turns an out-of-memory into an answer, and any other failure into a
`TaskError` with the user's own frames.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..core.facts import DeviceInfo, MemoryLimit, TaskFacts, WorstCase
from ..core.files import full_disk
from ..core.plan import Config, Mode, Plan
from ..devices import Device
from ..devices.oom import is_device_lost
from ..errors import (
    AutobatchError,
    DeviceError,
    DeviceLost,
    RankLost,
    StorageError,
    TaskError,
    after_warnings,
    with_class,
)
from ..tasks.data import Batch, SampleDataset, counted_samples, load_data, num_samples, to_device
from ..tasks.state import preserve, preserve_generators
from ..tasks.task import Task, blame
from ..tasks.worst_case import WorstSamples, find_worst_case, loader_batch
from .carried_state import Outside
from .check import Checked, check_inference, check_task, peak_lr_fraction
from .check_data import require_a_batch
from .data_parallel import DataParallel, is_rank_lost
from .remedies import known_remedy
from .training import Trainer, made_ready

T = TypeVar("T")

# The length of the schedule of a model that is only measured. Assumed: no measurement comes near it, and a schedule
# that is computed ahead for all its steps is still quick to make and small.
BENCH_STEPS = 1_000_000
COUNTED_SAMPLES = 2  # samples of the batch whose operations are counted: batch norm takes no batch of one


@dataclass(frozen=True, slots=True)
class Refused:
    """Memory was refused. Only the message of the error is kept: its traceback would keep the tensors."""

    message: str


class OpenTask:
    """A task, and the device of this process on which it runs.

    Args:
        task: the task.
        device: an open device, without a memory limit yet.
        memory_limit_bytes: make the device behave as if it had this much memory; None for what it has.
        headroom: the share of the capacity that a batch must leave free.
        mode: "training" for whole optimizer steps, "inference" for forward passes without gradients.
        live: whether `task.model()` returns the user's own object, which is borrowed and given back unchanged.
        checkpoints: the folder for paused trials; a temporary one by default.
        worst_cases: from the facts of another runner of this task, to save the scan.
        soak_steps: optimizer steps on batches of the training data that a final probe takes too.
        group: the ranks that train together, each with a runner like this one; None for one process. All ranks take the
            calls that take steps. An evaluation takes no step, so only rank 0 is called for it; and in a segment only
            rank 0 evaluates, while the others return 0 as the score.
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
        # Before the limit is set: an error here leaves the process as it was.
        if task.precision not in device.backend.precisions:
            if task.precision == "tf32":
                raise DeviceError(f"tf32 is a mode of NVIDIA's tensor cores; {device.torch_device} has none: use bf16")
            raise DeviceError(
                f"{device.torch_device} computes in {', '.join(device.backend.precisions)}; found precision = "
                f"{task.precision!r} in the task: take one of those"
            )
        self._group = group
        self._task, self._device, self._mode, self._live = task, device, mode, live
        self._limit = device.set_limit(memory_limit_bytes, headroom)
        self._checkpoints, self._soak_steps = checkpoints, soak_steps
        self._own_checkpoints: tempfile.TemporaryDirectory[str] | None = None
        self._probes = 0
        self._data: dict[str, Any] = {}
        self._outside = Outside(task)
        self._is_prepared = False
        self._worst_cases = dict(worst_cases or {})
        self._samples: dict[str, WorstSamples] = {}
        self._facts: TaskFacts | None = None
        self._bench: Trainer | None = None  # the one model for all probes and timings of this process
        self._last_model: weakref.ref[nn.Module] | None = None
        self._is_lost = False  # whether this process can no longer use the device
        self._products_before: str | None = None  # torch's precision of matrix products, to be restored
        if task.precision == "tf32":
            self._products_before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")  # convolutions use TF32 by default

    # -- what is known ------------------------------------------------------------------------------------------------

    def facts(self) -> TaskFacts:
        """Facts of the task, after a check of all of it. The first call runs the check.

        Raises:
            TaskError: a list of all problems.
        """
        if self._facts is None:
            baseline, is_users = self._task.baseline_config()
            if self._group is not None:
                baseline = replace(baseline, plan=replace(baseline.plan, ranks=self._group.size))
            # A model that only predicts may well be frozen, without an optimizer.
            if self._mode == "training":
                checked = self._check(baseline.plan.batch_size)
            else:
                checked = Checked(check_inference(self._task, self._load))
            with after_warnings(checked.warnings):
                self._facts = self._looked_into(baseline, is_users, checked)
        return self._facts

    def _looked_into(self, baseline: Config, is_users: bool, checked: Checked) -> TaskFacts:
        """The facts of a task that passed the check."""
        trains = self._mode == "training"
        self._look_for_worst_cases(("train_data", "val_data") if trains else ("train_data",))
        train_size = self._train_size()
        if trains and self._task.train_loader is None:  # the length of a stream that ended is known by now
            require_a_batch(self._task, "train_data", train_size, baseline.plan.batch_size)
        return TaskFacts(
            name=self._task.name,
            train_size=train_size,
            val_size=num_samples(self._load("val_data")),
            direction=self._task.direction,
            baseline=baseline,
            baseline_is_users=is_users,
            precision=self._task.precision,
            accumulates=self._task.accumulation,
            has_test_data=self._task.test_data is not None,
            peak_lr_fraction=self._peak_lr_fraction() if trains else 0.0,
            is_pausable=checked.is_pausable,
            warnings=(*checked.warnings, *(() if self._group is None else self._group.warnings(self._task))),
            worst_cases=self._worst_cases,
            loader=self._loader(),
            leaves_out=self._group is not None and trains and self._leaves_out(),
        )

    def _leaves_out(self) -> bool:
        """Whether a step of one rank leaves a trainable parameter without a gradient.

        Raises:
            TaskError: the model cannot be put into DistributedDataParallel.
        """
        group = self._group
        assert group is not None

        def step() -> bool:
            config = self._task.baseline_config()[0]
            self._outside.reset()
            trainer = Trainer(self._task, config, self._device.torch_device, seed=0, total_steps=BENCH_STEPS)
            group.check(trainer.model)

            def backward(size: int) -> None:
                (batch,) = made_ready(self._task, [self._worst_batch(size)])
                trainer.backward(to_device(batch, self._device.torch_device))

            try:
                backward(COUNTED_SAMPLES)
            except Exception as error:
                if self._device.is_out_of_memory(error) or is_device_lost(error):
                    raise
                # A loss over groups of eight takes no two samples; what the user trains with it takes.
                backward(config.plan.batch_size)
            return any(p.grad is None for p in trainer.model.parameters() if p.requires_grad)

        with self._borrow():
            answer = self._guarded("a training step", step)
        self._device.clean_up()
        return False if isinstance(answer, Refused) else answer

    def _loader(self) -> dict[str, Any] | None:
        if self._task.train_loader is not None or isinstance(self._train_data(), IterableDataset | SampleDataset):
            return None  # only a stream knows whether more workers share or repeat it; a stand-in has none
        return {"num_workers": 0, "pin_memory": False} | {
            name: value for name, value in self._task.loader.items() if name in ("num_workers", "pin_memory")
        }

    def _check(self, batch_size: int) -> Checked:
        with self._borrow():
            answer = self._guarded(
                "the check", lambda: check_task(self._task, self._device.torch_device, batch_size, load=self._load)
            )
        if isinstance(answer, Refused):
            return Checked(("memory ran out while the task was checked with a few samples: the check was cut short",))
        return answer

    def _look_for_worst_cases(self, names: Sequence[str]) -> None:
        for name in names:
            if name == "val_data" or self._task.train_loader is None:
                self._guarded(f"going through {name}()", partial(self._worst_samples, name))

    def _peak_lr_fraction(self) -> float:
        answer = self._guarded("the schedule", lambda: peak_lr_fraction(self._task))
        return 0.0 if isinstance(answer, Refused) else answer  # the memory probe reports what does not fit

    def device(self) -> DeviceInfo:
        return self._device.info()

    def memory(self) -> MemoryLimit:
        return self._limit

    def _load(self, name: str) -> Any:
        """The dataset that a function of the task returns. The function runs once per process."""
        if name not in self._data:
            with self._outside.accepted():
                self._data[name] = load_data(self._task, name)
        return self._data[name]

    def prepare(self) -> None:
        """Load what a segment needs, so that the segment's time limit does not include it; once per process."""
        if self._is_prepared:
            return
        self._guarded("loading the data", self._train_data)  # if memory is too small for it, the segment reports that
        if self._rank == 0:  # only rank 0 evaluates
            self._guarded("loading the data", partial(self._load, "val_data"))
        self._is_prepared = True

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
            return self._worst_cases["train_data"].num_samples  # all of it was scanned
        with preserve_generators():
            answer = self._guarded("going through the training data", lambda: counted_samples(self._task, data))
        return None if isinstance(answer, Refused) else answer

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
            if lost is not None:  # nothing can be restored on that device: report its loss, not that failure
                raise lost from None
            raise

    def _guarded(self, what: str, work: Callable[[], T]) -> T | Refused:
        """What `work` returns, or that memory was refused. The user's own errors are raised as `TaskError`."""
        try:
            return work()
        except AutobatchError as error:
            path = self._task.path
            if type(error) is TaskError and path is not None and path.name not in str(error):
                raise TaskError(f"{path.name}: {error}") from error
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the user's code may raise anything
            lost = is_device_lost(error)
            if self._group is not None and not lost and is_rank_lost(error):
                raise RankLost(f"rank {self._group.rank} lost the others: {with_class(error)}") from None
            if lost:
                self._is_lost = True
                raise DeviceLost(
                    f"{blame(what, error, self._task.path)}\nThis process can use {self._device.torch_device} no "
                    "longer: run such steps in a process of their own (`isolate=True`, or the command line)"
                ) from None
            if (refusal := full_disk(error)) is not None:
                where = refusal.filename or self._folder()
                raise StorageError(f"{where} cannot be written: {refusal.strerror}") from None
            if not self._device.is_out_of_memory(error):
                raise known_remedy(error) or blame(what, error, self._task.path) from None
            message = with_class(error)
        # Outside the except block the traceback, and with it the failed step's tensors, is gone.
        self._bench = None
        self._device.clean_up()
        return Refused(message)

    def _counted(self, what: str, work: Callable[[], T]) -> T | Refused:
        """Like `_guarded`, for work whose code may catch an out-of-memory, if the device counts refusals.

        Libraries catch their own too: cuDNN tries plans that need too much, but each only once
        (aten/src/ATen/native/cudnn/Conv_v8.cpp). A refusal in a second run of the same work is the task's.
        """
        for _ in range(2):
            before = self._device.refusals()
            done = self._guarded(what, work)
            # One of several ranks must not repeat it by itself: the others would wait for it.
            if isinstance(done, Refused) or self._group is not None or self._device.refusals() == before:
                return done
        self._drop_bench()
        return Refused(f"the allocator refused memory to {what}, which went on: it seems to catch the error")

    def _workbench(self, plan: Plan) -> Trainer:
        """A model to take measured steps with, whose scores are not used; kept between calls with one precision."""
        bench = self._bench
        used_up = bench is not None and bench.step_count > BENCH_STEPS // 2
        if bench is None or used_up or bench.config.plan.precision != plan.precision:
            self._bench = bench = None
            lr = self._task.baseline_config()[0].lr
            bench = self._trainer(Config(plan=plan, lr=lr), seed=0, total_steps=BENCH_STEPS)
            self._bench = bench
        bench.config = replace(bench.config, plan=plan)
        return bench

    def _trainer_of(self, task: Task, config: Config, *, seed: int, total_steps: int) -> Trainer:
        """A new trainer of a task on this session's device, with its ranks."""
        self._outside.reset()
        return Trainer(
            task,
            config,
            self._device.torch_device,
            seed=seed,
            total_steps=total_steps,
            group=self._group,
            is_out_of_memory=self._device.is_out_of_memory,
        )

    def _trainer(self, config: Config, *, seed: int, total_steps: int) -> Trainer:
        trainer = self._trainer_of(self._task, config, seed=seed, total_steps=total_steps)
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
        """The mean of these losses, over all ranks if there are several, so that all go on or give up together."""
        mean = float(losses.cpu().double().mean())  # MPS has no float64
        return mean if self._group is None else self._group.mean(mean)

    def _drop_bench(self) -> None:
        if self._bench is not None:
            self._bench = None
            self._device.clean_up()

    def _worst_batch(self, batch_size: int) -> Batch:
        """A training batch of the largest samples; the first batch of a task's own loader."""
        if self._task.train_loader is not None:
            return loader_batch(self._task, batch_size)
        return self._worst_samples("train_data").batch(batch_size)

    def _worst_samples(self, name: str) -> WorstSamples:
        if name not in self._samples:
            if name not in self._worst_cases:
                self._worst_cases[name] = find_worst_case(self._load(name), self._task.sample_size)
            self._samples[name] = WorstSamples(self._task, self._load(name), self._worst_cases[name])
        return self._samples[name]

    def _folder(self) -> Path:
        if self._checkpoints is None:
            self._own_checkpoints = tempfile.TemporaryDirectory(prefix="autobatch-")
            self._checkpoints = Path(self._own_checkpoints.name)
        return self._checkpoints

    def close(self) -> None:
        if self._products_before is not None:
            torch.set_float32_matmul_precision(self._products_before)
            self._products_before = None
        self._bench = None
        self._data.clear()
        self._samples.clear()
        # A lost device may refuse this like everything else. Its loss has been reported.
        refusals = suppress(RuntimeError) if self._is_lost else nullcontext()
        with refusals:
            self._device.clean_up()
        with refusals:
            self._device.lift_limit()
        if self._own_checkpoints is not None:
            self._own_checkpoints.cleanup()
