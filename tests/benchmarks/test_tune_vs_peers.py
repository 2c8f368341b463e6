"""The comparison with others: what is fair to them, what becomes of those that fail, and how its files are kept."""

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from autobatch.core.measurement import LrSweep
from autobatch.core.plan import Config, Plan
from autobatch.engines.opening import spec_for
from autobatch.errors import NoValidResult
from autobatch.measuring.learning_rate import LrCurve
from autobatch.searching.schedulers.warm_starts import warm_starts
from autobatch.tasks.doors.table import as_task

FOLDER = Path(__file__).parents[2] / "benchmarks"
MINIMAL = Path(__file__).parents[1] / "task_files" / "minimal.py"
STEP_S = {8: 1e-3, 16: 1.1e-3}


@pytest.fixture
def versus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The comparison with others, its changes to this process undone."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module = import_module("tune_vs_peers")
    monkeypatch.setattr(module, "keep_freed_memory", lambda: True)
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    yield module
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture
def field(versus: Any) -> Any:
    """A task under a budget of 2 s, T = 0.1 s, by a made-up profile."""
    return versus.enter(MINIMAL, 2.0, STEP_S)


def out_of_luck(field: Any, repeat: int) -> Any:
    raise NoValidResult("nothing was found")


def test_a_method_that_fails_has_ended_with_the_baseline(
    versus: Any, field: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = versus.run(field, "baseline", 1, 2)
    negative = replace(field.task, optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), -lr))
    untrainable = versus.Answer(task=negative, config=Config(plan=Plan(batch_size=8), lr=1.0))
    for fails, why in {out_of_luck: "NoValidResult: nothing", lambda *_: untrainable: "ValueError: Invalid"}.items():
        monkeypatch.setitem(versus.METHODS, "Prodigy", (fails, None))
        row = versus.run(field, "Prodigy", 1, 2)
        assert row["error"].startswith(why)
        assert [row[of] for of in ("at_T", "at_4T", "lr")] == [baseline[of] for of in ("at_T", "at_4T", "lr")]
    assert capsys.readouterr().err.count("Traceback") == 2
    assert baseline["error"] is None
    assert versus.run(field, "baseline", 2, 2)["at_T"] != baseline["at_T"]


