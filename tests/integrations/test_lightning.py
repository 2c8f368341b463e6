"""`Tune` has a fit train by a report: what the trainer, the loaders and the optimizer hold in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autobatch.core.plan import Config, Plan
from autobatch.errors import ReportError, SettingError
from tests.helpers.reports import example

L: Any = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'autobatch-tuner[lightning]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
FOUND = Config(plan=Plan(batch_size=8, accumulation_steps=2), lr=0.05)
DATA = TensorDataset(torch.randn(64, 3), torch.randn(64, 1))


class Net(L.LightningModule):  # type: ignore[misc]  # Lightning's classes are of no type where it is not installed
    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)
        self.sizes: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.sizes.append(len(batch[0]))
        return nn.functional.mse_loss(self.head(self.body(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class TwoRates(Net):
    """Its rates stand in the optimizer alone, and a schedule goes by them."""

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.body.parameters(), "lr": 0.001}, {"params": self.head.parameters(), "lr": 0.01}]
        optimizer = torch.optim.SGD(groups)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)]


class Data(L.LightningDataModule):  # type: ignore[misc]
    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return DataLoader(DATA, batch_size=self.hparams.batch_size, shuffle=True)


class Fixed(L.LightningDataModule):  # type: ignore[misc]
    def train_dataloader(self) -> Any:
        return DataLoader(DATA, batch_size=4, shuffle=True)


def fit(module: Any, report: Any, *data: Any, **settings: Any) -> Any:
    from autobatch.integrations.lightning import Tune

    trainer = L.Trainer(
        callbacks=[Tune(report)],
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, *data)
    return trainer


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    dataclasses.replace(example(), config=FOUND).save(path)
    return path


@pytest.mark.parametrize("make", [Data, Fixed, lambda: DataLoader(DATA, batch_size=4, shuffle=True)])
def test_a_fit_trains_by_the_report(make: Callable[[], Any], report: Path) -> None:
    module, data = Net(), make()
    trainer = fit(module, report, data)
    assert set(module.sizes) == {8}
    assert trainer.global_step == 64 // 8 // 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
    assert module.hparams.lr == 0.05
    if isinstance(data, Data):
        assert data.hparams.batch_size == 8
    if isinstance(data, Fixed):
        assert "train_dataloader" not in vars(data)


def test_rates_in_the_groups_keep_their_ratio_and_their_schedule(report: Path) -> None:
    trainer = fit(TwoRates(), report, Fixed())
    assert [group["initial_lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.05, 0.5])
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.025, 0.25])


def test_a_loader_with_batches_of_its_own_is_refused(report: Path) -> None:
    batches = [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(SettingError, match=r"makes batches of its own size; the report says 8: give the data module"):
        fit(Net(), report, DataLoader(DATA, batch_sampler=batches))


def test_example_that_cannot_be_read_is_told_before_the_fit(tmp_path: Path) -> None:
    from autobatch.integrations.lightning import Tune

    with pytest.raises(ReportError, match="nowhere"):
        Tune(tmp_path / "nowhere.json")
