"""The verbs in code, as a script uses them."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autobatch
from autobatch.bench.verbs import profile_compute_modes
from autobatch.core.compute_mode import parse_compute_modes
from autobatch.core.plan import Config, Plan
from autobatch.core.runner import Runner
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.errors import DoesNotFit, SettingError, TaskError
from autobatch.searching.schedulers.table import SEARCHES
from autobatch.simulated.sim import SimRunner, sim_facts

from .helpers.ready_python import run

pytestmark = pytest.mark.usefixtures("ready_python")

TASKS = Path(__file__).parent / "task_files"


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 8))


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "state": copy.deepcopy(model.state_dict()),
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "rng": torch.get_rng_state(),
    }


def test_the_largest_batch_of_a_live_model_ran_and_the_next_did_not() -> None:
    model = small()
    model(torch.randn(4, 64)).sum().backward()
    model.get_submodule("3").eval()
    model.get_parameter("0.weight").requires_grad_(False)
    before = state_of(model)
    options: dict[str, Any] = {"memory_limit": "64MiB", "prove": True, "multiple_of": 32}
    found = autobatch.find_max_batch(model, torch.zeros(64), device="cpu", **options)
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)
    assert found.limited_by == "memory"
    assert found.proof is not None
    assert found.proof.plan.batch_size == found + 32
    assert found.final_probe.fresh
    assert len(range(found)) == found  # it is an int, and goes straight into a DataLoader


def test_in_this_process_the_model_comes_back_too() -> None:
    model = small().eval()
    before = state_of(model)
    found = autobatch.find_max_batch(model, torch.zeros(64), device="cpu", max_batch_size=64, isolate=False)
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)
    assert found == 64
    assert found.limited_by == "ceiling"


def test_inference_fits_more_than_training() -> None:
    training, inference = (
        autobatch.find_max_batch(
            small(), torch.zeros(64), device="cpu", memory_limit="48MiB", mode=mode, multiple_of=512
        )
        for mode in ("training", "inference")
    )
    assert inference > training


def test_an_inferred_input_is_told_and_warned_about() -> None:
    with pytest.warns(UserWarning, match="assumed"):
        found = autobatch.find_max_batch(small(), device="cpu", max_batch_size=8)
    assert found.assumed
    assert found.to_json()["assumed"] == list(found.assumed)
    assert found.warnings == ()  # of a stand-in for data nothing is to be said


def test_what_the_check_found_is_in_the_answer() -> None:
    def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        first, *_ = model.parameters()
        return torch.optim.SGD([first], lr=lr)

    found = autobatch.find_max_batch(
        small(), torch.zeros(64), optimizer=optimizer, device="cpu", max_batch_size=8, isolate=False
    )
    assert [warning for warning in found.warnings if warning.startswith("optimizer(model, lr) leaves out ")]
    assert pickle.loads(pickle.dumps(found)).warnings == found.warnings


def test_a_model_whose_input_is_unknown_asks_for_a_sample() -> None:
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(TaskError, match="sample="):
        autobatch.find_max_batch(Unknown(), device="cpu")


def test_a_task_made_in_code_runs_in_workers() -> None:
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    data = TensorDataset(torch.randn(96, 64), torch.arange(96) % 8)
    task = autobatch.Task(model=small, train_data=lambda: data, val_data=lambda: data, loss=loss)
    assert autobatch.find_max_batch(task, device="cpu") == 96
    curve = autobatch.profile(task, budget="1s", device="cpu", max_batch_size=32)
    assert curve.step_s(16) > 0
    sweep = autobatch.find_lr(task, steps=30, device="cpu", accumulation_steps=2)
    assert len(sweep.sweep.lrs) <= 30
    assert sweep.sweep.plan == Plan(batch_size=32, accumulation_steps=2)


OWN = Plan(batch_size=16, accumulation_steps=2)


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ({}, OWN),
        ({"accumulation_steps": 4}, Plan(batch_size=16, accumulation_steps=4)),
        ({"accumulation_steps": 1}, Plan(batch_size=16)),
        ({"batch_size": 64}, Plan(batch_size=64)),
        ({"batch_size": 64, "accumulation_steps": 3}, Plan(batch_size=64, accumulation_steps=3)),
    ],
)
def test_a_range_test_takes_the_steps_that_it_is_given(
    given: dict[str, int], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = SimRunner(known=sim_facts(baseline=Config(plan=OWN, lr=0.1)))
    monkeypatch.setattr("autobatch.api.open_task", lambda *_, **__: nullcontext((runner, OWN, ())))
    assert autobatch.find_lr(TASKS / "minimal.py", **given).sweep.plan == plan  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["batch_size", "accumulation_steps"])
def test_a_range_test_of_no_step_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} is at least 1; got 0"):
        autobatch.find_lr(TASKS / "minimal.py", **{name: 0})  # type: ignore[arg-type]


class Waits(nn.Module):
    """A model of next to no work, whose samples are large: stacking them takes longer than its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x[:, :1]


