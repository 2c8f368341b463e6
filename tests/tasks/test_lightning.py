"""A Lightning project is trained as Lightning would: its own steps, hooks, loaders, schedule and metric."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import autobatch
from autobatch.core.plan import Config, Plan
from autobatch.errors import SettingError, TaskError
from autobatch.reports.report import Report
from autobatch.tasks.data import training_batches, val_loader
from autobatch.tasks.doors.table import as_task
from autobatch.tasks.inputs import pickle_task, unpickle_task
from autobatch.tasks.lightning.monitor import score_of
from autobatch.tasks.lightning.settings import remarks_on_callbacks, watched_by
from autobatch.tasks.task import Task, load_task
from autobatch.worker.check import Checked, check_task
from autobatch.worker.training import Trainer
from autobatch.worker.trial_state import read_checkpoint, restore_trainer, save_trainer
from tests.helpers.reports import example

L: Any = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'autobatch-tuner[lightning]'")

CLASSIFIER = Path(__file__).parents[1] / "task_files" / "lightning" / "classifier.py"
CPU = torch.device("cpu")
# A module with as little in it as trains, as a file: what a test adds comes after it.
BASE = """
import lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def data(size, seed):
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=drawn)
    return TensorDataset(x, x.sum(1, keepdim=True))

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.lr = 0.01
        self.layer = nn.Linear(6, 1)
    def step(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self.layer(x), y)
    def training_step(self, batch, batch_idx):
        return self.step(batch)
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)
    def train_dataloader(self):
        return DataLoader(data(40, 0), batch_size=4, shuffle=True)
    def val_dataloader(self):
        return DataLoader(data(10, 1), batch_size=4)
"""


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file: the base, and what is added to it."""

    def write(*added: str, base: str = BASE) -> Path:
        path = tmp_path / "project.py"
        path.write_text("\n".join([base, *map(textwrap.dedent, added)]))
        return path

    return write


