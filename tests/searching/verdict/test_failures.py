"""A task that raises or exits in a trial is said to have failed, with its message, wherever the run is told of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from autobatch.cli.app import cli
from autobatch.core.plan import Config, Plan
from autobatch.core.progress import Progress
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.errors import TaskError
from autobatch.render.content import report_document
from autobatch.render.html import to_html
from autobatch.render.markdown import to_markdown
from autobatch.render.terminal import print_document
from autobatch.reports.report import Report
from autobatch.runs.run_folder import RunFolder, RunState
from autobatch.runs.settings import TuneSettings
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.verdict.failures import failed_trials, headline
from autobatch.searching.verdict.stability import divergence_risk
from autobatch.simulated.sim import SimRunner
from autobatch.tuning.pipeline import _Tune

from ...helpers.histories import history
from .test_confirmation import config, trial

EXITED = "the loss of task.py failed: SystemExit: 3\n  File task.py, line 7, in loss"


def tuned(tmp_path: Path, fails: Callable[[TrainSegment], str | None]) -> tuple[Report, list[str]]:
    """The whole of `tune` on a simulated device whose task fails with a message, and what was told meanwhile."""

    def faults(segment: TrainSegment) -> SegmentResult | None:
        message = fails(segment)
        if message is not None:
            raise TaskError(message)
        return None

    runner, told = SimRunner(faults=faults), list[str]()

    def listen(progress: Progress) -> None:
        told.append(progress.text)

    settings = TuneSettings(name="simulated", max_trials=8)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=settings)
    with RunFolder.made(tmp_path, "simulated") as folder:
        report = _Tune(runner, Ledger(300.0, clock=runner.clock), listen, folder, state).run()
    return report, told


def renderings(report: Report) -> dict[str, str]:
    document = report_document(report)
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as captured:
        print_document(document, console)
    found = {
        "terminal": captured.get(),
        "markdown": to_markdown(document).replace("\\", ""),
        "html": re.sub(r"<[^>]*>", " ", to_html(document)),
    }
    return {name: " ".join(text.split()) for name, text in found.items()}


def test_where_every_other_trial_raises_nothing_is_recommended_and_all_say_why(tmp_path: Path) -> None:
    report, told = tuned(tmp_path, lambda segment: EXITED if segment.trial else None)
    others = [one for one in report.trials if one["role"] != "baseline"]
    assert others
    assert all((one["state"], one["outcome"], one["message"]) == ("failed", "raised", EXITED) for one in others)
    assert report.chose_baseline
    assert report.is_unanswered
    said = json.dumps(report.to_json())
    for name, text in renderings(report).items():
        assert "Nothing could be compared with it: the other trials failed" in text, name
        assert "the task raised or exited: the loss of task.py failed: SystemExit: 3" in text, name
        assert "diverged" not in text, name
        assert "keep what you have" not in text, name
    assert "the loss of task.py failed: SystemExit: 3" in said
    assert any(line.endswith("failed: the loss of task.py failed: SystemExit: 3") for line in told)
    assert Report.from_json(json.loads(said)).is_unanswered


def test_where_a_few_raise_the_answer_stands_and_they_are_told(tmp_path: Path) -> None:
    report, _ = tuned(tmp_path, lambda segment: f"no room at step {segment.trial}" if segment.trial in (2, 3) else None)
    assert not report.is_unanswered
    for name, text in renderings(report).items():
        for number in (2, 3):
            assert f"the task raised or exited: no room at step {number}" in text, name


def test_a_task_that_raises_only_later_is_unanswered_too(tmp_path: Path) -> None:
    late, _ = tuned(tmp_path, lambda segment: "epoch 2 has no labels" if segment.trial and segment.start_step else None)
    assert any(one["scores"] for one in late.trials if one["role"] != "baseline")
    assert late.is_unanswered == all(one["state"] != "complete" for one in late.trials if one["role"] != "baseline")
    assert any("epoch 2 has no labels" in warning for warning in late.warnings)


@pytest.mark.parametrize(("fails", "code"), [(True, 3), (False, 0)])
def test_the_exit_code_is_that_of_nothing_found(
    fails: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = tuned(tmp_path / "runs", lambda segment: EXITED if fails and segment.trial else None)
    monkeypatch.setattr("autobatch.api.tune", lambda *_, **__: report)
    (tmp_path / "task.py").write_text("", encoding="utf-8")
    ended = CliRunner().invoke(cli, ["tune", str(tmp_path / "task.py"), "-q"])
    assert ended.exit_code == code
    assert ("nothing could be compared with the baseline" in ended.stderr) == fails
    assert ("SystemExit: 3" in " ".join(ended.stdout.split())) == fails


def test_what_blew_up_or_did_not_fit_is_no_failure_of_the_task() -> None:
    trials = [
        trial(0, config(0), "baseline", 0.5),
        trial(1, config(1), "search", None, "diverged"),
        trial(2, config(2), "search", None, "oom"),
        trial(3, config(3), "search", None, "timeout"),
    ]
    assert failed_trials(history(trials)) == ()


def test_failures_are_told_by_their_message_the_most_frequent_first() -> None:
    def failed(number: int, message: str | None) -> object:
        return replace(trial(number, config(number), "search", None, "raised"), message=message)

    messages = ["b", "a", "a\nmore", None, "c", "d", "a"]
    said = failed_trials(history([failed(n, message) for n, message in enumerate(messages)]))  # type: ignore[misc]
    assert said[0] == ("3 trials, the first of batch 32 at 0.002, failed, out of 7: the task raised or exited: a")
    assert said[1] == "the trial of batch 32 at 0.001 failed, out of 7: the task raised or exited: b"
    assert said[2].endswith("no message")
    assert said[3:] == ("2 more trials failed with other messages",)


def test_a_message_is_one_line_and_has_an_end() -> None:
    assert headline("\n\n  disk full \n at line 3") == "disk full"
    assert headline(None) == headline(" \n") == "no message"
    assert len(headline("x" * 10_000)) < 310


def test_a_search_takes_what_raised_for_what_blew_up() -> None:
    """As it did before they were told apart: many a task gives up by itself where its loss is no number."""
    near = Config(plan=Plan(batch_size=32), lr=2e-3)
    risks = [
        divergence_risk(
            near, history([trial(0, config(0), "baseline", 0.5), trial(1, config(3), "search", None, outcome)])
        )
        for outcome in ("diverged", "raised")
    ]
    assert risks[0] == risks[1] > 0
