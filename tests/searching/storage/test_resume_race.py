"""A race that is cut off anywhere and resumed from its record comes to what it would have come to undisturbed."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

import autobatch.searching.storage.journal
from autobatch.core.plan import Plan
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.measuring.profiling import profile
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.search import Kept, SearchResult, SearchSettings, StudyRecord, horizon_s, search
from autobatch.searching.storage.journal import read_kept
from autobatch.simulated.replay import ReplayRunner
from autobatch.simulated.sim import SimRunner, sim_facts

from ..test_search import fault, in_one_go

TABLE = Path(__file__).parents[2] / "recordings" / "made_table.json"
DOWNTIME_S = 4096.0
BUDGET_S = 40.0


@dataclass(frozen=True)
class Moment:
    """What lies on the disk at one moment: so much of the journal, and these checkpoints."""

    journal_bytes: int
    checkpoints: dict[int, set[int]]


@dataclass(frozen=True)
class Outcome:
    """What a race came to."""

    result: SearchResult
    charged: dict[str, float]
    checkpoints: dict[int, set[int]]


def simulated(**changes: Any) -> SimRunner:
    return SimRunner(**({"known": sim_facts(has_test_data=True)} | changes))


def failing(segment: TrainSegment) -> SegmentResult | None:
    """Now and then a trial diverges, runs out of memory, or crashes."""
    outcome = {3: "diverged", 5: "oom", 7: "crashed"}.get(segment.trial)
    return None if outcome is None else fault(outcome, lambda _: True)(segment)


def full(segment: TrainSegment) -> SegmentResult | None:
    """Now and then memory runs out where others were trained before."""
    return None if segment.fresh or segment.trial not in (0, 3) else fault("oom", lambda _: True)(segment)


def broken_afresh(segment: TrainSegment) -> SegmentResult | None:
    """What is trained in one go at a high rate diverges at once, so that fresh seeds fail and leave their time."""
    return fault("diverged", lambda _: True, 0.05)(segment) if in_one_go(segment) and segment.config.lr > 1e-3 else None


# The runner, the settings, and at every how-manieth moment the race is cut.
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "tpe": (simulated, {"most_trials": 6}, 1),
    "freeze-thaw": (simulated, {"sampler": "freeze-thaw", "most_trials": 5}, 3),
    "slower than its profile": (functools.partial(simulated, slowdown=1.3), {"most_trials": 6}, 5),
    "failures": (
        functools.partial(simulated, faults=failing),
        {"most_trials": 9, "keep_checkpoints": 2, "most_paused": 2},
        2,
    ),
    "full workers": (functools.partial(simulated, faults=full), {"most_trials": 6}, 3),
    "fresh seeds that fail": (functools.partial(simulated, faults=broken_afresh), {"seed": 3}, 13),
    "a table": (lambda: ReplayRunner.load(TABLE), {"most_trials": 6}, 5),
}


@functools.cache
def profiled(case: str) -> ThroughputCurve:
    return profile(CASES[case][0](), Plan(batch_size=1), max_batch=256, budget_s=1.0)


def race(case: str, folder: Path, runner: Any, kept: Kept | None = None) -> Outcome:
    ledger = Ledger(BUDGET_S, runner.clock, carried=kept.state.charged if kept else None)
    curve = profiled(case)
    horizon = horizon_s(BUDGET_S, None, eval_s=runner.eval_s, baseline_step_s=curve.step_s(32))
    result = search(
        runner,
        ledger,
        curve,
        max_batch=256,
        horizon_s=horizon,
        eval_s=runner.eval_s,
        eval_batch_size=256,
        lr_hint=1e-3,
        settings=SearchSettings(**CASES[case][1]),
        record=StudyRecord(folder / "journal.log", "sim", "maximize"),
        kept=kept,
    )
    return Outcome(result, ledger.entries(), runner.kept)


def undisturbed(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Outcome, list[Moment]]:
    """The race, and what lay on the disk behind and before each line of its journal."""
    runner = CASES[case][0]()
    moments: list[Moment] = []

    class Watched(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            self._note()  # what a rung has left since the line before
            super().append_logs(logs)
            self._note()

        def _note(self) -> None:
            moment = Moment(Path(self._file_path).stat().st_size, copy.deepcopy(runner.kept))
            if moment not in moments:
                moments.append(moment)

    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(autobatch.searching.storage.journal, "JournalFileBackend", Watched)
        outcome = race(case, folder, runner)
    return outcome, moments


def resumed(case: str, folder: Path, journal: bytes, moment: Moment) -> Outcome:
    """The race that goes on from a moment, with half a line more in the journal, as a kill may leave it."""
    folder.mkdir()
    torn = journal[moment.journal_bytes :].partition(b"\n")[0]
    (folder / "journal.log").write_bytes(journal[: moment.journal_bytes] + torn[: len(torn) // 2])
    runner = CASES[case][0]()
    runner.kept = copy.deepcopy(moment.checkpoints)
    runner.clock.advance(DOWNTIME_S)
    kept = StudyRecord(folder / "journal.log", "sim", "maximize").kept()
    return race(case, folder, runner, kept)


@pytest.mark.parametrize("case", CASES)
def test_a_race_cut_at_any_line_goes_on_as_if_nothing_had_happened(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A disk takes its time, and here none loses power, and nobody else writes.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(JournalFileSymlinkLock, "acquire", lambda lock: True)
    monkeypatch.setattr(JournalFileSymlinkLock, "release", lambda lock: None)
    whole, moments = undisturbed(case, tmp_path / "whole", monkeypatch)
    journal = (tmp_path / "whole" / "journal.log").read_bytes()
    assert len(moments) > 50
    assert {trial.role for trial in whole.result.trials} >= {"baseline", "search", "confirmation"}
    for number, moment in list(enumerate(moments))[:: CASES[case][2]]:
        found = resumed(case, tmp_path / f"{number}", journal, moment)
        where = f"cut at byte {moment.journal_bytes}"
        # A clock is read in microseconds, and two of them begin at different fractions of one.
        assert found.result == replace(whole.result, equivalents=found.result.equivalents), where
        assert found.result.equivalents == pytest.approx(whole.result.equivalents), where
        assert found.checkpoints == whole.checkpoints, where
        assert found.charged == pytest.approx(whole.charged, abs=1e-4), where
        again = read_kept(tmp_path / f"{number}" / "journal.log")
        assert again is not None
        assert again.trials == whole.result.trials
