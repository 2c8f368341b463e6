"""A run of `tune`: open the workers, run the stages under one ledger, save the report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace

from ..core.progress import Listener
from ..core.runner import Runner
from ..core.units import format_duration
from ..engines.group import open_workers
from ..engines.served import RunnerSpec
from ..errors import BudgetTooShort, ReportError, SettingError, StorageError, WorkerTimeout, after_warnings
from ..reports.report import Report
from ..runs.run_folder import RunFolder, RunState
from ..runs.settings import TuneSettings
from ..searching.budget.ledger import Ledger
from .pipeline import OPENING, _Tune, too_short_for

_SETTING_OUT_S = 600.0  # assumed: a resumed run opens the task within this time


def run_tune(
    folder: RunFolder,
    state: RunState,
    spec: RunnerSpec,
    listen: Listener,
    *,
    started_s: float | None,
    force: bool = False,
    storage: str | None = None,
) -> Report:
    """Run all stages of `tune`, or those that a resumed run has left. `api.tune` lists what this raises.

    Args:
        folder: the run's folder, which this process has locked.
        state: the state of the run.
        spec: the task and its device.
        listen: called with the progress.
        started_s: `time.monotonic()` when the program began. A resumed run is not charged for its start-up.
        force: continue even if the conditions have changed.
        storage: URL of a database that also records the race. The URL in the settings is only for people.
    """
    kept = None
    if state.resumed:
        from ..searching.storage.journal import read_kept  # imports optuna; a new run does so while its worker is busy

        kept = read_kept(folder.journal) if folder.journal.exists() else None
    settings, is_setting_out = state.settings, bool(state.resumed)
    carried = kept.state.charged if kept is not None else state.charged
    ledger = Ledger(settings.budget_s, started_s=None if state.resumed else started_s, carried=carried)
    spec = replace(spec, checkpoints=folder.checkpoints)

    def remaining_s() -> float:
        return _SETTING_OUT_S if is_setting_out else ledger.available_s

    runner = _opened(spec, settings, folder, remaining_s)
    run: _Tune | None = None
    try:
        if is_setting_out:  # restarting the workers and checking the task again costs no budget
            runner.facts()
            ledger = Ledger(settings.budget_s, carried=carried)
            is_setting_out = False
        run = _Tune(runner, ledger, listen, folder, state, kept=kept, force=force, storage=storage)
        report = replace(run.run(), folder=folder.path)
        try:
            report.save(folder.report)
        except ReportError as error:  # as for every other file of the run, which can continue when there is room
            raise StorageError(str(error)) from None
        if not report.interrupted and report.not_compared is None:  # else it may go on
            run.finish()
        return report
    except WorkerTimeout as error:
        # Nothing was measured yet: what comes later ends with a report of what was.
        if error.is_hang:
            raise
        too_short = f"the budget of {format_duration(settings.budget_s)} ended before anything was measured: {error}. "
        remedy = too_short_for(OPENING) if run is None else run.what_would_do()
        with after_warnings(error.warnings):
            raise BudgetTooShort(f"{too_short}{remedy}. What the task printed is in {folder.log}") from None
    finally:
        if run is not None:
            run.close_central()
        runner.close()


def _opened(spec: RunnerSpec, settings: TuneSettings, folder: RunFolder, remaining_s: Callable[[], float]) -> Runner:
    """The workers, on this machine or on a cluster."""
    if settings.engine == "local":
        return open_workers(spec, log=folder.log, remaining_s=remaining_s)
    if spec.nproc > 1:
        raise SettingError(
            f"on a cluster each worker trains a trial by itself; got --nproc {spec.nproc} with --engine ray: leave "
            "one of them out"
        )
    # Ray replaces the handler of SIGTERM when it is imported and when it starts; its own handler exits.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        from ..engines.ray import open_cluster  # an extra

        return open_cluster(spec, settings.address, checkpoints=folder.checkpoints, remaining_s=remaining_s)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
