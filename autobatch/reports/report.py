"""`Report`: all results of a run, the reason for each choice, and the cost; as JSON and back.

A report is data. Reading one executes nothing, and a file that is not a whole report of a known schema is refused with
the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.codec import config_from_json, config_to_json, device_from_json, device_to_json
from ..core.facts import DeviceInfo
from ..core.files import load_json, write_json
from ..core.json_reader import NUMBER, NUMBER_OR_NULL, TEXT_OR_NULL, WHOLE_OR_NULL, Json, Perhaps, Reader, check
from ..core.plan import Config, Direction
from ..errors import ReportError
from ..searching.trials import ERRORS, oriented
from ..searching.verdict.confirmation import ScoreSummary
from .trial_table import COLUMNS, is_config_of, rows_of

if TYPE_CHECKING:
    import pandas

# Increased by one whenever a key changes its meaning or goes away; new keys alone do not increase it.
SCHEMA = 1

# The keys that the evidence of a report needs to be drawn.
MAX_BATCH: Json = {
    "batch_size": int,
    "limited_by": str,
    "peak_bytes": NUMBER_OR_NULL,
    "limit_bytes": NUMBER_OR_NULL,
    "proved": bool,
    "assumed": [str],
    "allocated_bytes": Perhaps(NUMBER_OR_NULL),
    "why_not_proved": Perhaps(TEXT_OR_NULL),
    "probes": [
        {"batch_size": int, "outcome": str, "peak_bytes": NUMBER_OR_NULL, "seconds": NUMBER_OR_NULL, "fresh": bool}
    ],
}
THROUGHPUT: Json = {
    "knee_batch_size": int,
    "knee": str,
    "fastest_batch_size": int,
    "samples_per_s": NUMBER,
    "starvation": TEXT_OR_NULL,
    "skipped": [int],
    "remedy": Perhaps(TEXT_OR_NULL),
    "assumed": Perhaps(TEXT_OR_NULL),
    "ranks": Perhaps(int),
    "recommended_batch_size": Perhaps(WHOLE_OR_NULL),
    "measurements": [
        {"batch_size": int, "outcome": str}
        | dict.fromkeys(("samples_per_s", "step_s", "spread_s"), NUMBER_OR_NULL)
        | dict.fromkeys(("compute_samples_per_s", "loader_samples_per_s"), NUMBER_OR_NULL)
        | dict.fromkeys(("undisturbed_samples_per_s", "undisturbed_step_s"), Perhaps(NUMBER_OR_NULL))
        | {"joules_per_sample": Perhaps(NUMBER_OR_NULL), "remarks": Perhaps([str])}
        | {"phases_s": Perhaps((dict, type(None)))}
    ],
}
_LR: Json = {
    "batch_size": int,
    "accumulation_steps": int,
    "rule": str,
    "suggestion": NUMBER_OR_NULL,
    "diverged_at": NUMBER_OR_NULL,
    "ranks": Perhaps(int),
    "lrs": [NUMBER],
    "smoothed": [NUMBER],
}
_TRIAL: Json = {
    **dict.fromkeys(("role", "state", "outcome", "precision"), str),
    **dict.fromkeys(("batch_size", "accumulation_steps", "total_steps"), int),
    "lr": NUMBER,
    "ranks": Perhaps(int),
    "scores": [[NUMBER]],
    **dict.fromkeys(("number", "seed"), Perhaps(int)),
    **dict.fromkeys(("seconds", "predicted_s"), Perhaps(NUMBER)),
    "origin": Perhaps(str),
    "message": Perhaps(TEXT_OR_NULL),
}
_LONG_RUN: Json = {
    **dict.fromkeys(("horizon_s", "train_time_s", "confidence"), NUMBER),
    "stability": [{"pairs": int} | dict.fromkeys(("early", "late", "kept"), NUMBER)],
    "forecasts": [
        {"against": str, "batch_size": int}
        | dict.fromkeys(("lr", "lead", "expected", "low", "high", "ahead"), NUMBER)
        | {"is_picked": Perhaps(bool)}
    ],
    "lr": dict.fromkeys(("lr", "low", "high", "slope"), NUMBER) | {"measured": NUMBER_OR_NULL, "rungs": [[NUMBER]]},
}
# The slope of a learning rate per doubling of the time, as a logarithm: no training comes near it. Assumed.
_STEEPEST = 100
_LEDGER: Json = {"budget_s": NUMBER, "elapsed_s": NUMBER, "entries": dict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of `tune`.

    Attributes:
        task: the task's name.
        created: when the run began, ISO 8601 in UTC.
        command: the command that made it.
        version: that of autobatch.
        device: the device.
        direction: whether a higher or a lower score is better.
        budget_s: seconds that the run was given.
        horizon_s: T, seconds of training at which configurations were compared; None where there was no time for that.
        train_time_s: seconds that the user's real training takes; None where it was not said.
        config: the configuration recommended; its key in JSON is "plan".
        chose_baseline: the recommendation is what the user trains with already.
        baseline_plan: what the user trains with, or the stated default.
        baseline_is_users: False where the task declares no baseline.
        score: of `config`, on fresh seeds only; None where the time ended before one was run.
        baseline: scores of `baseline_plan`; None where it never reached the end of its training.
        probability: the chance that what was compared with the baseline on fresh seeds is truly better; None where
            nothing was, and in reports from before this was told.
        is_proven: whether `config` beat the baseline, beyond what luck does; where it did not, it is as good. None in
            reports from before this was told.
        test_score, test_baseline: on the test data, scored once; None where the task has none.
        max_batch: evidence of the memory search, as `MaxBatch.to_json` gives it.
        throughput: the profile, as `ThroughputCurve.to_json` gives it; None where the time ended before it.
        learning_rate: the range test, as `LrCurve.to_json` gives it; None where none was run.
        trials: every trial, as `Trial.to_json` gives it.
        ledger: where the time went, as `Ledger.to_json` gives it.
        why: one sentence for each choice.
        warnings: what the user should know and nobody asked.
        interrupted: the run was stopped before its time was spent.
        lost_device: it was, because no device was left to train on; False in reports from before this was told.
        long_run: what is extrapolated to a training that is longer than T, as `LongRun.to_json` gives it; None where
            there is none, and in reports from before it was.
        seed: of every random choice; None in reports from before it was told.
        folder: of the run, where `tune` has just made the report; it is a path of that machine, and not in the JSON.
        not_compared: why the budget was too short to compare anything, and which would be enough; None where something
            was compared. The run can be resumed with more.
        has_seeds: False where nothing could tell the training which seed to take, so that what is called a fresh seed
            was only another run.
        typed: the command line that trains with `config`, where the task is one; what differs from run to run is still
            to be filled in. None for other tasks.
    """

    task: str
    created: str
    command: str
    version: str
    device: DeviceInfo
    direction: Direction
    budget_s: float
    horizon_s: float | None
    train_time_s: float | None
    config: Config
    chose_baseline: bool
    baseline_plan: Config
    baseline_is_users: bool
    score: ScoreSummary | None
    baseline: ScoreSummary | None
    test_score: float | None
    test_baseline: float | None
    max_batch: Json
    throughput: Json | None
    learning_rate: Json | None
    trials: tuple[Json, ...]
    ledger: Json
    why: tuple[str, ...]
    probability: float | None = None
    is_proven: bool | None = None
    warnings: tuple[str, ...] = ()
    interrupted: bool = False
    lost_device: bool = False
    long_run: Json | None = None
    seed: int | None = None
    folder: Path | None = field(default=None, compare=False)
    not_compared: str | None = None
    has_seeds: bool = True
    typed: str | None = None

    @property
    def search_score(self) -> float | None:
        """The search score of a recommendation that has none on fresh seeds; None if it has a better one, or none at
        all.

        It was selected by that score, which is therefore rather too high.
        """
        if self.chose_baseline or self.score is not None:
            return None
        found = [
            float(trial["scores"][-1][1])
            for trial in self.trials
            if trial["role"] in ("warm start", "search")
            and trial["state"] == "complete"
            and is_config_of(trial, self.config)
        ]
        return found[0] if found else None

    def oriented(self, score: float) -> float:
        """A score with its sign turned so that higher is better."""
        return oriented(score, self.direction)

    @property
    def is_unanswered(self) -> bool:
        """Whether no other trial was trained to the end, usually because the task or its process failed."""
        others = [trial for trial in self.trials if trial["role"] in ("warm start", "search")]
        errors = sum(trial["state"] == "failed" and trial["outcome"] in ERRORS for trial in others)
        return self.chose_baseline and 2 * errors > len(others) and all(t["state"] != "complete" for t in others)

    def to_dataframe(self) -> pandas.DataFrame:
        """The trials as a pandas table, with a row for each, in the order in which they were started.

        Columns: `trial`, its number; `role` ("baseline", "warm start", "search", or "confirmation" for a fresh seed);
        `state`, `outcome` and `message`, how it ended; `chosen`, whether it is the recommended configuration; the
        configuration: `batch_size`, `accumulation_steps`, `ranks`, `effective_batch_size` (samples of one optimizer
        step), `lr`, `precision`; `seed`; `total_steps`, optimizer steps of its schedule, and `steps`, those at its last
        score; `trained_s`, seconds of training for these steps by the profile; `score`, the last one; `seconds`, its
        wall time with evaluation, and `predicted_s`, the profile's prediction of it; `origin`, why it was tried.
        Unknown values are missing (`pandas.NA`).

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("Report.to_dataframe needs pandas, which is not installed: pip install pandas") from None
        rows = rows_of(self)
        return pandas.DataFrame(
            {name: pandas.array([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()}
        )

    def _repr_html_(self) -> str:
        """The page of the report, as a notebook shows it."""
        # Imported here: results are made without anything that draws them.
        from ..render.notebook import framed
        from ..render.page_content import page_document

        return framed(page_document(self))

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; `schema` says how to read it."""
        return {
            "schema": SCHEMA,
            "version": self.version,
            "task": self.task,
            "created": self.created,
            "command": self.command,
            "device": device_to_json(self.device),
            "direction": self.direction,
            "budget_s": self.budget_s,
            "horizon_s": self.horizon_s,
            "train_time_s": self.train_time_s,
            "plan": config_to_json(self.config),
            "chose_baseline": self.chose_baseline,
            "probability": self.probability,
            "proven": self.is_proven,
            "score": _score_to_json(self.score) | {"test": self.test_score, "search": self.search_score},
            "baseline": _score_to_json(self.baseline)
            | {
                "test": self.test_baseline,
                "plan": config_to_json(self.baseline_plan),
                "is_users": self.baseline_is_users,
            },
            "max_batch": self.max_batch,
            "throughput": self.throughput,
            "learning_rate": self.learning_rate,
            "trials": list(self.trials),
            "ledger": self.ledger,
            "why": list(self.why),
            "warnings": list(self.warnings),
            "interrupted": self.interrupted,
            "lost_device": self.lost_device,
            "long_run": self.long_run,
            "seed": self.seed,
            "not_compared": self.not_compared,
            "has_seeds": self.has_seeds,
            "typed": self.typed,
        }

    @classmethod
    def from_json(cls, data: object) -> Report:
        """The report from `to_json`.

        Raises:
            ReportError: it is no such report, or has a schema that this version does not read.
        """
        found = Reader(data, "the report")
        schema = found.get("schema", int)
        if schema != SCHEMA:
            raise ReportError(f"this version reads reports of schema {SCHEMA}; this one has schema {schema}")
        score, baseline = found.inside("score"), found.inside("baseline")
        horizon_s = found.number_or_none("horizon_s")
        not_compared = found.get_or_none("not_compared", str)
        if horizon_s is None and (not_compared is None or found.get("trials", list)):
            raise ReportError("'horizon_s' of the report is a number where there are trials; found null")
        return cls(
            task=found.get("task", str),
            created=found.get("created", str),
            command=found.get("command", str),
            version=found.get("version", str),
            device=device_from_json(found.inside("device")),
            direction=found.one_of("direction", Direction),
            budget_s=found.number("budget_s"),
            horizon_s=horizon_s,
            train_time_s=found.number_or_none("train_time_s"),
            config=config_from_json(found.inside("plan")),
            chose_baseline=found.get("chose_baseline", bool),
            baseline_plan=config_from_json(baseline.inside("plan")),
            baseline_is_users=baseline.get("is_users", bool),
            probability=_probability(found),
            is_proven=found.get("proven", bool, or_null=True) if "proven" in found else None,
            score=_score(score),
            baseline=_score(baseline),
            test_score=score.number_or_none("test"),
            test_baseline=baseline.number_or_none("test"),
            max_batch=found.get("max_batch", MAX_BATCH),
            throughput=_throughput(found),
            learning_rate=found.get("learning_rate", _LR, or_null=True),
            trials=_trials(found),
            ledger=_ledger(found),
            why=found.list_of("why", str),
            warnings=found.list_of("warnings", str),
            interrupted=found.get("interrupted", bool),
            lost_device=found.get("lost_device", bool) if "lost_device" in found else False,
            long_run=_long_run(found),
            seed=found.get_or_none("seed", int),
            not_compared=not_compared,
            has_seeds=found.get("has_seeds", bool) if "has_seeds" in found else True,
            typed=found.get_or_none("typed", str),
        )

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all.

        Raises:
            ReportError: the file cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report in a file.

        Raises:
            ReportError: there is none, or it cannot be read.
        """
        return cls.from_json(load_json(Path(path)))


def _score_to_json(score: ScoreSummary | None) -> dict[str, Any]:
    return {"mean": None, "stderr": None, "scores": []} if score is None else score.to_json()


def _score(found: Reader) -> ScoreSummary | None:
    mean = found.number_or_none("mean")
    if mean is None:
        return None
    scores = tuple(float(score) for score in found.list_of("scores", NUMBER))
    return ScoreSummary(mean=mean, stderr=found.number_or_none("stderr"), scores=scores)


def _probability(found: Reader) -> float | None:
    if "probability" not in found:  # missing in older reports
        return None
    probability = found.number_or_none("probability")
    if probability is not None and not 0 <= probability <= 1:
        raise ReportError(f"'probability' of the report lies between 0 and 1; found {probability}")
    return probability


def _throughput(found: Reader) -> Json | None:
    throughput: Json | None = found.get("throughput", THROUGHPUT, or_null=True)
    for number, point in enumerate(throughput["measurements"] if throughput is not None else ()):
        for phase, seconds in (point.get("phases_s") or {}).items():
            check(seconds, NUMBER, f"{phase!r} of 'phases_s' of item {number} of 'measurements' of the report")
    return throughput


def _trials(found: Reader) -> tuple[Json, ...]:
    trials = found.list_of("trials", dict)
    for number, trial in enumerate(found.get("trials", [_TRIAL])):
        if trial["total_steps"] < 1 or any(len(score) != 2 for score in trial["scores"]):
            raise ReportError(f"trial {number} of the report has steps, and scores as pairs of a step and a score")
        if trial["state"] == "complete" and not trial["scores"]:
            raise ReportError(f"trial {number} of the report is complete, and has no score")
    return trials


def _long_run(found: Reader) -> Json | None:
    if "long_run" not in found:
        return None
    long_run: Json | None = found.get("long_run", _LONG_RUN, or_null=True)
    if long_run is None:
        return None
    if any(share <= 0 for one in long_run["stability"] for share in (one["early"], one["late"])) or any(
        len(rung) != 2 or rung[0] <= 0 for rung in long_run["lr"]["rungs"]
    ):
        raise ReportError("the rungs of 'long_run' of the report are shares above 0, in 'lr' each with a learning rate")
    if min(long_run["horizon_s"], long_run["train_time_s"]) <= 0:
        raise ReportError("the times of 'long_run' of the report are above 0")
    if abs(long_run["lr"]["slope"]) > _STEEPEST:
        raise ReportError(f"'slope' of 'lr' of 'long_run' of the report is at most {_STEEPEST}, up or down")
    return long_run


def _ledger(found: Reader) -> Json:
    ledger: Json = found.get("ledger", _LEDGER)
    entries = found.inside("ledger").inside("entries")
    for kind in ledger["entries"]:
        entries.number(kind)
    return ledger
