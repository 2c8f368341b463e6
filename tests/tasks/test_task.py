"""Tasks are read from files as users write them, and every problem that can be known without a call is told at once."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
import textwrap
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
from autobatch.tasks.shown import shown
from autobatch.tasks.task import Task, accuracy, adamw, blame, cross_entropy_loss, load_task
from autobatch.tasks.task_file import gather, user_frames
from autobatch.worker.check import check_task

from ..helpers.ready_python import run

pytestmark = pytest.mark.usefixtures("ready_python")

TASKS = Path(__file__).parents[1] / "task_files"
BROKEN = TASKS / "broken"
# A script elsewhere finds the package as this checkout, installed or not.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TASKS.parents[1])}


def _data() -> TensorDataset:
    return TensorDataset(torch.zeros(8, 3), torch.zeros(8, dtype=torch.long))


def _task(**changes: Any) -> Task:
    return Task(**({"model": lambda: nn.Linear(3, 2), "train_data": _data, "val_data": _data} | changes))


def _write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


def test_three_functions_are_a_task_and_the_rest_has_defaults() -> None:
    task = load_task(TASKS / "minimal.py")
    assert (task.name, task.path, task.direction, task.precision) == (
        "minimal",
        TASKS / "minimal.py",
        "maximize",
        "fp32",
    )
    assert (task.loss, task.metric, task.optimizer, task.scheduler) == (cross_entropy_loss, accuracy, adamw, None)
    config, is_users = task.baseline_config()
    assert (config.plan.batch_size, config.plan.accumulation_steps, config.lr, is_users) == (32, 1, 1e-3, False)


def test_every_optional_part_of_a_file_is_read() -> None:
    task = load_task(str(TASKS / "full.py"))
    replaced = {"training_step", "train_loader"}
    unset = {known.name for known in dataclasses.fields(Task) if getattr(task, known.name) is None}
    assert unset == replaced
    assert task.name == "every part"
    config, is_users = task.baseline_config()
    assert (config.plan.effective_batch_size, config.lr, is_users) == (32, 3e-3, True)


def test_a_file_may_hold_a_task_made_in_code() -> None:
    task = load_task(TASKS / "in_code.py")
    assert (task.name, task.path, task.baseline_config()[0].lr) == ("in_code", TASKS / "in_code.py", 1e-2)


def test_a_train_loader_stands_in_for_train_data() -> None:
    assert load_task(TASKS / "custom_loader.py").train_data is None


def test_a_file_is_run_as_it_is_now_and_never_as_main(tmp_path: Path) -> None:
    text = """
        from torch import nn
        WIDTH = {width}
        def model(): return nn.Linear(3, WIDTH)
        def train_data(): return []
        def val_data(): return []
        if __name__ == "__main__": raise RuntimeError("run as a script")
    """
    first = load_task(_write(tmp_path / "model.py", text.format(width=2)))
    second = load_task(_write(tmp_path / "model.py", text.format(width=5)))
    assert [task.model().out_features for task in (first, second)] == [2, 5]
    assert not (tmp_path / "__pycache__").exists()


def test_files_of_one_name_in_two_folders_are_two_tasks(tmp_path: Path) -> None:
    tasks = []
    for folder in ("a b", "c.d"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "model.py"
        file.write_text((TASKS / "minimal.py").read_text().replace("nn.Linear(16, 3)", f"nn.Linear(16, {len(folder)})"))
        tasks.append(load_task(file))
    assert [task.model().get_submodule("2").out_features for task in tasks] == [3, 3]
    assert tasks[0].model.__module__ != tasks[1].model.__module__


def test_what_a_file_defines_can_be_unpickled_in_a_process_that_never_loaded_it(tmp_path: Path) -> None:
    task, with_sibling = load_task(TASKS / "lstm.py"), load_task(TASKS / "full.py")
    assert task.train_data is not None
    pickled = pickle.dumps((task.train_data(), task.collate, with_sibling.train_data))
    code = """
        import pickle
        data, collate, train_data = pickle.load(open("pickled", "rb"))
        print(len(data), len(collate([data[0], data[1]])[0]), len(train_data()))
    """
    (tmp_path / "pickled").write_bytes(pickled)
    done = run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=ENVIRONMENT, timeout=600)
    assert done.stdout.strip() == "128 2 192", done.stderr


@pytest.mark.slow
def test_spawned_loader_workers_can_read_a_files_dataset(tmp_path: Path) -> None:
    code = f"""
        from torch.utils.data import DataLoader
        from autobatch.tasks.task import load_task
        if __name__ == "__main__":
            task = load_task({str(TASKS / "lstm.py")!r})
            batches = DataLoader(task.train_data(), batch_size=64, num_workers=1, multiprocessing_context="spawn",
                                 collate_fn=task.collate)
            print(sum(len(y) for _, y in batches))
    """
    script = _write(tmp_path / "script.py", code)
    done = run([sys.executable, script], env=ENVIRONMENT, timeout=600)
    assert done.stdout.strip() == "128", done.stderr


# -- files that cannot be tasks ------------------------------------------------------------------------------


def test_a_missing_file_is_told_with_one_of_a_similar_name() -> None:
    with pytest.raises(TaskError, match=r"there is no file .*minmal\.py; did you mean .*minimal\.py\?"):
        load_task(TASKS / "minmal.py")
    with pytest.raises(TaskError, match=r"there is no file /nowhere/model\.py$"):
        load_task("/nowhere/model.py")


def test_a_folder_and_another_kind_of_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"is a folder: pass the file in it, as in .*model\.py"):
        load_task(tmp_path)
    with pytest.raises(TaskError, match=r"name ends in \.py; found .*notes\.txt"):
        load_task(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("syntax_error", r'(?s)not valid Python:\n  File ".*syntax_error\.py", line 4\n    def model\(:\n +\^'),
        ("import_fails", r"(?s)import of import_fails\.py failed: RuntimeError: mat1 .* in <module>.* in widths"),
        ("exits", r"(?s)exits\.py exited while it was imported \(exit code 2\).*__main__.*line 4, in <module>"),
        ("missing_functions", r"must define train_data, val_data; it defines model, helper"),
        ("live_model", r"model must be a function that returns a new module at each call; found a Linear"),
    ],
)
def test_a_broken_file_is_told_with_the_cause(name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        load_task(BROKEN / f"{name}.py")
    assert "site-packages" not in str(caught.value)
    assert "importlib" not in str(caught.value)
    assert "autobatch/task" not in str(caught.value)


def test_a_failed_file_leaves_no_half_made_module(tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(TaskError, match="division by zero"):
        load_task(_write(tmp_path / "half.py", "def model(): ...\n1 / 0\n"))
    assert not {name for name in set(sys.modules) - before if "half" in name}


def test_likely_misspellings_are_told_and_helpers_are_left_alone() -> None:
    with pytest.raises(TaskError, match="has 2 problems") as caught:
        load_task(BROKEN / "misspelled.py")
    message = str(caught.value)
    assert "precison would be ignored; did you mean precision?" in message
    assert "optimiser would be ignored; did you mean optimizer?" in message
    assert "validation_dataset" not in message, "val_data is defined: the other name is a helper"


@pytest.mark.parametrize(("name", "meant"), [("validation_data", "val_data"), ("valuation", None), ("_val_dat", None)])
def test_other_tools_names_are_known_and_private_names_are_not_judged(
    tmp_path: Path, name: str, meant: str | None
) -> None:
    text = f"def model(): ...\ndef train_data(): ...\ndef {name}(): ...\n"
    with pytest.raises(TaskError, match="must define val_data") as caught:
        load_task(_write(tmp_path / "model.py", text))
    assert (f"did you mean {meant}?" in str(caught.value)) == (meant is not None)


def test_all_wrong_settings_of_a_file_are_told_together() -> None:
    with pytest.raises(TaskError, match=r"wrong_settings\.py has 8 problems") as caught:
        load_task(BROKEN / "wrong_settings.py")
    for part in (
        "direction must be one of 'maximize', 'minimize'; found 'max'",
        "precision must be one of 'fp32', 'tf32', 'bf16', 'fp16'; found 'float16'",
        "clip_grad_norm must be a number above zero; found -1.0",
        "compile must be True or False; found 'yes'",
        "loader must not set 'batch_size': it is what autobatch searches",
        "found 'num_worker' (str); did you mean 'num_workers'?",
        "'batch_size' is missing",
        "'lr' must be a number above zero; found 0",
        "loss must be a function loss(model, batch); found the module CrossEntropyLoss",
        "metric is called as metric(model, batch); found metric(outputs)",
    ):
        assert part in str(caught.value)


# -- tasks made in code --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data": None}, "must define train_data; it defines model, val_data$"),
        ({"val_data": _data()}, r"val_data must be a function val_data\(\); found .*TensorDataset"),
        ({"train_data": lambda seed: seed}, r"train_data is called as train_data\(\); found train_data\(seed\)"),
        ({"loss": None}, r"loss must be a function loss\(model, batch\); found None"),
        ({"precision": "bf-16"}, "did you mean 'bf16'"),
        ({"clip_grad_norm": float("nan")}, "clip_grad_norm must be a number above zero; found nan"),
        ({"clip_grad_norm": True}, "clip_grad_norm must be a number above zero; found True"),
        ({"loader": ["pin_memory"]}, "loader must be a dict"),
        ({"loader": {"shuffle": True}}, "must not set 'shuffle': training data is shuffled by the trial's seed"),
        ({"loader": {"collate_fn": len}}, r"must not set 'collate_fn': define collate\(samples\)"),
        ({"baseline": {"batch_size": 1.5, "lr": 1e-3}}, "'batch_size' must be a whole number of at least 1; found 1.5"),
        ({"baseline": {"batch_size": 8}}, "'lr' is missing"),
        ({"baseline": 32}, "baseline must be a dict"),
        (
            {"accumulation": False, "baseline": {"batch_size": 8, "lr": 0.1, "accumulation_steps": 2}},
            "accumulation = False says that a batch is never split",
        ),
        ({"name": " "}, "name must be a text that is not empty"),
        ({"path": "model.py"}, "path must be a pathlib.Path"),
    ],
)
def test_a_field_that_cannot_be_used_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        _task(**changes)


def test_all_problems_of_a_task_are_told_at_once() -> None:
    with pytest.raises(TaskError, match="the task 'x' has 3 problems") as caught:
        _task(name="x", direction="up", precision=16, collate=3)
    assert all(part in str(caught.value) for part in ("direction", "precision", "collate"))


@settings(max_examples=30)
@given(
    batch_size=st.integers(1, 4096),
    steps=st.integers(1, 64),
    lr=st.floats(1e-8, 1e3),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_a_baseline_is_what_the_user_said(batch_size: int, steps: int, lr: float, precision: str) -> None:
    baseline = {"batch_size": batch_size, "lr": lr, "accumulation_steps": steps}
    config, is_users = _task(baseline=baseline, precision=precision).baseline_config()
    plan = config.plan
    assert is_users
    assert (plan.batch_size, plan.accumulation_steps, plan.precision, config.lr) == (batch_size, steps, precision, lr)


# -- the defaults --------------------------------------------------------------------------------------------


def test_the_default_loss_is_the_mean_cross_entropy() -> None:
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    expected = -torch.log_softmax(model(x), dim=1)[torch.arange(5), y].mean()
    torch.testing.assert_close(cross_entropy_loss(model, [x, y]), expected)


def test_the_default_metric_scores_each_sample() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert accuracy(nn.Identity(), (scores, torch.tensor([0, 0, 0]))).tolist() == [1.0, 0.0, 1.0]
    assert accuracy(nn.Identity(), (scores, torch.eye(2)[[0, 1, 1]])).tolist() == [1.0, 1.0, 0.0]
    dense = torch.stack([scores, scores], dim=2)  # (B, classes, positions)
    labels = torch.tensor([[0, 1], [1, 1], [0, 0]])
    assert accuracy(nn.Identity(), (dense, labels)).tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("default", "name", "batch", "message"),
    [
        (cross_entropy_loss, "loss", torch.zeros(4, 3), r"needs batches that are a pair \(x, y\); found a Tensor"),
        (accuracy, "metric", {"x": 1, "y": 2}, r"pair \(x, y\); found a dict of 2"),
        (cross_entropy_loss, "loss", (torch.zeros(4), torch.zeros(4)), r"class scores .* found shape \(4,\)"),
        (accuracy, "metric", ((1, 2), torch.zeros(4)), "class scores .* found tuple"),
    ],
)
def test_a_default_says_what_it_needs(default: Any, name: str, batch: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        default(nn.Identity(), batch)
    assert f"define {name}(model, batch)" in str(caught.value)


# -- errors in the user's code -------------------------------------------------------------------------------


def test_a_traceback_keeps_the_users_frames_and_no_others() -> None:
    def users() -> None:
        json.loads("{")

    with pytest.raises(json.JSONDecodeError) as caught:
        nn.Module.apply(nn.Linear(1, 1), lambda module: users())
    told = user_frames(caught.value, Path(__file__).parent)
    assert told.endswith('json.loads("{")')
    assert "in users" in told
    assert "site-packages" not in told
    assert "json/decoder.py" not in told


def test_blame_names_the_part_the_file_and_the_cause() -> None:
    error = RuntimeError("boom")
    error.__cause__ = KeyError("cause")
    told = str(blame("model()", error, Path("/x/model.py")))
    assert told == "model() of model.py failed: RuntimeError: boom\ncaused by KeyError: 'cause'"
    assert str(blame("loss", TaskError("said already"), None)) == "loss: said already"


def test_gathered_problems_are_numbered_only_when_there_are_several() -> None:
    assert str(gather("model.py", ["one"])) == "model.py: one"
    assert str(gather("model.py", ["a\nb", "c"])) == "model.py has 2 problems:\n  1. a\n     b\n  2. c"


# -- globals that are not asked for ---------------------------------------------------------------------------


TOUCHY = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset

_CALLS = []

def _told(name):
    def method(self, *args):
        _CALLS.append(name)
        raise ValueError(f"{name} was called")
    return method

class Touchy:
    """As a table, an array or a proxy: whatever is asked of it beside its type is counted, and raises."""
    __hash__ = None
    __class__ = property(_told("__class__"))

for _name in ("eq ne lt gt bool repr str len iter contains getitem getattr format dir array int float index").split():
    setattr(Touchy, f"__{_name}__", _told(f"__{_name}__"))

frame = Touchy()
{names}

def model(): return nn.Linear(3, 2)
def train_data(): return TensorDataset(torch.randn(64, 3), torch.arange(64) % 2)
def val_data(): return train_data()
'''


@pytest.mark.parametrize(
    "names",
    [
        "",
        # Names that are close to ours are asked for their type, and for no more.
        *(
            f"{name} = Touchy()"
            for name in ("names", "precisions", "loaders", "baselines", "clip_grad_norms", "losses")
        ),
        "task = Touchy()",
        "frames = [Touchy(), Touchy()]",
        "by_name = {'a': Touchy()}",
        "def __getattr__(name): return Touchy()",
        "def __getattr__(name): raise RuntimeError(name)",
    ],
)
def test_a_value_that_is_not_asked_for_is_left_alone(tmp_path: Path, names: str) -> None:
    task = load_task(_write(tmp_path / "model.py", TOUCHY.replace("{names}", names)))
    check_task(task, torch.device("cpu"), 32)
    assert vars(sys.modules[task.model.__module__])["_CALLS"] == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("direction = Touchy()", "direction must be one of 'maximize', 'minimize'; found a Touchy"),
        ("precision = Touchy()", "precision must be one of .*; found a Touchy"),
        ("compile = Touchy()", "compile must be True or False; found a Touchy"),
        ("clip_grad_norm = Touchy()", "clip_grad_norm must be a number above zero; found a Touchy"),
        ("name = Touchy()", "name must be a text that is not empty; found a Touchy"),
        ("loader = Touchy()", "loader must be a dict of DataLoader arguments; found a Touchy"),
        ("baseline = Touchy()", "baseline must be a dict .* found a Touchy"),
        ("baseline = {'batch_size': Touchy(), 'lr': 0.1}", "'batch_size' must be a whole number.*; found a Touchy"),
        (
            "accumulation = False\nbaseline = {'batch_size': 8, 'lr': 0.1, 'accumulation_steps': Touchy()}",
            "'accumulation_steps' must be a whole number of at least 1; found a Touchy",
        ),
        ("loss = Touchy()", r"loss must be a function loss\(model, batch\); found a Touchy"),
        ("loader = [Touchy()] * 10**6", r"loader must be a dict .*; found \[a Touchy, .*\.\.\. \(list\)"),
        (
            "def metric(a, b, c, table=frame, rows=[0] * 10**6): ...",
            r"metric is called as metric\(model, batch\); found metric\(a, b, c, table=a Touchy, rows=\[0, .*\]",
        ),
    ],
)
def test_a_value_that_is_asked_for_is_told_by_its_type(tmp_path: Path, value: str, message: str) -> None:
    text = TOUCHY.replace("def model", "def _model").replace("{names}", value)
    with pytest.raises(TaskError, match=message) as caught:
        load_task(_write(tmp_path / "model.py", text))
    assert "must define model; it defines Touchy, " in str(caught.value)
    assert "was called" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["numpy_global", "large_global"])
def test_arrays_and_lists_may_lie_in_a_task_file(tmp_path: Path, name: str) -> None:
    arrays = "X = np.random.default_rng(0).normal(size=(600, 20)).astype('float32')\nnames = X\nlosses = X.T"
    samples = "samples = [(torch.randn(20), i % 3) for i in range(600)]\nnames = list(range(10**6))"
    text = f"""
