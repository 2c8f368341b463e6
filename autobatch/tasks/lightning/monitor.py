"""Which logged metric is the score, and which way is better: said, or assumed and told."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...core.plan import Direction
from ...errors import TaskError
from .settings import Watched

# Words of a metric's name by which its direction is assumed. Both lists are of torchmetrics' and common names.
_LOWER = (
    "loss losses err error errors mae mse rmse rmsle mape smape msle nll ce bce perplexity ppl wer cer ter fid kid "
    "lpips distance divergence kl kld entropy bpb bpc bpd brier ece hinge regret cost"
)
_HIGHER = (
    "acc accuracy f1 f2 fbeta fscore auc auroc auprc roc ap map precision recall sensitivity specificity iou jaccard "
    "miou dice kappa mcc bleu rouge meteor psnr ssim r2 score reward return top1 top5 pearson spearman ndcg mrr hit "
    "hits hitrate em exact match similarity correlation snr sdr pesq stoi likelihood evidence elbo"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The metric that trials are compared by.

    Attributes:
        monitor: its name, as `self.log` is given it.
        direction: which way is better.
        assumed: a sentence on what nobody said; empty where all was.
    """

    monitor: str
    direction: Direction
    assumed: tuple[str, ...] = ()


def score_of(
    monitor: str | None, direction: Direction | None, watched: Iterable[Watched], logged: Iterable[str]
) -> Score:
    """The metric and its direction.

    Args:
        monitor, direction: what the user says; None where nothing.
        watched: what the callbacks go by.
        logged: what validation logs; only asked for where nobody names a metric.

    Raises:
        TaskError: nothing names a metric or its direction, and neither can be assumed.
    """
    watched = tuple(watched)
    assumed = []
    if monitor is None and watched:
        first = watched[0]
        monitor = first.monitor
        others = sorted({one.monitor for one in watched} - {monitor})
        if others:
            assumed.append(
                f"the score is {monitor}, which {first.callback} goes by, not {' or '.join(others)}: monitor= says so "
                "otherwise"
            )
    if monitor is None:
        monitor = _assumed_monitor(list(logged))
        assumed.append(f"the score is assumed to be {monitor}, which validation logs: monitor= says so otherwise")
    if direction is None:
        direction = next((one.direction for one in watched if one.monitor == monitor and one.direction), None)
    if direction is None:
        direction = _assumed_direction(monitor)
        better = "higher" if direction == "maximize" else "lower"
        assumed.append(f"{better} is assumed to be better of {monitor}, by its name: direction= says so otherwise")
    return Score(monitor=monitor, direction=direction, assumed=tuple(assumed))


def _assumed_monitor(logged: list[str]) -> str:
    if not logged:
        raise TaskError(
            'nothing is logged in validation, so there is no score: log one in validation_step, as self.log("val_acc", '
            "acc)"
        )
    if len(logged) == 1:
        return logged[0]
    losses = [name for name in logged if "loss" in _words(name)]
    if "val_loss" in losses:
        return "val_loss"
    if len(losses) == 1:
        return losses[0]
    raise TaskError(
        f"validation logs {', '.join(logged)}: say which of them is the score, as monitor={logged[0]!r} or by a "
        "ModelCheckpoint(monitor=...) of the Trainer"
    )


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", name)]


def _assumed_direction(monitor: str) -> Direction:
    words = set(_words(monitor))
    lower, higher = bool(words & {*_LOWER.split()}), bool(words & {*_HIGHER.split()})
    if lower == higher:
        raise TaskError(
            f'whether more or less of {monitor} is better cannot be told by its name: pass direction="maximize" or '
            '"minimize", or a ModelCheckpoint(monitor=..., mode=...) to the Trainer'
        )
    return "minimize" if lower else "maximize"
