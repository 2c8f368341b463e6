"""The runs in a folder: their list with the status of each, the one to continue, and how one is removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..core.codec import config_to_json
from ..core.plan import Config, Direction
from ..errors import ReportError, RunError
from ..searching.history import History
from ..searching.trials import Trial
from .conditions import Condition, changes, check_conditions, conditions_of_settings
from .run_folder import RunFolder, RunState, holder, is_run, read_state, task_folder

RunStatus = Literal["running", "finished", "interrupted", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One line about a run.

    Attributes:
        path: its folder.
        status: "running" while a process holds it; "interrupted" if it can be resumed; "unreadable" if its files are
            not those of a run.
        task: its name; None if it is unreadable, as for all that follow.
        created: when it began, ISO 8601 in UTC.
        budget_s, spent_s: seconds of its budget, and those spent so far by its record.
        trials: configurations tried so far, including the baseline.
        score, config: the best one trained to the end so far; None before the first.
        note: which process holds it, or what is wrong.
    """

    path: Path
    status: RunStatus
    task: str | None = None
    created: str | None = None
    budget_s: float | None = None
    spent_s: float | None = None
    trials: int | None = None
    score: float | None = None
    config: Config | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The line as plain JSON values."""
        return {
            "path": str(self.path),
            "status": self.status,
            "task": self.task,
            "created": self.created,
            "budget_s": self.budget_s,
            "spent_s": self.spent_s,
            "trials": self.trials,
            "score": self.score,
            "plan": None if self.config is None else config_to_json(self.config),
            "note": self.note,
        }


def run_folders(home: Path) -> list[Path]:
    """The folders of runs in `home/<task>/<run>`, and `home` itself if it is one. Links are not followed."""
    return sorted(_folders(home, depth=2))


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth and folder.is_dir() and not folder.is_symlink():
        for inner in folder.iterdir():
            yield from _folders(inner, depth - 1)


def summary(path: Path) -> RunSummary:
    """The status of the run in a folder. Unreadable files are a status, not an error."""
    from ..searching.storage.journal import read_kept  # late: optuna, which commands with a worker import later

    try:
        state = read_state(path)
        kept = read_kept(path / "journal.log") if (path / "journal.log").exists() else None
    except ReportError as error:
        return RunSummary(path=path, status="unreadable", note=str(error))
    who = holder(path)
    direction: Direction = "minimize" if state.conditions.get("direction") == "minimize" else "maximize"
    best = None if kept is None else _best(History(trials=kept.trials, direction=direction))
    return RunSummary(
        path=path,
        status="running" if who else "finished" if state.is_finished else "interrupted",
        task=state.settings.name,
        created=state.created,
        budget_s=state.settings.budget_s,
        spent_s=sum((state.charged if kept is None or state.is_finished else kept.state.charged).values()),
        trials=0 if kept is None else sum(trial.role != "confirmation" for trial in kept.trials),
        score=None if best is None else best.final_score,
        config=None if best is None else best.config,
        note=who,
    )


def _best(history: History) -> Trial | None:
    return max((trial for trial in history.trials if trial.state == "complete"), key=history.last, default=None)


def latest_unfinished(task: str, path: Path | None) -> Path:
    """The folder of a task's latest run that is not finished.

    Args:
        task: its name.
        path: the task's file, which distinguishes tasks of one name; None for one made in code.

    Raises:
        RunError: there is none.
    """
    found = []
    for folder in run_folders(task_folder(task)):
        try:
            state = read_state(folder)
        except ReportError:  # it cannot be continued
            continue
        if not state.is_finished and state.path == (None if path is None else str(path)):
            found.append((state.created, folder.name, folder))
    if not found:
        raise RunError(f"there is no unfinished run of {task} in {task_folder(task)}: leave --resume out to start one")
    return max(found)[-1]


def reopened(
    path: Path,
    given: Mapping[str, Any],
    sources: Mapping[str, str],
    *,
    force: bool,
    said: Mapping[str, Condition] | None = None,
) -> tuple[RunFolder, RunState]:
    """A run to continue, held by this process, and its state with the settings that were set again.

    Args:
        path: its folder.
        given: fields of `TuneSettings` that the user set this time. All others are the run's own.
        sources: hashes of the task's files by their names.
        force: go on though conditions have changed.
        said: as `conditions_of_settings` takes it.

    Raises:
        RunError: it is finished, held by another process, or its conditions have changed; or it was on a cluster, which
        is only joined if the user names it again.
        ReportError: its files cannot be read.
    """
    folder = RunFolder.opened(path)
    try:
        folder.tidy()
        state = read_state(folder.path)
        if state.is_finished:
            raise RunError(
                f"the run in {path} is finished, and its answer in {folder.report}: start a new one; with "
                "--warm-start and that file it begins with that answer"
            )
        settings = replace(state.settings, **{name: value for name, value in given.items() if name != "command"})
        if settings.engine == "ray" and settings.address is not None and "address" not in given:
            raise RunError(
                f"the run in {path} was on the Ray cluster at {settings.address!r}, to which the task's folder would "
                "travel; that is not done because a run's folder says so. Give --address again, or --engine local"
            )
        now = conditions_of_settings(settings, sources, said)
        check_conditions(path, state.conditions, now, force=force)
        remarks = state.remarks
        if lines := changes(state.conditions, now):
            remarks += (f"the run was resumed under other conditions: {'; '.join(lines)}",)
        known = {key: value for key, value in state.conditions.items() if not (sources and key.startswith("file "))}
        return folder, replace(
            state, settings=settings, conditions={**known, **now}, resumed=state.resumed + 1, remarks=remarks
        )
    except BaseException:
        folder.close()
        raise


def remove_run(path: Path) -> None:
    """Delete a run, and only what the run has made.

    Raises:
        RunError: there is none, a process holds it, or its path contains a link.
        StorageError: something cannot be deleted.
    """
    here = Path.cwd()
    # For a path outside of this folder, the folders of the task and of its runs; the rest of the path belongs to the
    # system.
    way = [p for p in path.parents if p != here and here in p.parents] if path.is_absolute() else [*path.parents]
    for parent in way or [*path.parents][:2]:
        if parent.is_symlink():
            raise RunError(f"{parent} is a link, and nothing is deleted over one: name the run as {path.resolve()}")
    RunFolder.opened(path).remove()