def test_a_live_model_is_timed_without_the_stacking_of_a_stand_in() -> None:
    curve = autobatch.profile(Waits(), torch.zeros(200_000), budget="1s", device="cpu", max_batch_size=16)
    assert not curve.loader_bound
    assert curve.remedy is None


def test_what_a_profile_assumes_of_a_live_model_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="profile assumed: .*the optimizer is AdamW"):
        autobatch.profile(small(), budget="0.2s", device="cpu", max_batch_size=8)


def test_a_limit_of_memory_does_not_slow_down_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is counted to the page each step asks the kernel for its pages again."""
    timed_under: list[int | None] = []
    time_it = RemoteRunner.time

    def noted(self: RemoteRunner, *args: Any, **kwargs: Any) -> Any:
        timed_under.append(self._spec.memory_limit_bytes)
        return time_it(self, *args, **kwargs)

    monkeypatch.setattr(RemoteRunner, "time", noted)
    how: dict[str, Any] = {"budget": "0.3s", "device": "cpu", "memory_limit": "64MiB", "max_batch_size": 8}
    curve = autobatch.profile(TASKS / "minimal.py", **how)
    assert curve.step_s(8) > 0
    assert set(timed_under) == {None}
    timed_under.clear()
    (profiled,) = profile_compute_modes(TASKS / "minimal.py", parse_compute_modes(["fp32"]), **how)
    assert profiled.curve is not None
    assert set(timed_under) == {None}


def test_only_the_search_for_the_largest_batch_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []

    def noted(spec: RunnerSpec) -> Runner:
        opened.append(spec.is_timed)
        raise InterruptedError

    monkeypatch.setattr("autobatch.engines.opening.open_workers", noted)
    for verb in (autobatch.find_max_batch, autobatch.profile, autobatch.find_lr):
        with pytest.raises(InterruptedError):
            verb(TASKS / "minimal.py")
    assert opened == [False, True, True]


def test_nothing_fits_is_told_with_the_numbers() -> None:
    with pytest.raises(DoesNotFit, match="a batch of 2 must fit in 243 KiB"):
        autobatch.find_max_batch(small(), torch.zeros(64), device="cpu", memory_limit="256KiB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"headroom": -0.1}, "headroom is a share"),
        ({"memory_limit": "much"}, "a size is written"),
        ({"max_batch_size": 0}, "max_batch_size is at least 1; got 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        autobatch.find_max_batch(TASKS / "minimal.py", device="cpu", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": torch.zeros(8)}, r"sample= is for a live module; with a task it is the task's train_data\(\)"),
        ({"data": TensorDataset(torch.zeros(4, 8))}, "data= is for a live module"),
        ({"loss": lambda model, batch: model(batch).mean()}, "loss= is for a live module"),
        ({"optimizer": torch.optim.SGD}, r"optimizer= is for a live module.* optimizer\(model, lr\) that counts"),
        ({"precision": "fp32"}, "precision= is for a live module"),
        ({"isolate": False}, "isolate=False is for a live module; a task always runs in worker processes"),
    ],
)
def test_what_a_task_says_itself_is_refused_and_not_ignored(arguments: dict[str, Any], message: str) -> None:
    task = autobatch.Task(model=small, train_data=list, val_data=list)
    for given in (TASKS / "minimal.py", str(TASKS / "minimal.py"), task):
        with pytest.raises(SettingError, match=message):
            autobatch.find_max_batch(given, device="cpu", **arguments)
    if "sample" in arguments:
        with pytest.raises(SettingError, match=message):
            autobatch.profile(task, device="cpu", **arguments)


@pytest.mark.parametrize("wrap", [TensorDataset, lambda x: DataLoader(TensorDataset(x), batch_size=3)])
def test_the_size_of_the_data_of_a_live_model_ends_the_search(wrap: Callable[[torch.Tensor], Any]) -> None:
    found = autobatch.find_max_batch(small(), data=wrap(torch.zeros(10, 64)), device="cpu", isolate=False)
    assert (found, found.limited_by) == (10, "dataset")
    assert found.why_not_proved == "the batch is limited by the dataset, and no size above 10 was to be tried"


# Whether anything is found in so short a time is not asked here: by then workers have been started and have trained.
SCRIPT = """
import autobatch
print("the script ran")
assert autobatch.find_max_batch({task!r}, device="cpu", max_batch_size=8) == 8
try:
    autobatch.tune({task!r}, budget=10, device="cpu")
