"""What `tune` found, put into a Lightning training: `Trainer(callbacks=[Tune("report.json")])`.

Importing this imports Lightning, of its two packages the one that is there, `lightning` before `pytorch_lightning`.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from ..errors import SettingError
from ..reports.report import Report
from ..tasks.lightning.library import ROOTS
from ..tasks.lightning.loaders import made_at_size
from ..tasks.lightning.optimizer import RATE_NAMES, Configured, holders, put, rates_of, scaled


def _callback() -> Any:
    """The class `Callback` of the library that is installed; each takes the other's, whose code is the same."""
    for root in ROOTS:
        if find_spec(root.partition(".")[0]) is not None:
            return importlib.import_module(root).Callback
    raise SettingError("neither lightning nor pytorch_lightning is installed: pip install 'autobatch-tuner[lightning]'")


class Tune(_callback()):  # type: ignore[misc]  # a class that is found at run time
    """Has a `fit` train by a report: its batch size, its accumulation steps and its learning rate.

    The batch size is set where the data module or the module has a `batch_size`, and the training loader is made anew
    with it where that has no effect. The rate is set at `lr` or `learning_rate`, or in the optimizer's groups, whose
    ratios are kept. Validation loaders stay as they are.

    Args:
        report: of `autobatch.tune`, or its file.

    Raises:
        ReportError: the file cannot be read.
    """

    def __init__(self, report: Report | str | Path) -> None:
        super().__init__()
        self.report = report if isinstance(report, Report) else Report.load(Path(report))
        self._wrapped: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before the loaders and the optimizer are made."""
        if stage != "fit":
            return
        plan, lr = self.report.config.plan, self.report.config.lr
        trainer.accumulate_grad_batches = plan.accumulation_steps
        for owner in (trainer.datamodule, pl_module):
            if owner is not None and list(holders(owner, "batch_size")):
                put(owner, "batch_size", plan.batch_size)
        for name in RATE_NAMES:
            put(pl_module, name, lr)
        source = trainer.fit_loop._data_source
        if source.is_module():
            self._wrapped = source.instance, vars(source.instance).get("train_dataloader")
            source.instance.train_dataloader = _Sized(source.instance.train_dataloader, plan.batch_size)
        else:
            source.instance = _sized(source.instance, plan.batch_size)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Once there is an optimizer."""
        for optimizer in trainer.optimizers[:1]:
            rate = next((rate for rate in rates_of(optimizer) if rate > 0), None)
            if rate is not None and rate != self.report.config.lr:
                scaled(Configured(optimizer, list(trainer.lr_scheduler_configs)), self.report.config.lr / rate)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the function back that makes the loader; what was set stays, as the module was trained by it."""
        if self._wrapped is not None:
            owner, before = self._wrapped
            if before is None:
                del owner.train_dataloader
            else:
                owner.train_dataloader = before
            self._wrapped = None


class _Sized:
    """`train_dataloader()` whose loader has this batch size."""

    def __init__(self, make: Any, batch_size: int) -> None:
        self._make, self._batch_size = make, batch_size

    def __call__(self) -> Any:
        return _sized(self._make(), self._batch_size)


def _sized(loader: Any, batch_size: int) -> Any:
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if size == batch_size:
        return loader
    if isinstance(loader, DataLoader) and (type(loader.batch_sampler) is BatchSampler or loader.batch_sampler is None):
        return made_at_size(loader, batch_size, drop_last=loader.drop_last)
    raise SettingError(
        f"the training loader ({type(loader).__name__}) makes batches of its own size; the report says {batch_size}: "
        "give the data module an attribute `batch_size`, and make the loader from it"
    )
