"""The runner of a script as it is typed: the contract, and what scripts do that they should not."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autobatch.core.plan import Config, Plan
from autobatch.core.runner import Runner
from autobatch.core.segment import TrainSegment
from autobatch.engines.commands.runner import CommandRunner
from autobatch.errors import DoesNotFit, SettingError, TaskError, WorkerTimeout
from autobatch.measuring.memory import find_max_batch_size
from autobatch.tasks.command import Command

from ..helpers.contracts import RunnerContract
from ..helpers.processes import wait_until_gone, wait_until_unmarked

PLAIN = Path(__file__).parents[1] / "task_files" / "scripts" / "plain.py"
PYTHON = shlex.join([sys.executable, "-S", str(PLAIN)])
MIB = 1 << 20


def plain(rest: str = "", **said: Any) -> Command:
    """The script, told its batch size and rate, and what `rest` says."""
    told: dict[str, Any] = {
        "score": r"val_loss=([0-9.]+)",
        "direction": "minimize",
        "baseline": {"batch_size": 8, "lr": 1e-3},
    }
    command = f"{PYTHON} --batch-size {{batch_size}} --lr {{lr}} {rest}"
    return Command(command, **(told | said))


STEPS = "--max-steps {max_steps} --seed {seed}"


@pytest.fixture
def opened() -> Iterator[Callable[..., CommandRunner]]:
    runners: list[CommandRunner] = []

    def open_one(command: Command, **how: Any) -> CommandRunner:
        runners.append(CommandRunner(command, **how))
        return runners[-1]

    yield open_one
    for runner in runners:
        runner.close()


class TestOfACommandThatResumes(RunnerContract):
    tells_losses = False

    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[Runner]:
        command = plain(f"--accum {{accumulation_steps}} {STEPS} --checkpoint {{checkpoint}}")
        runner = CommandRunner(command, memory_limit_bytes=256 * MIB, checkpoints=tmp_path / "checkpoints")
        yield runner
        runner.close()


class TestOfACommandThatBeginsAgain(RunnerContract):
    tells_losses = False
    resumes = False

    @pytest.fixture
    def runner(self) -> Iterator[Runner]:
        runner = CommandRunner(plain(STEPS), memory_limit_bytes=256 * MIB)
        yield runner
        runner.close()


def segment(**changes: Any) -> TrainSegment:
    known: dict[str, Any] = {
        "trial": 1,
        "config": Config(plan=Plan(batch_size=8), lr=1e-3),
        "seed": 0,
        "start_step": 0,
        "until_step": 8,
        "total_steps": 16,
        "eval_batch_size": 8,
        "until_s": 0.2,
    }
    return TrainSegment(**(known | changes))


def test_a_command_that_is_told_seconds_trains_for_those_of_the_profile(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain("--max-seconds {max_seconds}"))
    assert runner.facts().without.keys() == {"range test", "profile"}
    result = runner.advance(segment(until_s=0.5))
    assert result.outcome == "ok"
    assert result.seconds >= 0.5


def test_a_command_that_is_told_neither_is_stopped_when_its_time_is_over(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain(), remaining_s=lambda: 16.0)
    facts = runner.facts()
    assert facts.least_s > 0
    assert facts.own_length_s is None  # it would go on for ever
    assert any("SIGTERM" in warning for warning in facts.warnings)
    result = runner.advance(segment(until_s=1.0))
    assert result.outcome == "ok"
    assert result.seconds >= 1.0


def test_one_that_ends_by_itself_says_how_long_it_trains(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain("--max-steps 50"), remaining_s=lambda: 600.0)
    facts = runner.facts()
    assert facts.own_length_s is not None
    assert facts.least_s <= facts.own_length_s
    assert runner.advance(segment(until_s=600.0)).outcome == "ok"  # and does not wait for its time to be over


def test_what_was_trained_again_is_told_apart(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain(STEPS))
    runner.facts()
    result = runner.advance(segment(start_step=8, until_step=16))
    assert result.outcome == "ok"
    again_s = result.beside_s["training again"]
    assert again_s == pytest.approx(result.train_s)  # a half of the training, as it had been trained to a half
    assert result.seconds >= result.train_s + sum(result.beside_s.values())


def test_a_speed_that_the_script_tells_is_taken(opened: Callable[..., CommandRunner], tmp_path: Path) -> None:
    script = tmp_path / "fast.py"
    script.write_text(
        "import sys, time\n"
        "while True:\n"
        "    print(f'{4 * int(sys.argv[1])} samples/s, eval: 7 samples/s')\n"
        "    print(f'train: {4 * int(sys.argv[1]):,}.0 samples/s')\n"
        "    print('acc=0.5 at', sys.argv[2], flush=True)\n"
        "    time.sleep(0.01)\n"
    )
    command = Command(
        f"{shlex.join([sys.executable, '-S', str(script)])} {{batch_size}} {{lr}}",
        score="acc=([0-9.]+)",
        direction="maximize",
        baseline="batch_size=512 lr=1",
    )
    runner = opened(command, remaining_s=lambda: 1.0)
    assert "profile" not in runner.facts().without
    timed = runner.time(Plan(batch_size=512), budget_s=0.0)
    assert timed.samples_per_s == pytest.approx(2048)


LOGGED = """
import sys, time
import autobatch
for step in range(1, 6):
    time.sleep(0.01)
    autobatch.log(step=step, samples=step * int(sys.argv[1]))