import numpy as np, torch
from torch import nn
{arrays if name == "numpy_global" else samples}
def _pairs(): return {"[(row, int(row[0] > 0)) for row in X]" if name == "numpy_global" else "samples"}
def model(): return nn.Linear(20, 3)
def train_data(): return _pairs()[:500]
def val_data(): return _pairs()[500:]
"""
    check_task(load_task(_write(tmp_path / "model.py", text)), torch.device("cpu"), 32)


@given(
    st.one_of(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        )
    )
)
def test_a_value_is_shown_in_a_few_words(value: Any) -> None:
    text = shown(value)
    assert len(text) <= 70
    if len(repr(value)) < 30 and not isinstance(value, (list, tuple, dict)):
        assert text == f"{value!r} ({type(value).__name__})"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.5), "np.float32(0.5) (float32)" if np.__version__ >= "2" else "0.5 (float32)"),
        (np.zeros(3), "a ndarray"),
        (torch.float16, "torch.float16 (dtype)"),
        (10**10_000, "a whole number of 33220 bits (int)"),
        (nn.Linear, "the class Linear"),
        (_data, "the function _data"),
        ({"batch_size": [[[1]]]}, "{'batch_size': [...]} (dict)"),
        ((1,), "(1,) (tuple)"),
        (set(), "set() (set)"),
        (Path("x"), f"{Path('x')!r} ({type(Path()).__name__})"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_value_is_shown_as_it_is_written(value: Any, text: str) -> None:
    assert shown(value) == text