except autobatch.AutobatchError as error:
    assert "Give at least" in str(error) or "is not known" in str(error), error
print("to its end")
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(task=str(TASKS / "minimal.py")))
    result = run([sys.executable, script], cwd=tmp_path, timeout=1800)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["the script ran", "to its end"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="find_max_batch"):
        autobatch.find_maximum_batch  # noqa: B018
    assert set(dir(autobatch)) >= {"tune", "find_max_batch", "profile", "find_lr", "Task", "Report", "load_task"}


def test_a_bare_model_is_not_tuned_for_want_of_data() -> None:
    with pytest.raises(SettingError, match=r"a Task or the path of a task file or .* is needed.*got Linear"):
        autobatch.tune(nn.Linear(4, 2), budget="1m")


def test_a_search_can_be_kept_and_replayed(tmp_path: Path) -> None:
    from autobatch.core.plan import Plan
    from autobatch.measuring.memory import find_max_batch_size
    from autobatch.simulated.recording import Recording, ReplayProber
    from autobatch.simulated.sim import sim_facts

    file = tmp_path / "probes.json"
    found = autobatch.find_max_batch(
        small(), torch.zeros(64), device="cpu", memory_limit="64MiB", prove=True, multiple_of=256, record=file
    )
    recording = Recording.load(file)
    assert len(recording.probes) == len(found.probes)
    assert recording.about["device"]["kind"] == "cpu"
    replay = ReplayProber(recording, sim_facts())
    how: dict[str, Any] = {"ceiling": 131072, "ceiling_is": "ceiling", "prove": True, "multiple_of": 256}
    again = find_max_batch_size(replay, Plan(batch_size=1), **how)
    assert again == found


def test_gradients_that_are_kept_leave_room_for_fewer_samples() -> None:
    def found(**options: Any) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 64))
        return int(
            autobatch.find_max_batch(
                model, torch.zeros(64), device="cpu", memory_limit="32MiB", multiple_of=8, **options
            )
        )

    kept, plain = found(accumulation_steps=4), found()
    assert kept < plain
    # To a step belong the weights, their gradients and two moments, and at least four times the hidden layer: 64 KiB.
    assert plain <= ((32 << 20) - 16 * (64 * 4096 * 2)) / (64 << 10)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SettingError, match="accumulation_steps is at least 1; got 0"):
        autobatch.find_max_batch(small(), torch.zeros(64), device="cpu", accumulation_steps=0, isolate=False)
    with pytest.raises(SettingError, match="soak is a number of steps, at least 0; got -1"):
        autobatch.find_max_batch(small(), torch.zeros(64), device="cpu", soak=-1)
    with pytest.raises(SettingError, match="soak takes training steps, and mode='inference' takes none"):
        autobatch.find_max_batch(small(), torch.zeros(64), device="cpu", soak=2, mode="inference")


def test_a_search_or_an_engine_that_there_is_none_of_is_told_at_once(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"run_dir": tmp_path / "run"}
    with pytest.raises(SettingError, match=f"search is one of {', '.join(SEARCHES)}; got 'gp'"):
        autobatch.tune(tmp_path / "model.py", search="gp", **asked)
    with pytest.raises(SettingError, match="engine is one of local, ray; got 'rey'"):
        autobatch.tune(tmp_path / "model.py", engine="rey", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
