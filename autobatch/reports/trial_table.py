"""The trials of a report as rows of a table, for `Report.to_dataframe` and TensorBoard."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..core.json_reader import Json
from ..core.plan import Config

if TYPE_CHECKING:
    from .report import Report

# Columns, and the pandas type of each, one that supports missing values. docs/runs.md describes them.
COLUMNS = {
    "trial": "Int64",
    "role": "string",
    "state": "string",
    "outcome": "string",
    "chosen": "boolean",
    "batch_size": "Int64",
    "accumulation_steps": "Int64",
    "ranks": "Int64",
    "effective_batch_size": "Int64",
    "lr": "Float64",
    "precision": "string",
    "seed": "Int64",
    "total_steps": "Int64",
    "steps": "Int64",
    "trained_s": "Float64",
    "score": "Float64",
    "seconds": "Float64",
    "predicted_s": "Float64",
    "origin": "string",
    "message": "string",
}


def rows_of(report: Report) -> list[dict[str, Any]]:
    """A row for each trial, with a value for each of `COLUMNS`; None for what is not known."""
    if (horizon_s := report.horizon_s) is None:  # nothing was trained
        return []
    return [_row(report, horizon_s, number, trial) for number, trial in enumerate(report.trials)]


def is_config_of(trial: Json, config: Config) -> bool:
    """Whether a trial, as `Trial.to_json`, was one of this configuration."""
    wanted = dataclasses.asdict(config.plan) | {"lr": config.lr}
    return all(({"ranks": 1} | dict(trial))[name] == value for name, value in wanted.items())


def _row(report: Report, horizon_s: float, number: int, trial: Json) -> dict[str, Any]:
    ranks = trial.get("ranks", 1)
    steps, score = trial["scores"][-1] if trial["scores"] else (0, None)
    known = {name: trial.get(name) for name in COLUMNS}
    return known | {
        "trial": trial.get("number", number),
        "chosen": is_config_of(trial, report.config),
        "ranks": ranks,
        "effective_batch_size": trial["batch_size"] * trial["accumulation_steps"] * ranks,
        "steps": steps,
        "trained_s": horizon_s * steps / trial["total_steps"],
        "score": score,
    }