autobatch.log(float(sys.argv[2]), step=5)
"""


def test_a_script_may_log_its_score_and_its_samples(opened: Callable[..., CommandRunner], tmp_path: Path) -> None:
    script = tmp_path / "logs.py"
    script.write_text(LOGGED)
    command = Command(
        f"{shlex.join([sys.executable, str(script)])} {{batch_size}} {{lr}}",
        direction="maximize",
        baseline="batch_size=32 lr=0.25",
    )
    runner = opened(command)
    assert "profile" not in runner.facts().without
    assert runner.advance(segment(config=Config(plan=Plan(batch_size=8), lr=0.125))).score == 0.125
    assert runner.time(Plan(batch_size=8), budget_s=0.0).outcome == "ok"


# -- what scripts do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said", "told"),
    [
        ("silent", {}, r"ended without a score: no line of its output matches 'val_loss=\(\[0-9\.\]\+\)'.*exit code 0"),
        ("well", {"score": r"accuracy=([0-9.]+)"}, r"no line of its output matches 'accuracy.*step 8: val_loss"),
        ("well", {"score": None}, r"nothing says where it is\. Give --score .*autobatch\.log\(score\)"),
        ("well", {"score": None, "score_file": "/nowhere/result.json:loss"}, r"it did not write /nowhere/result\.json"),
        ("nan", {}, r"the score of the command is no number at batch size 8 and lr 0\.001.*val_loss=nan"),
    ],
)
def test_a_script_without_a_score_ends_a_run_at_once(
    opened: Callable[..., CommandRunner], how: str, said: dict[str, Any], told: str
) -> None:
    with pytest.raises(TaskError, match=f"(?s){told}"):
        opened(plain(f"{STEPS} --how {shlex.quote(how)}", **said)).facts()


def test_a_script_that_fails_is_quoted(opened: Callable[..., CommandRunner]) -> None:
    with pytest.raises(TaskError, match=r"(?s)fails at batch size 8 and lr 0\.001: .*code 2.*unrecognized argument"):
        opened(plain(f"{STEPS} --learning-rate 3")).facts()


def test_garbage_does_no_harm(opened: Callable[..., CommandRunner], tmp_path: Path) -> None:
    runner = opened(plain(f"{STEPS} --how garbage"), log=tmp_path / "log")
    assert runner.advance(segment()).outcome == "ok"
    assert (tmp_path / "log").stat().st_size > 1 << 20


def test_a_score_that_is_no_number_is_a_trial_that_diverged(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain(f"{STEPS} --how 'nan at high rates'"))
    runner.facts()
    assert runner.advance(segment(config=Config(plan=Plan(batch_size=8), lr=1.0))).outcome == "diverged"
    assert runner.advance(segment()).outcome == "ok"


def test_one_that_ignores_the_signal_is_killed_and_its_score_is_that_of_before(
    opened: Callable[..., CommandRunner],
) -> None:
    runner = opened(plain("--how 'ignores the signal'", grace=0.3), remaining_s=lambda: 8.0)
    result = runner.advance(segment(until_s=0.3))
    assert result.outcome == "ok"
    assert result.seconds >= 0.6


def test_what_a_script_forks_is_ended_with_it(opened: Callable[..., CommandRunner], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    runner = opened(plain(f"{STEPS} --how forks --pids {shlex.quote(str(pids))}"))
    runner.facts()
    assert runner.advance(segment()).outcome == "ok"
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) >= 4  # two of each run, one of them in a session of its own
    assert all(wait_until_gone(pid) for pid in started)


@pytest.mark.parametrize("rest", ["'{print $1}' | cat; exit 3", "| cat"])
def test_a_pipeline_is_run_by_a_shell_that_was_asked_for(opened: Callable[..., CommandRunner], rest: str) -> None:
    if rest == "| cat":
        with pytest.raises(SettingError, match=r"without a shell, which '\|' is for: give --shell"):
            plain(f"{STEPS} | cat")
        assert opened(plain(f"{STEPS} | cat", shell=True)).facts().name == "plain"
    else:
        with pytest.raises(TaskError, match="exit code 3"):
            opened(plain(f"{STEPS} | awk {rest}", shell=True)).facts()


def test_a_hang_is_ended(opened: Callable[..., CommandRunner]) -> None:
    sleeps = shlex.join([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    command = Command(
        f"{sleeps} {{batch_size}} {{lr}} {{max_steps}}",
        direction="maximize",
        baseline="batch_size=1 lr=1",
    )
    with pytest.raises(TaskError, match=r"a run of 8 steps did not end within 0\.\d+ s: a script that has \{max"):
        opened(command, probe_timeout_s=0.2).facts()
    with pytest.raises(WorkerTimeout, match=r"longer than the 0\.3 s it had"):
        opened(command, remaining_s=lambda: 0.3).facts()
    result = opened(command).advance(segment(limit_s=0.2))
    assert (result.outcome, result.score) == ("timeout", None)


def test_a_checkpoint_that_is_not_written_is_told_at_once(opened: Callable[..., CommandRunner]) -> None:
    with pytest.raises(TaskError, match=r"has \{checkpoint\}, and left nothing there when it ended: save there what"):
        opened(plain(f"{STEPS} --pids {{checkpoint}}")).facts()


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_largest_batch_of_a_command_fits_and_the_next_does_not(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain(f"{STEPS} --kib-a-sample 1024"), memory_limit_bytes=160 * MIB, is_checked=False)
    found = find_max_batch_size(
        runner, Plan(batch_size=1), ceiling=4096, ceiling_is="ceiling", multiple_of=32, prove=True
    )
    assert 64 <= found <= 160
    assert found.limited_by == "memory"
    assert found.proof is not None
    assert found.proof.plan.batch_size == found + 32


def test_what_is_printed_of_memory_is_believed(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain(f"{STEPS} --how 'says oom'"))
    assert runner.probe(Plan(batch_size=64)).outcome == "ok"
    assert runner.probe(Plan(batch_size=65)).outcome == "oom"
    result = runner.advance(segment(config=Config(plan=Plan(batch_size=128), lr=1e-3)))
    assert (result.outcome, result.fresh) == ("oom", True)


def test_a_size_that_the_script_refuses_is_no_matter_of_memory(opened: Callable[..., CommandRunner]) -> None:
    runner = opened(plain(f"{STEPS} --how 'fails at many'"))
    with pytest.raises(TaskError, match=r"(?s)fails at batch size 65: .*no batch above 64"):
        runner.probe(Plan(batch_size=65))
    assert runner.advance(segment(config=Config(plan=Plan(batch_size=128), lr=1e-3))).outcome == "raised"


def test_nothing_fits_into_next_to_nothing(opened: Callable[..., CommandRunner]) -> None:
    slow = plain(f"{STEPS} --how slow")
    runner = opened(slow, memory_limit_bytes=1 * MIB, is_checked=False)
    with pytest.raises(DoesNotFit, match="for all processes of the command"):
        find_max_batch_size(runner, Plan(batch_size=1), ceiling=64, ceiling_is="ceiling")
    with pytest.raises(TaskError, match=r"runs out of memory at batch size 8 and lr 0\.001, which the baseline is"):
        opened(slow, memory_limit_bytes=1 * MIB).facts()


# -- the end -----------------------------------------------------------------------------------------------------------

KILLED = """
import sys
from autobatch.engines.commands.runner import CommandRunner
from autobatch.tasks.command import Command
command = Command(sys.argv[1], score="val_loss=([0-9.]+)", direction="minimize", baseline="batch_size=8 lr=1")
CommandRunner(command).facts()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_nothing_is_left_when_the_coordinator_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = plain(f"--how forks --pids {shlex.quote(str(pids))}").command
    environment = os.environ | {"TEST_MARK": "of test_nothing_is_left"}
    coordinator = subprocess.Popen([sys.executable, "-c", KILLED, command], env=environment)
    try:
        while not (pids.exists() and pids.read_text().count("\n") == 2):
            assert coordinator.poll() is None
            time.sleep(0.02)
    finally:
        coordinator.send_signal(signal.SIGKILL)
        coordinator.wait()
    assert all(wait_until_gone(int(pid)) for pid in pids.read_text().split())
    assert wait_until_unmarked("TEST_MARK=of test_nothing_is_left")