def module_of(path: Path) -> Any:
    """The file as a module, imported as a user's script imports it."""
    spec = importlib.util.spec_from_file_location("project_of_a_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def made_by(task: Task) -> Any:
    """A module of the task's, with all that it has."""
    return task.model()


def trained(task: Task, steps: int, *, total: int | None = None, seed: int = 0) -> Trainer:
    config, _ = task.baseline_config()
    trainer = Trainer(task, config, CPU, seed=seed, total_steps=total or steps)
    batches = batches_of(task, config.plan, seed)
    for _ in range(steps):
        trainer.step(batches)
    return trainer


def batches_of(task: Task, plan: Plan, seed: int = 0, start_step: int = 0) -> Iterator[Any]:
    data = None if task.train_data is None else task.train_data()
    return training_batches(task, data, plan, seed=seed, start_step=start_step)


def score(task: Task, trainer: Trainer, batch_size: int = 32) -> float:
    return trainer.evaluate(val_loader(task, task.val_data(), batch_size))


def in_code(module: Any, **arguments: Any) -> Task:
    """The task that a worker makes of what a verb is given in code."""
    given = as_task(module, whole=True, **arguments)
    assert given.later is not None
    return unpickle_task(pickle_task(given.later))


# -- what is found in a file ------------------------------------------------------------------------------------------


def test_a_project_in_a_file_is_a_task_that_passes_the_check() -> None:
    task = load_task(CLASSIFIER)
    assert (task.name, task.path) == ("classifier", CLASSIFIER)
    assert task.baseline == {"batch_size": 16, "lr": 1e-4, "accumulation_steps": 1}
    assert task.direction == "minimize"  # of val_loss, for want of anybody who names another
    assert check_task(task, CPU, 16) == Checked(task.remarks, is_pausable=True)
    assert any("has no Trainer at its top level" in remark for remark in task.remarks)
    assert any("val_loss" in remark for remark in task.remarks)


def test_a_module_with_loaders_of_its_own_needs_no_data_module(file: Callable[..., Path]) -> None:
    task = load_task(file())
    assert task.baseline == {"batch_size": 4, "lr": 0.01, "accumulation_steps": 1}
    assert check_task(task, CPU, 4) == Checked(task.remarks, is_pausable=True)


def test_loaders_may_be_functions_of_the_file(file: Callable[..., Path]) -> None:
    task = load_task(
        file(
            """
            def train_dataloader(): return DataLoader(data(30, 0), batch_size=5, shuffle=True)
            def val_dataloader(): return DataLoader(data(10, 1), batch_size=5)
            """
        )
    )
    assert task.baseline is not None
    assert task.baseline["batch_size"] == 5
    with pytest.raises(TaskError, match=r"defines train_dataloader\(\) and no val_dataloader\(\)"):
        load_task(file("def train_dataloader(): return DataLoader(data(30, 0), batch_size=5, shuffle=True)"))


def test_of_several_modules_the_file_says_which(file: Callable[..., Path]) -> None:
    other = "class Other(Net):\n    pass\nclass Third(L.LightningModule):\n    pass"
    with pytest.raises(TaskError, match=r"defines 2 LightningModules: Other, Third\. Say which .* `model = Other`"):
        load_task(file(other))
    for said in ("model = Other", "def model():\n    return Other()", "model = Other()"):
        task = load_task(file(other, said))
        assert type(task.model()).__name__ == "Other"
    assert (
        type(load_task(file("class Other(Net):\n    pass")).model()).__name__ == "Other"
    )  # Net is what it derives from


def test_what_needs_arguments_to_be_made_is_told_with_a_way_to_make_it(file: Callable[..., Path]) -> None:
    needy = "class Needy(Net):\n    def __init__(self, width, depth=1):\n        super().__init__()"
    with pytest.raises(
        TaskError, match=r"Needy needs width to be made: .* `def model\(\): return Needy\(width=\.\.\.\)`"
    ):
        load_task(file(needy))


def test_an_object_of_the_file_is_where_trials_begin_and_stays_as_it_was(file: Callable[..., Path]) -> None:
    task = load_task(file("model = Net()\nnn.init.constant_(model.layer.weight, 3.0)"))
    first, second = made_by(task), made_by(task)
    assert first is not second
    assert float(first.layer.weight.detach()[0, 0]) == 3.0
    assert any("under every seed alike" in remark for remark in task.remarks)


def test_each_seed_draws_its_own_weights_where_the_class_makes_the_module(file: Callable[..., Path]) -> None:
    task = load_task(file())
    weights = [
        dict(trained(task, 0, total=1, seed=seed).model.named_parameters())["layer.weight"] for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_task_file_whose_model_is_a_lightning_module_stays_a_task_file(file: Callable[..., Path]) -> None:
    task = load_task(
        file(
            """
            def model(): return Net()
            def train_data(): return data(40, 0)
            def val_data(): return data(10, 1)
            def loss(model, batch): return model.step(batch)
            """
        )
    )
    assert task.evaluate is None


# -- what a verb is given in code -------------------------------------------------------------------------------------


def test_a_module_passed_in_comes_back_exactly_as_it_was() -> None:
    project = module_of(CLASSIFIER)
    module, datamodule = project.Classifier(), project.Stripes()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.trainer = trainer
    module.eval()
    before = copy.deepcopy(module.state_dict())
    hparams, of_data = dict(module.hparams), dict(vars(datamodule))
    task = in_code(module, datamodule=datamodule, trainer=trainer, monitor="val_acc")
    trained(task, 3)
    assert module.trainer is trainer
    assert not module.training
    assert dict(module.hparams) == hparams
    assert {**vars(datamodule)} == of_data
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_module_without_data_is_refused_with_what_to_pass() -> None:
    project = module_of(CLASSIFIER)
    with pytest.raises(TaskError, match=r"Classifier has no train_dataloader\(\), and no datamodule= was passed"):
        as_task(project.Classifier(), whole=True)


def test_a_pair_of_loaders_is_data_too() -> None:
    project = module_of(CLASSIFIER)
    data = TensorDataset(torch.randn(60, 1, 8, 8), torch.randint(0, 4, (60,)))
    task = in_code(
        project.Classifier(),
        datamodule=(DataLoader(data, batch_size=6, shuffle=True), DataLoader(data, batch_size=6)),
    )
    assert task.baseline is not None
    assert task.baseline["batch_size"] == 6
    with pytest.raises(SettingError, match="got 1 loaders"):
        as_task(project.Classifier(), datamodule=(DataLoader(data),))


def test_the_two_libraries_do_not_mix() -> None:
    pl = pytest.importorskip("pytorch_lightning", reason="needs both libraries")

    project = module_of(CLASSIFIER)
    with pytest.raises(TaskError, match=r"is of lightning\.pytorch, trainer= is of pytorch_lightning: .* Import all"):
        as_task(project.Classifier(), datamodule=project.Stripes(), trainer=pl.Trainer(accelerator="cpu", logger=False))


# -- it trains as Lightning does --------------------------------------------------------------------------------------


def fitted(module: Any, train: Any, val: Any, steps: int, **settings: Any) -> tuple[Any, Any]:
    """What Lightning's own Trainer makes of it."""
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(module, train, val)
    return module, trainer


class InOrder(torch.utils.data.Sampler[int]):
    """A sampler of a user's own, so that both loops get the same batches."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __len__(self) -> int:
        return self.size


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_steps_and_score_are_those_of_lightnings_own_trainer(
    settings: dict[str, Any], file: Callable[..., Path]
) -> None:
    project = module_of(
        file(
            """
            class Mine(Net):
                def __init__(self):
                    super().__init__()
                    self.seen = []
                def on_before_optimizer_step(self, optimizer):
                    self.seen.append(float(self.layer.weight.grad.abs().max()))
                def configure_optimizers(self):
                    optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
                    schedule = torch.optim.lr_scheduler.OneCycleLR(
                        optimizer, max_lr=self.lr, total_steps=self.trainer.estimated_stepping_batches
                    )
                    return [optimizer], [{"scheduler": schedule, "interval": "step"}]
            """
        )
    )
    data = project.data(40, 0)
    train = DataLoader(data, batch_size=4, sampler=InOrder(40))
    val = DataLoader(project.data(10, 1), batch_size=4)
    torch.manual_seed(0)
    module = project.Mine()
    steps = 10 // settings.get("accumulate_grad_batches", 1)
    trainer = L.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, **settings)
    task = in_code(module, datamodule=(train, val), trainer=trainer)
    ours = trained(task, steps)
    theirs, at_end = fitted(copy.deepcopy(module), train, val, steps, **settings)
    assert score(task, ours) == pytest.approx(float(at_end.callback_metrics["val_loss"]), rel=1e-4)
    mine: Any = ours.model
    assert torch.allclose(mine.layer.weight, theirs.layer.weight, atol=1e-6)
    assert mine.seen == pytest.approx(theirs.seen, rel=1e-4)


def trained_from(paused: Trainer, checkpoint: Path, task: Task, done: int, *, total: int) -> Trainer:
    """Another trainer, which goes on to the end from where this one is saved after so many steps."""
    save_trainer(paused, checkpoint)
    config, _ = task.baseline_config()
    resumed = Trainer(task, config, CPU, seed=0, total_steps=total)
    batches = batches_of(task, config.plan, start_step=done)
    restore_trainer(resumed, read_checkpoint(checkpoint))
    for _ in range(total - done):
        resumed.step(batches)
    return resumed


def test_a_paused_trial_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    task = load_task(CLASSIFIER)
    whole = trained(task, 20)
    second = trained_from(trained(task, 8, total=20), tmp_path / "trial.pt", task, 8, total=20)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    mine: Any = second.model
    assert mine.trainer.global_step == 20
    assert score(task, second) == score(task, whole)


def test_a_trial_is_let_go_of_with_its_last_reference() -> None:
    import gc
    import weakref

    trainer = trained(load_task(CLASSIFIER), 2)
    seen = weakref.ref(trainer.model), weakref.ref(trainer.optimizer)
    gc.collect()
    gc.disable()
    try:
        del trainer
        assert [one() for one in seen] == [None, None]  # no ring keeps a trial's tensors until the next collection
    finally:
        gc.enable()


# -- the metric -------------------------------------------------------------------------------------------------------


def test_a_score_is_weighted_by_the_size_of_the_batches(file: Callable[..., Path]) -> None:
    task = load_task(file())
    trainer = trained(task, 2)
    assert score(task, trainer, 3) == pytest.approx(score(task, trainer, 10), rel=1e-5)


def test_a_monitor_that_is_never_logged_is_told_with_what_is(file: Callable[..., Path]) -> None:
    task = load_task(file('monitor = "val_acc"'))
    with pytest.raises(TaskError, match="val_acc is the score, and is never logged in validation, which logs val_loss"):
        check_task(task, CPU, 4)
    logs = """
        class Mine(Net):
            def training_step(self, batch):
                self.log("train_loss", self.step(batch))
                return self.step(batch)
        """
    task = load_task(file(logs, 'monitor = "train_loss"'))
    trainer = trained(task, 1)
    with pytest.raises(TaskError, match="train_loss is logged in training and not in validation"):
        score(task, trainer)


def test_the_score_and_its_direction_are_the_callbacks(file: Callable[..., Path]) -> None:
    callbacks = "from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint"
    given = 'def trainer(): return L.Trainer(accelerator="cpu", logger=False, callbacks=[{}])'
    task = load_task(file(callbacks, given.format('EarlyStopping(monitor="val_loss", mode="max")')))
    assert task.direction == "maximize"
    assert not [remark for remark in task.remarks if "assumed" in remark]
    task = load_task(file(callbacks, given.format('ModelCheckpoint(monitor="val_f1", mode="max")')))
    with pytest.raises(TaskError, match="val_f1 is the score, and is never logged"):
        check_task(task, CPU, 4)


def test_the_direction_is_told_by_the_name_or_asked_for() -> None:
    for name, direction in {
        "val_loss": "minimize",
        "val/acc": "maximize",
        "valid_F1": "maximize",
        "ValRMSE": "minimize",
        "mean_average_precision": "maximize",
    }.items():
        found = score_of(name, None, (), ())
        assert (found.direction, len(found.assumed)) == (direction, 1)
    assert score_of("val_loss", "maximize", (), ()).assumed == ()
    for unclear in ("val_metric", "loss_accuracy"):
        with pytest.raises(TaskError, match=rf"more or less of {unclear} is better .* direction=\"maximize\""):
            score_of(unclear, None, (), ())


def test_the_score_is_what_validation_logs_where_only_one_thing_can_be_meant() -> None:
    assert score_of(None, None, (), ["val_acc"]).monitor == "val_acc"
    assert score_of(None, None, (), ["val_acc", "val_loss"]).monitor == "val_loss"
    with pytest.raises(TaskError, match=r"validation logs a, b: say which of them is the score, as monitor='a'"):
        score_of(None, None, (), ["a", "b"])
    with pytest.raises(TaskError, match="nothing is logged in validation"):
        score_of(None, None, (), [])


def test_of_a_checkpoint_and_an_early_stop_that_disagree_the_checkpoint_counts() -> None:
    watched = watched_by(
        [
            L.pytorch.callbacks.EarlyStopping(monitor="val_loss", mode="min"),
            L.pytorch.callbacks.ModelCheckpoint(monitor="val_acc", mode="max"),
        ]
    )
    found = score_of(None, None, watched, ())
    assert (found.monitor, found.direction) == ("val_acc", "maximize")
    assert "not val_loss" in found.assumed[0]


# -- rates and schedules ----------------------------------------------------------------------------------------------


def test_the_rate_is_set_at_its_attribute_its_hyperparameter_or_in_the_groups(file: Callable[..., Path]) -> None:
    in_groups = """
        class Mine(Net):
            def __init__(self):
                super().__init__()
                self.lr = 7.0  # which nothing reads
                self.other = nn.Linear(1, 1)
            def configure_optimizers(self):
                groups = [{"params": self.layer.parameters(), "lr": 0.02},
                          {"params": self.other.parameters(), "lr": 0.1}]
                optimizer = torch.optim.AdamW(groups)
                schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4)
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]
        """
    task = load_task(file(in_groups))
    assert task.baseline is not None
    assert task.baseline["lr"] == 0.02
    model: Any = task.model()
    optimizer = task.optimizer(model, 0.04)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.04, 0.2])
    assert task.scheduler is not None
    schedule = task.scheduler(optimizer, 10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.1])
    optimizer.step()
    for _ in range(4):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.04, 0.2])
    named = """
        class Mine(Net):
            def __init__(self, learning_rate=0.3):
                super().__init__()
                self.save_hyperparameters()
                del self.lr
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)
        """
    task = load_task(file(named))
    assert task.baseline is not None
    assert task.baseline["lr"] == 0.3
    assert task.optimizer(task.model(), 0.7).param_groups[0]["lr"] == 0.7


def test_a_schedule_by_epochs_spans_the_trial_as_it_spans_the_training(file: Callable[..., Path]) -> None:
    task = load_task(
        file(
            """
            class Mine(Net):
                def configure_optimizers(self):
                    optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
                    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)]
                def on_train_epoch_start(self):
                    self.begun = getattr(self, "begun", 0) + 1
            def trainer(): return L.Trainer(accelerator="cpu", logger=False, max_epochs=10)
            """
        )
    )
    first = trained(task, 19, total=40)
    assert first.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    whole = trained(task, 40)
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(0.0001)  # two fifths of ten epochs are behind
    model: Any = whole.model
    assert model.begun == 10


def test_a_plateau_is_left_out_and_told(file: Callable[..., Path]) -> None:
    task = load_task(
        file(
            """
            class Mine(Net):
                def configure_optimizers(self):
                    optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
                    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
                    return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}
            """
        )
    )
    assert task.scheduler is None
    assert any(remark.startswith("ReduceLROnPlateau goes by val_loss") for remark in task.remarks)


# -- loaders ----------------------------------------------------------------------------------------------------------


def test_a_loader_with_a_sampler_of_its_own_is_made_at_another_size_with_all_it_has(file: Callable[..., Path]) -> None:
    task = load_task(
        file(
            """
            def gather(samples): return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
            def train_dataloader():
                weights = torch.arange(40.) == 3
                sampler = torch.utils.data.WeightedRandomSampler(weights, 40)
                return DataLoader(data(40, 0), batch_size=4, sampler=sampler, collate_fn=gather)
            def val_dataloader(): return DataLoader(data(10, 1), batch_size=4)
            """
        )
    )
    assert task.train_data is None
    batch = next(batches_of(task, Plan(batch_size=7)))
    assert len(batch[0]) == 7
    assert len(torch.unique(batch[0], dim=0)) == 1  # the one sample that the sampler draws
    assert check_task(task, CPU, 4).warnings[: len(task.remarks)] == task.remarks


def test_a_batch_sampler_goes_by_the_attribute_or_is_refused(file: Callable[..., Path]) -> None:
    batches = """
        class Pairs(torch.utils.data.Sampler):
            def __init__(self, batch_size): self.batch_size = batch_size
            def __iter__(self): return (list(range(at, at + self.batch_size)) for at in range(0, 40, self.batch_size))
            def __len__(self): return 40 // self.batch_size
        class Data(L.LightningDataModule):
            def __init__(self):
                super().__init__()
                {}
            def train_dataloader(self): return DataLoader(data(40, 0), batch_sampler=Pairs({}))
            def val_dataloader(self): return DataLoader(data(10, 1), batch_size=4)
        """
    task = load_task(file(batches.format("self.batch_size = 5", "self.batch_size")))
    assert task.baseline is not None
    assert task.baseline["batch_size"] == 5
    assert len(next(batches_of(task, Plan(batch_size=8)))[0]) == 8
    with pytest.raises(TaskError, match=r"a DataLoader with a Pairs, whose batch size is its own: .* `batch_size`"):
        load_task(file(batches.format("pass", "5")))


def test_each_validation_loader_is_collated_and_scored_by_itself(file: Callable[..., Path]) -> None:
    task = load_task(
        file(
            """
            def doubled(samples): return torch.stack([2 * x for x, _ in samples]), torch.stack([y for _, y in samples])
            class Mine(Net):
                def validation_step(self, batch, batch_idx, dataloader_idx=0):
                    self.log("val_sum", batch[0].abs().mean())
                def val_dataloader(self):
                    second = DataLoader(data(10, 1), batch_size=4, collate_fn=doubled)
                    return [DataLoader(data(10, 1), batch_size=4), second]
            monitor = "val_sum/dataloader_idx_1"
            direction = "maximize"
            """
        )
    )
    x, _ = next(iter(DataLoader(task.val_data(), batch_size=10, collate_fn=list)))[0].sample
    assert x.shape == (6,)
    trainer = trained(task, 1)
    data = torch.stack([task.val_data()[at].sample[0] for at in range(10)])
    for size in (3, 7, 20):
        assert score(task, trainer, size) == pytest.approx(2 * float(data.abs().mean()), rel=1e-4)


# -- what trials cannot do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "told"),
    [
        (
            "def configure_optimizers(self): return [torch.optim.SGD(self.parameters(), lr=0.1)] * 2",
            "returns 2 optimizers",
        ),
        ("def configure_optimizers(self): return None", "returns None, so nothing would be trained"),
        (
            "def __init__(self):\n        super().__init__()\n        self.automatic_optimization = False",
            "automatic_opt",
        ),
        (
            "def optimizer_step(self, *_, **__): pass",
            r"has a optimizer_step\(\) of its own, .* configure_optimizers\(\)",
        ),
        ("def backward(self, loss): loss.backward()", r"has a backward\(\) of its own"),
        ("validation_step = L.LightningModule.validation_step", r"has no validation_step\(\)"),
        ("train_dataloader = L.LightningModule.train_dataloader", r"Mine has no train_dataloader\(\)"),
        ("val_dataloader = L.LightningModule.val_dataloader", r"there is no validation data"),
    ],
    ids=lambda value: value[:30],
)
def test_what_cannot_be_tuned_is_refused_with_a_remedy(added: str, told: str, file: Callable[..., Path]) -> None:
    path = file(f"class Mine(Net):\n    {added}")
    with pytest.raises(TaskError, match=told):
        load_task(path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ('precision="64-true"', "precision='64-true' is not one"),
        ("fast_dev_run=True", "fast_dev_run runs single batches"),
        ("overfit_batches=2", "overfit_batches trains and scores on the same"),
    ],
)
def test_a_trainer_that_cannot_be_followed_is_refused(settings: str, told: str, file: Callable[..., Path]) -> None:
    with pytest.raises(TaskError, match=told):
        load_task(file(f'def trainer(): return L.Trainer(accelerator="cpu", logger=False, {settings})'))


def test_callbacks_that_act_in_training_are_named_and_those_that_watch_are_not() -> None:
    callbacks = [
        L.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.1),
        L.pytorch.callbacks.LearningRateMonitor(),
        L.pytorch.callbacks.TQDMProgressBar(),
        L.pytorch.callbacks.ModelCheckpoint(),
    ]
    (told,) = remarks_on_callbacks(callbacks)
    assert "StochasticWeightAveraging" in told
    assert "Monitor" not in told
    assert remarks_on_callbacks(callbacks[1:]) == []


def test_a_part_of_the_trainer_that_trials_lack_is_named(file: Callable[..., Path]) -> None:
    asks = "class Mine(Net):\n    def on_train_start(self):\n        self.trainer.{}"
    task = load_task(file(asks.format("fit_loop.epoch_loop")))
    with pytest.raises(TaskError, match=r"asks for `trainer\.fit_loop`, which there is none of in a trial"):
        trained(task, 1)
    for part in ("global_step", "datamodule", "logger.log_metrics({})", "is_global_zero", "callback_metrics"):
        trained(load_task(file(asks.format(part))), 1)


# -- the page for users -----------------------------------------------------------------------------------------------


def test_the_code_on_the_page_is_what_the_functions_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text()
    first, second = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "module.py").write_text(CLASSIFIER.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    taken: dict[str, Any] = {}

    def tune(module: Any, *, budget: str, **arguments: Any) -> Report:
        taken.update(task=in_code(module, **arguments), budget=budget)
        return dataclasses.replace(example(), config=Config(plan=Plan(batch_size=64), lr=0.01))

    monkeypatch.setattr(autobatch, "tune", tune)
    exec(compile(first, "first", "exec"), {"__name__": "__main__"})
    assert (taken["task"].direction, taken["task"].clip_grad_norm) == ("maximize", 1.0)
    monkeypatch.setattr(L.Trainer, "fit", lambda trainer, *_, **__: taken.update(trainer=trainer))
    exec(compile(second, "second", "exec"), {"__name__": "__main__"})
    assert [type(one).__name__ for one in taken["trainer"].callbacks].count("Tune") == 1


def test_importing_the_package_imports_nothing_optional() -> None:
    code = ["-X", "importtime", "-c", "import autobatch"]
    told = subprocess.run([sys.executable, *code], capture_output=True, text=True, timeout=300, check=True).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    assert "autobatch" in imported
    assert not imported & {"torch", "lightning", "pytorch_lightning", "transformers", "optuna", "ray", "pandas"}


# -- as modules are written -------------------------------------------------------------------------------------------

METRICS = """
import torchmetrics
class Mine(Net):
    def __init__(self):
        super().__init__()
        self.train_error, self.val_error = torchmetrics.MeanSquaredError(), torchmetrics.MeanSquaredError()
        self.outputs = []
    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self.layer(x)
        self.train_error(out, y)
        self.log("train_mse", self.train_error, on_step=True, on_epoch=True)
        return {"loss": nn.functional.mse_loss(out, y), "out": out.detach()}
    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.val_error.update(self.layer(x), y)
        self.log_dict({"val_mse": self.val_error, "val_loss": self.step(batch)}, on_step=True, on_epoch=True)
        self.outputs.append(self.step(batch))
    def on_validation_epoch_end(self):
        self.log("val_worst_loss", torch.stack(self.outputs).max())
        self.outputs.clear()
    def on_before_optimizer_step(self, optimizer):
        self.log("grad", self.layer.weight.grad.norm())
        self.logger.log_metrics({"step": self.global_step})
    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=max(1, steps // 10))
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
        joined = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], milestones=[max(1, steps // 10)])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": joined, "interval": "step"}}
"""


@pytest.mark.parametrize("monitor", ["val_mse", "val_loss", "val_loss_epoch", "val_worst_loss"])
def test_metrics_are_logged_in_any_of_lightnings_ways(monitor: str, file: Callable[..., Path], tmp_path: Path) -> None:
    task = load_task(file(METRICS, f'monitor = "{monitor}"'))
    assert check_task(task, CPU, 4) == Checked(task.remarks, is_pausable=True)
    whole, first = trained(task, 9), trained(task, 4, total=9)
    assert score(task, whole) == score(task, whole) > 0  # one evaluation leaves nothing to the next
    second = trained_from(first, tmp_path / "trial.pt", task, 4, total=9)
    assert score(task, second) == score(task, whole)
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_a_metric_is_computed_without_the_ranks_that_do_not_evaluate(file: Callable[..., Path]) -> None:
    seen = """
        class Seen(Mine):
            def on_validation_epoch_end(self):
                self.log("synced", float(self.val_error.sync_on_compute or self.val_error._to_sync))
                self.outputs.clear()
        monitor, direction = "synced", "minimize"
        """
    task = load_task(file(METRICS, seen))
    trainer = trained(task, 1)
    assert score(task, trainer) == 0
    model: Any = trainer.model
    assert model.val_error.sync_on_compute
    assert model.val_error._to_sync


def test_a_file_that_trains_as_it_is_imported_is_refused_before_it_does(file: Callable[..., Path]) -> None:
    trains = "L.Trainer(max_epochs=1000).fit(Net())\n"
    with pytest.raises(TaskError, match=r"project\.py trains as it is imported \(line \d+, .*\): put that under"):
        load_task(file(trains))
    task = load_task(file("def main():\n    L.Trainer().fit(Net())\nif __name__ == '__main__':\n    main()\n"))
    assert task.baseline is not None


def test_a_hook_around_the_transfer_changes_the_batch(file: Callable[..., Path]) -> None:
    task = load_task(
        file(
            """
            class Data(L.LightningDataModule):
                def setup(self, stage): self.train, self.val = data(40, 0), data(10, 1)
                def train_dataloader(self): return DataLoader(self.train, batch_size=4, shuffle=True)
                def val_dataloader(self): return DataLoader(self.val, batch_size=4)
                def on_after_batch_transfer(self, batch, dataloader_idx):
                    x, y = batch
                    return 0 * x, 0 * y if self.trainer.training else y + 5
            """
        )
    )
    model: Any = task.model()
    torch.nn.init.zeros_(model.layer.bias)
    assert float(task.loss(model, next(batches_of(task, Plan(batch_size=4)))).detach()) == 0
    trainer = trained(task, 0, total=1)
    assert score(task, trainer) > 10
