"""The check of one evaluation on a few validation samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TaskError, text_of
from ..tasks.data import Collated, DeviceLoader, collate_samples, rows_of, to_device
from ..tasks.defaults import right_and_counted
from ..tasks.task import accuracy
from .check_data import Findings
from .check_step import MOST_SAMPLES, shape_hint
from .training import autocast


def check_evaluation(findings: Findings, model: nn.Module, samples: list[Any], device: torch.device) -> None:
    """Score the model on a few samples, by `metric` or by `evaluate`."""
    if not samples:
        return
    task = findings.task
    model.eval()
    batch = to_device(collate_samples(task, samples[:MOST_SAMPLES]), device)
    with torch.no_grad(), autocast(device, task.precision):
        if task.evaluate is None:
            with findings.attempt("metric(model, batch)", lambda error: shape_hint(model, batch, error)):
                if task.metric is accuracy:
                    right_and_counted(model, batch)
                else:
                    _require_scores(task.metric(model, batch), len(samples[:MOST_SAMPLES]), rows_of(batch))
            return
        parts = [samples[at : at + MOST_SAMPLES] for at in range(0, len(samples), MOST_SAMPLES)]
        batches = [Collated(collate_samples(task, part), len(part)) for part in parts]
        with findings.attempt("evaluate(model, loader)", lambda error: shape_hint(model, batch, error)):
            try:
                score: Any = task.evaluate(model, DeviceLoader(batches, device))
            except TaskError:  # which says what is wrong, and is a ValueError too
                raise
            except ValueError as error:
                # Some scores do not exist on a few samples, such as an area under the curve of one class.
                findings.warnings.append(
                    f"evaluate(model, loader) could not be checked: on the first {len(samples)} validation samples it "
                    f"raised ValueError: {text_of(error)}"
                )
                return
            if isinstance(score, (str, bytes)) or not _is_one_number(score):
                returned = (
                    f"a tensor of shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
                )
                raise TaskError(f"evaluate(model, loader) must return a float; it returned {returned}")


def _is_one_number(score: Any) -> bool:
    try:
        float(score)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _require_scores(scores: Any, count: int, rows: int | None) -> None:
    rule = f"metric(model, batch) must return one score per sample, shape ({count},), or their mean, (); it returned "
    try:
        values = torch.as_tensor(scores)
    except (TypeError, ValueError, RuntimeError):
        returned = "None: is its `return` missing?" if scores is None else f"a {type(scores).__name__}"
        raise TaskError(f"{rule}{returned}") from None
    if values.shape not in {(), (count,), (rows,)}:
        raise TaskError(f"{rule}shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise TaskError(f"metric(model, batch) must be finite; on the first batch it is {values.tolist()}")
