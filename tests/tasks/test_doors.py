"""Everything comes in by one table: each way in takes what it says, and refuses what is void for it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import autobatch
from autobatch.engines.opening import spec_for
from autobatch.errors import SettingError, TaskError
from autobatch.tasks.command import Command
from autobatch.tasks.doors import table
from autobatch.tasks.doors.door import ARGUMENTS, OF_SOME, Door, GivenTask, is_a
from autobatch.tasks.doors.table import DOORS, as_task
from autobatch.tasks.task import Task, load_task

MINIMAL = Path(__file__).parents[1] / "task_files" / "minimal.py"
SCRIPT = Command(
    "python train.py --batch-size {batch_size} --lr {lr}",
    score="acc=([0-9.]+)",
    direction="maximize",
    baseline="batch_size=32 lr=1e-3",
)
IN_CODE = Task(name="code", model=lambda: nn.Linear(4, 2), train_data=list, val_data=list)


def test_a_path_is_a_task_file() -> None:
    for given in (MINIMAL, str(MINIMAL)):
        assert as_task(given) == GivenTask(name="minimal", path=MINIMAL)
    with pytest.raises(TaskError, match="nowhere"):
        as_task("nowhere.py")


def test_a_task_is_itself_and_one_from_a_file_is_its_file() -> None:
    assert as_task(IN_CODE) == GivenTask(name="code", task=IN_CODE)
    task = load_task(MINIMAL)
    assert (as_task(task).path, as_task(task).task, as_task(task).name) == (MINIMAL, task, "minimal")
    assert spec_for(as_task(task), "cpu", None, 0.05).path == MINIMAL
    assert spec_for(as_task(IN_CODE), "cpu", None, 0.05).pickled is not None


def test_a_command_is_itself_and_says_what_it_lacks() -> None:
    assert as_task(SCRIPT, whole=True) == GivenTask(name="train", command=SCRIPT)
    assert spec_for(as_task(SCRIPT), "auto", None, 0.05).command is SCRIPT
    bare = Command("python train.py {batch_size}")
    assert as_task(bare).command is bare
    with pytest.raises(TaskError, match=r"^\{lr\} is missing in the command"):
        as_task(bare, whole=True)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"nproc": 2}, "starts its own processes; got --nproc 2"),
        ({"mode": "inference"}, "mode='inference': leave it out"),
        ({"soak": 5}, "soak=5: leave it out"),
        ({"device": "cuda:1"}, "got --device cuda:1: .* as in CUDA_VISIBLE_DEVICES=1 python"),
    ],
)
def test_what_only_a_task_can_be_asked_for_is_refused_for_a_command(asked: dict[str, Any], told: str) -> None:
    settings: dict[str, Any] = {"device": "cpu", "memory_limit": None, "headroom": 0.05} | asked
    with pytest.raises(SettingError, match=told):
        spec_for(as_task(SCRIPT), **settings)


def test_a_model_is_live_and_only_what_nobody_said_of_its_input_is_a_guess() -> None:
    model = nn.Linear(4, 2)
    guessed, said, shown = as_task(model), as_task(model, sample=torch.zeros(4)), as_task(model, data=DATA)
    assert guessed.guess == guessed.assumed[0]
    assert said.guess is None
    assert shown.guess is None
    for given in (guessed, said, shown):
        assert (given.is_live, given.path, given.name) == (True, None, "Linear")
        assert given.task is not None
        assert given.task.model() is model
    assert as_task(model, precision="bf16").task.precision == "bf16"  # type: ignore[union-attr]


DATA = TensorDataset(torch.zeros(3, 4))


@pytest.mark.parametrize("given", [3, None, {"model": 1}, nn.Linear, lambda: nn.Linear(4, 2)])
def test_what_no_door_takes_is_refused_with_what_is_needed(given: object) -> None:
    kind = type(given).__name__
    with pytest.raises(
        SettingError, match=rf"^a Task or the path of a task file or .* is needed, .*; got {kind}\. `find_max"
    ):
        as_task(given)
    with pytest.raises(SettingError, match="is needed"):
        autobatch.find_max_batch(given)


def test_what_is_to_be_trained_says_on_which_data() -> None:
    with pytest.raises(SettingError, match=r"got Linear\. `find_max_batch` and `profile` take a model as it is"):
        as_task(nn.Linear(4, 2), whole=True)
    with pytest.raises(SettingError, match=r"got Linear\."):
        autobatch.tune(nn.Linear(4, 2))
    assert as_task(MINIMAL, whole=True).path == MINIMAL


@pytest.mark.parametrize("given", [MINIMAL, IN_CODE, SCRIPT], ids=["path", "task", "command"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_that_a_task_makes_void_is_refused(given: Any, name: str) -> None:
    said: dict[str, Any] = {name: "fp32"}
    with pytest.raises(SettingError, match=rf"^{name}= is for a live module; .* it is the (task's|script) .* counts"):
        as_task(given, **said)
    unsaid: dict[str, Any] = dict.fromkeys(ARGUMENTS)
    assert as_task(given, **unsaid) == as_task(given)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.what)
def test_a_door_takes_each_argument_or_says_who_says_it(door: Door) -> None:
    parameters = inspect.signature(door.opened).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    taken = {*ARGUMENTS} if takes_any else {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    taken -= set(door.also)
    assert taken | set(door.said_by) == set(ARGUMENTS)
    assert not taken & set(door.said_by)


@pytest.mark.parametrize("name", OF_SOME)
@pytest.mark.parametrize("given", [MINIMAL, IN_CODE, nn.Linear(4, 2)], ids=["path", "task", "module"])
def test_an_argument_of_some_other_thing_is_refused_with_what_it_is_for(given: Any, name: str) -> None:
    said: dict[str, Any] = {name: "val_acc"}
    with pytest.raises(SettingError, match=rf"^{name}= is for {OF_SOME[name]}; got {type(given).__name__}: leave it"):
        as_task(given, **said)


def test_a_new_door_is_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer(UserDict[str, Any]):
        """Of somebody else's."""

    def opened(given: Trainer, *, precision: str = "fp32") -> GivenTask:
        return GivenTask(name=given["name"], path=MINIMAL)

    said = dict.fromkeys(("sample", "data", "loss", "optimizer"), "the trainer's own")
    door = Door(what="a Trainer", takes=lambda given: is_a(given, __name__, "Trainer"), opened=opened, said_by=said)
    trainer = Trainer(name="theirs")
    monkeypatch.setattr(table, "DOORS", (door, *DOORS))
    with pytest.raises(SettingError, match=r"^a Trainer or a Task or the path of a task file or .* is needed"):
        as_task(trainer)  # its class is not where the door looks for it
    monkeypatch.setattr(sys.modules[__name__], "Trainer", Trainer, raising=False)
    assert as_task(trainer, whole=True, precision="bf16") == GivenTask(name="theirs", path=MINIMAL)
    with pytest.raises(SettingError, match=r"loss= is for a live module; .* the trainer's own that counts"):
        as_task(trainer, loss=max)


def test_what_can_only_be_measured_says_why_where_it_is_to_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    given = GivenTask(name="theirs", path=MINIMAL, only_measured="nothing says how it is scored: give it an eval_data")
    door = Door(what="a set", takes=lambda given: isinstance(given, set), opened=lambda _: given, said_by={})
    monkeypatch.setattr(table, "DOORS", (door, *DOORS))
    assert as_task(set()) == given
    with pytest.raises(TaskError, match=r"^nothing says how it is scored: give it an eval_data$"):
        as_task(set(), whole=True)


def test_a_path_comes_in_without_torch() -> None:
    code = (
        "import sys; from autobatch.tasks.doors.table import as_task; "
        f"assert as_task({str(MINIMAL)!r}, whole=True).name == 'minimal'; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0