def test_a_baseline_that_cannot_be_trained_is_nobodys_failure(
    versus: Any, field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(versus.METHODS, "baseline", (out_of_luck, None))
    with pytest.raises(NoValidResult):
        versus.run(field, "baseline", 0, 1)


@pytest.mark.parametrize("warm", [False, True])
def test_optuna_searches_the_space_of_tune_and_pays_for_the_range_test(
    field: Any, monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    """The test takes 0.55 s of 2 s, so that 14 full trials of 0.1 s are left; halving makes more of them."""
    peers = import_module("tune_peers")
    lrs = tuple(10 ** (-5 + step / 10) for step in range(41))
    losses = (*(1 - 0.02 * step for step in range(40)), 5.0)
    sweep = LrSweep(plan=Plan(batch_size=16), lrs=lrs, losses=losses, diverged=True, seconds=0.55)
    swept = LrCurve(sweep=sweep)
    now, tried = [0.0], []

    def train(
        field: Any, answer: Any, seed: int, horizon_s: float, keep_on: Callable[[int, float], bool] | None = None
    ) -> float:
        tried.append(answer.config)
        score = -abs(math.log10(answer.config.lr) + 2)
        goes_on = keep_on is None or keep_on(1, score)
        now[0] += horizon_s if goes_on else horizon_s / 8
        return score if goes_on else math.nan

    monkeypatch.setattr(peers, "perf_counter", lambda: now[0])
    monkeypatch.setattr(peers.Field, "train", train)
    monkeypatch.setattr(peers.Field, "range_test", lambda field, seed: swept)
    answer = peers.tpe(field, 3, warm)
    space = field.space(swept)
    assert space.lr_high == pytest.approx(0.1)  # where the test blew up
    starts = [field.baseline, *(config for config, _ in warm_starts(space, field.baseline, field.plan(16), 10**-2.1))]
    assert len(starts) == 3
    assert (tried[:3] == starts) == warm
    rates = [space.scaled_lr(config) for config in tried]
    assert 0.999 * space.lr_low <= min(rates) <= max(rates) <= 1.001 * space.lr_high
    assert answer.trials == len(tried)
    assert (len(tried) > 14) == warm
    assert warm or len(tried) == 14
    assert answer.config == min(tried, key=lambda config: abs(math.log10(config.lr) + 2))


def test_the_range_test_of_others_is_that_of_tune(field: Any) -> None:
    found = field.range_test(0)
    assert found.sweep.plan == Plan(batch_size=16)  # the knee
    assert len(found.sweep.lrs) <= 54  # 3 % of 2 s in steps of 1.1 ms
    assert field.range_test(0).sweep.losses == found.sweep.losses
    assert field.range_test(1).sweep.losses != found.sweep.losses
    assert replace(field, budget_s=0.5).range_test(0) is None


def test_everyone_trains_with_as_many_threads(versus: Any) -> None:
    versus.use_threads(2)
    assert torch.get_num_threads() == 2
    assert spec_for(as_task(MINIMAL), "cpu", None, 0.05, nproc=1).threads == 2
    assert versus.about()["machine"]["threads"] == 2


def runs_of(method: str, *scores: float | None) -> list[dict[str, Any]]:
    """A run for each repeat, with one seed."""
    row: dict[str, Any] = {
        "method": method,
        "error": None,
        "seconds": 1.0,
        "trials": 3,
        "batch_size": 8,
        "lr": 0.1,
        "why": [],
    }
    return [
        row | {"repeat": repeat, "at_T": [score], "at_4T": [None if score is None else score / 2]}
        for repeat, score in enumerate(scores)
    ]


def test_the_goal_is_judged_against_the_others(versus: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ours, rival = "autobatch tpe", "autobatch freeze-thaw"
    tasks: dict[str, dict[str, Any]] = {
        "up": {"direction": "maximize", "runs": [*runs_of(ours, 0.9, 0.9), *runs_of("baseline", 0.8, 0.8)]},
        "down": {
            "direction": "minimize",  # 0.32 +- 0.02 against 0.31, and the other search is no rival
            "runs": [*runs_of(ours, 0.30, 0.34), *runs_of("Prodigy", 0.31, 0.31), *runs_of(rival, 0.1, 0.1)],
        },
        "diverged": {"direction": "minimize", "runs": [*runs_of(ours, 0.1, 0.1), *runs_of("Prodigy", 0.05, None)]},
    }
    said = versus.verdict(tasks, ours, "at_T")
    assert "3 of 3 tasks (missed on none), strictly best on 2 (up, diverged): the goal is reached" in said
    tasks["diverged"]["runs"] += runs_of("baseline", 0.09, 0.09)
    for at in ("at_T", "at_4T"):
        said = versus.verdict(tasks, ours, at)
        assert "2 of 3 tasks (missed on diverged), strictly best on 1 (up): the goal is missed" in said
    versus.print_table("diverged", tasks["diverged"])
    assert re.search(r"^Prodigy +nan +nan +nan +nan +2 ", capsys.readouterr().out, re.MULTILINE)


def test_a_comparison_is_gone_on_with_and_joined(
    versus: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, int]] = []

    def run(field: Any, method: str, repeat: int, fresh: int) -> dict[str, Any]:
        done.append((method, repeat))
        return runs_of(method, *range(repeat + 1))[-1] | {"error": "SomeError: why" if method == "Lightning" else None}

    monkeypatch.setattr(versus, "step_times", lambda path: STEP_S)
    monkeypatch.setattr(versus, "missing", lambda method: None)
    monkeypatch.setattr(versus, "run", run)

    def called(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tune_vs_peers.py", *map(str, words)])
        versus.main()
        return capsys.readouterr().out

    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            called(*words)
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    a, b, other, old = (tmp_path / f"{name}.json" for name in ("a", "b", "other", "old"))
    how: tuple[object, ...] = (MINIMAL, "--budget", "2s", "--methods", "autobatch tpe", "Lightning", "--json")
    called(*how, a, "--repeats", 1)
    called(*how, a, "--repeats", 2)
    called(*how, b, "--repeats", 1, "--first-repeat", 2)
    assert done == [(method, repeat) for repeat in range(3) for method in ("autobatch tpe", "Lightning")]
    said = called("--summary", a, b)
    assert re.search(r"^autobatch tpe +1\.0000\* .* +3 +0 ", said, re.MULTILINE)
    assert said.count("failed and ended with the baseline: SomeError: why") == 3
    assert said.count("the goal is") == 2
    assert "its steps take 1.00 times as long" in said
    assert "holds minimal, autobatch tpe, repeat 2 once more" in refused("--summary", b, b)

    called(MINIMAL, "--budget", "4s", "--methods", "baseline", "--repeats", 1, "--json", other)
    assert "was made with budget_s 4.0" in refused("--summary", a, other)
    assert "was made with threads 1, not 2" in refused(*how, a, "--threads", 2)
    old.write_text('{"budget_s": 2.0, "tasks": {"minimal": []}}')
    assert "is of schema 1, and this reads 2" in refused("--summary", old)
    assert "is of schema 1, and this reads 2" in refused(*how, old)
    old.write_text("half of a fi")
    assert "is no JSON" in refused("--summary", old)
    assert "cannot be read" in refused("--summary", tmp_path / "nowhere.json")
