"""A check tells every problem of a task together, in the user's own frames, and leaves nothing changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from autobatch.errors import TaskError
from autobatch.tasks.task import Task, load_task
from autobatch.worker.check import check_task, peak_lr_fraction
from autobatch.worker.check_data import describe_batch

TASKS = Path(__file__).parents[1] / "task_files"
BROKEN = TASKS / "broken"
CPU = torch.device("cpu")
GOOD = ["contrastive", "custom_loader", "full", "in_code", "iterable", "lstm", "minimal", "own_step"]


def _check(task: Task) -> tuple[str, ...]:
    return check_task(task, CPU, task.baseline_config()[0].plan.batch_size).warnings


def _data() -> TensorDataset:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def _task(**changes: Any) -> Task:
    return Task(**({"model": lambda: nn.Linear(3, 2), "train_data": _data, "val_data": _data} | changes))


@pytest.mark.parametrize("name", GOOD)
def test_a_good_task_passes_without_a_warning(name: str) -> None:
    assert _check(load_task(TASKS / f"{name}.py")) == ()


@pytest.mark.parametrize("name", GOOD)
def test_a_check_leaves_the_random_generators_where_they_were(name: str) -> None:
    task = load_task(TASKS / f"{name}.py")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    _check(task)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_a_live_model_handed_out_by_a_task_in_code_comes_back_as_it_was() -> None:
    class Live:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

        def __call__(self) -> nn.Module:
            return self.model

    live = Live()
    live.model[0].weight.grad = torch.ones(4, 3)
    before = {key: value.clone() for key, value in live.model.state_dict().items()}
    _check(_task(model=live))
    assert all(torch.equal(value, before[key]) for key, value in live.model.state_dict().items())
    assert torch.equal(live.model[0].weight.grad, torch.ones(4, 3))
    assert live.model[2].weight.grad is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model_raises", r"(?s)model\(\) of model_raises\.py failed: KeyError: 'wide'.*in model\n.*in build\n"),
        ("model_not_module", r"model\(\) must return a torch\.nn\.Module; it returned a dict"),
        ("model_none", r"model\(\) must return .* it returned None: is its `return` missing\?"),
        ("model_shared", r"model\(\) must return a new module at each call"),
        ("model_frozen", r"a trainable parameter; Linear has 2, all with requires_grad=False"),
        ("data_raises", r"(?s)train_data\(\) of data_raises\.py failed: FileNotFoundError.*line 5, in train_data"),
        ("data_none", r"train_data\(\) must return a Dataset; it returned None: is its `return` missing"),
        ("data_loader", r"it returned a DataLoader: return its dataset"),
        ("data_empty", r"val_data\(\) must give at least one sample; the list it returned is empty"),
        ("data_short", r"train_data\(\) has 20 samples, fewer than the baseline's batch of 32"),
        ("data_no_length", r"a Endless, which has not both __len__ and __getitem__"),
        (
            "sample_raises",
            r"(?s)sample 5 of train_data\(\) of sample_raises\.py failed: FileNotFoundError: image_5\.png",
        ),
        (
            "odd_sample",
            r"sample 17 of train_data\(\) .*\(3, 30\), int\) where the others are \(float32 \(3, 32\), int\)",
        ),
        ("ragged", r"samples of train_data\(\) differ in shape \(sample 0: \(float32 \(5,\), int\); sample 1:"),
        ("collate_raises", r"(?s)sample 12 of train_data\(\) cannot be collated.*ValueError: a value above 1\.5"),
        ("collate_always_raises", r"(?s)collate\(samples\) on the first 32 samples .*AttributeError.*in collate"),
        (
            "batch_mismatch",
            r"(?s)mat1 and mat2 .*the batch is \(float32 \(4, 12\), .*first layer is 0: Linear\(in_features=8",
        ),
        ("not_a_pair", r"(?s)has 2 problems.*the default metric needs.*the default loss needs batches that are a pair"),
        ("loss_float", r"scalar tensor, .* it returned a float: return the tensor itself, without \.item\(\)"),
        ("loss_none", r"loss\(model, batch\) must return .* it returned None: is its `return` missing"),
        ("loss_vector", r"it returned a tensor of shape \(4,\): reduce it with \.mean\(\)"),
        ("loss_nan", r"loss\(model, batch\) must be finite; it is nan on the first batch.* look for log\(0\)"),
        ("loss_detached", r"no gradient flows back from it: look for \.detach\(\)"),
        ("loss_raises", r"(?s)loss\(model, batch\) of loss_raises\.py failed: TypeError.*in loss\n.*in helper\n"),
        ("gradient_nowhere", r"gives no parameter of model\(\) a gradient: does it use its argument `model`"),
        ("metric_shape", r"one score per sample, shape \(4,\), or their mean, \(\); it returned shape \(4, 2\)"),
        ("metric_none", r"metric\(model, batch\) must return .* it returned None"),
        ("metric_raises", r"(?s)metric\(model, batch\) of metric_raises\.py failed: .*the batch is \(float32 \(4, 8\)"),
        ("metric_nan", r"metric\(model, batch\) must be finite; on the first batch it is nan"),
        ("evaluate_text", r"evaluate\(model, loader\) must return a float; it returned dict"),
        ("evaluate_raises", r"(?s)evaluate\(model, loader\) of .* failed: AttributeError.*in evaluate"),
        ("optimizer_raises", r"(?s)optimizer\(model, lr\) of .* failed: TypeError: .*'momentun'"),
        ("optimizer_none", r"must return a torch\.optim\.Optimizer; it returned NoneType"),
        ("optimizer_ignores_lr", r"must use the lr it is given; its groups have lr = 0\.1 for lr = 0\.001 as for"),
        ("scheduler_raises", r"(?s)scheduler\(optimizer, total_steps\) of .* failed: TypeError: .*T_max"),
        ("scheduler_no_step", r"must return an object with a step\(\); it returned function"),
        ("scheduler_plateau", r"ReduceLROnPlateau goes by a metric, and autobatch calls step\(\) without arguments"),
        (
            "training_step_raises",
            r"(?s)training_step\(.*\) of .* failed: RuntimeError: not yet written.*in training_step",
        ),
        ("train_loader_size", r"gives batches of that many samples; the first had 32"),
        ("sample_size_none", r"sample_size\(sample\) must return a number; for sample 0 of train_data\(\)"),
        ("many", r"many\.py has 3 problems:\n  1\. train_data\(\)"),
    ],
)
def test_bad_input_gets_a_clear_answer(name: str, message: str) -> None:
    task = load_task(BROKEN / f"{name}.py")
    with pytest.raises(TaskError, match=message) as caught:
        _check(task)
    assert "site-packages" not in str(caught.value)
    assert "autobatch/check" not in str(caught.value)


def test_every_broken_file_is_a_test() -> None:
    helpers = {"parts"}
    here = Path(__file__).read_text() + (Path(__file__).parents[1] / "tasks" / "test_task.py").read_text()
    assert [p.stem for p in BROKEN.glob("*.py") if p.stem not in helpers and p.stem not in here] == []


def test_independent_problems_are_told_together() -> None:
    with pytest.raises(TaskError, match=r"many\.py has 3 problems") as caught:
        _check(load_task(BROKEN / "many.py"))
    for part in ("the disk is gone", "val_data() must give at least one", "must return a torch.optim.Optimizer"):
        assert part in str(caught.value)


def test_a_default_baseline_that_does_not_fit_the_data_is_not_called_the_users() -> None:
    short = TensorDataset(torch.zeros(10, 3), torch.zeros(10, dtype=torch.long))
    with pytest.raises(
        TaskError, match=r"10 samples, fewer than the default baseline's batch of 32: declare a baseline"
    ):
        _check(_task(train_data=lambda: short))


def test_nan_in_the_data_is_told_apart_from_nan_in_the_loss() -> None:
    broken = TensorDataset(torch.full((64, 3), float("nan")), torch.zeros(64, dtype=torch.long))
    with pytest.raises(TaskError, match=r"the batch itself holds values that are not finite \(\(float32 \(4, 3\)"):
        _check(_task(train_data=lambda: broken))


def test_a_gradient_that_is_not_finite_is_told() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        # sqrt has an infinite slope at zero, and zero times infinity is nan: the value is fine, the gradient is not.
        loss: torch.Tensor = (model(batch[0]) * 0).abs().sqrt().mean()
        return loss

    with pytest.raises(TaskError, match=r"gradients of loss\(model, batch\) must be finite; .*those of weight, bias"):
        _check(_task(loss=loss))


def test_running_out_of_memory_is_left_to_the_memory_probe() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert _check(_task(loss=loss)) == (
        "loss(model, batch) ran out of memory in the check with a few samples and was not checked",
    )


def test_a_score_that_does_not_exist_on_few_samples_is_a_warning() -> None:
    def evaluate(model: nn.Module, loader: Any) -> float:
        raise ValueError("only one class present")

    assert _check(_task(evaluate=evaluate)) == (
        "evaluate(model, loader) could not be checked: on the first 32 validation samples it raised ValueError: only "
        "one class present",
    )


def _half_frozen() -> nn.Module:
    model = nn.Linear(3, 2)
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    return model


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"direction": "minimize"}, "the worst classifier would win"),
        ({"model": _half_frozen}, "1 of 3 trainable parameters get no gradient from loss(model, batch) (unused)"),
        (
            {"optimizer": lambda model, lr: torch.optim.SGD([model.weight], lr=lr)},
            "optimizer(model, lr) leaves out 1 parameters (bias)",
        ),
    ],
)
def test_what_is_odd_but_may_be_meant_is_a_warning(changes: dict[str, Any], warning: str) -> None:
    assert any(warning in found for found in _check(_task(**changes)))


def test_remarks_of_who_made_the_task_are_told_with_the_warnings() -> None:
    assert _check(_task(remarks=("its callbacks do not run",))) == ("its callbacks do not run",)
    with pytest.raises(TaskError, match=r"remarks must be a tuple of texts; found \['a list'\]"):
        _task(remarks=["a list"])


def test_batch_norm_and_a_baseline_of_one_sample_are_a_warning() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    warnings = _check(_task(model=model, baseline={"batch_size": 1, "lr": 1e-3}))
    assert [w for w in warnings if "batch norm and the baseline a batch of 1" in w]


def test_one_data_set_for_training_and_validation_is_a_warning() -> None:
    data = _data()
    assert _check(_task(train_data=lambda: data, val_data=lambda: data)) == (
        "train_data() and val_data() return the same object: scores are of data trained on",
    )


def _schedule(factor: Callable[[float], float]) -> Any:
    return lambda optimizer, total: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step / total))


@given(peak=st.integers(0, 90))
@settings(max_examples=15)
def test_the_peak_of_a_schedule_is_found_where_it_is(peak: int) -> None:
    task = _task(scheduler=_schedule(lambda share: 1 - abs(share - peak / 100)))
    assert peak_lr_fraction(task, total_steps=100) == pytest.approx(peak / 100)


@pytest.mark.parametrize(
    ("scheduler", "fraction"),
    [
        (None, 0.0),
        (_schedule(lambda share: 1.0), 0.0),
        (_schedule(lambda share: 1 - share), 0.0),
        (_schedule(lambda share: min(1.0, share / 0.25)), 0.25),
        (lambda optimizer, total: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total), 0.299),
    ],
    ids=["none", "constant", "falling", "plateau", "one cycle"],
)
def test_known_schedules_peak_where_they_say(scheduler: Any, fraction: float) -> None:
    assert peak_lr_fraction(_task(scheduler=scheduler)) == fraction


def test_a_schedule_that_runs_out_of_memory_is_not_called_the_tasks_fault() -> None:
    def scheduler(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        peak_lr_fraction(_task(scheduler=scheduler))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (_schedule(lambda share: 0.0), "keeps the learning rate at 0 for the whole schedule"),
        (_schedule(lambda share: 0.5 - share), r"sets the learning rate to -.* at step 501"),
        (_schedule(lambda share: float("nan")), "sets the learning rate to nan at step 0"),
    ],
)
def test_a_rate_that_cannot_be_used_is_told(scheduler: Any, message: str) -> None:
    task = _task(scheduler=scheduler)
    with pytest.raises(TaskError, match=message):
        peak_lr_fraction(task)
    with pytest.raises(TaskError, match=message):
        _check(task)


def test_a_batch_is_described_by_its_types_and_shapes() -> None:
    batch = {"x": torch.zeros(2, 3), "rest": (torch.zeros(2, dtype=torch.long), np.zeros(2), "text")}
    assert describe_batch(batch) == "{x: float32 (2, 3), rest: (int64 (2,), float64 (2,), str)}"
