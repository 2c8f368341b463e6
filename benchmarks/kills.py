"""`tune` whose processes are killed at random moments and which is then resumed: does it come to the same trials?

`faults.py --resume-runs N` runs this. Half of the runs begin as copies of one folder, whose race has just begun: the
profile in it is the same for all, so an undisturbed run and a disturbed one decide by the same modelled costs, and must
come to the same trials. The other half begin from nothing and are killed before their race: in start-up, probes,
profile or range test. Their own profile makes another race of each; so what was on the disk when the kill came must be
there in the end, unchanged, and the largest batch must be that of the undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autobatch.errors import ReportError
from autobatch.runs.run_folder import read_state
from autobatch.searching.storage.journal import read_kept

MARK = "AUTOBATCH_KILL_POINT"
TARGETS = ("coordinator", "worker", "both")
Begins = Literal["nothing", "race"]
GONE_S = 5.0  # what the processes of a killed run may take to disappear
_POLL_S = 0.02
FILES = ("run.json", "journal.log", "worker.log", "report.json", "lock", "checkpoints")  # of a finished run

# The time is ample, so that what ends the race is the number of trials: on a clock no two runs are the same.
OPTIONS = ("--budget", "100s", "--train-time", "0.2s", "--max-trials", "5", "--device", "cpu")
# From nothing the speed is measured anew, and on a busy machine 0.2 s are fewer than 32 steps (measured).
ANEW = (*OPTIONS, "--train-time", "1s")

# Dropout and AdamW: what is resumed without its generators or its moments scores otherwise.
TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

baseline = {"batch_size": 16, "lr": 1e-3}


def _blobs(seed, count):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 8, generator=generator) + y[:, None], y)


def model():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))


def train_data():
    return _blobs(0, 512)


def val_data():
    return _blobs(1, 400)
"""

Start = Callable[..., Any]  # as `subprocess.Popen`


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One run with a kill in it, and what came of it.

    Attributes:
        begins: what was there when the run was started: "nothing", or a race that has just begun.
        target: what was killed.
        delay_s: seconds after the start.
        struck: whether it was still running then. Where it was not, nothing was put to the test.
        finished: the run, resumed where it had to be, came to its answer.
        same: its trials are those of the undisturbed run, to the last bit of their scores; of one from nothing, what
            was on the disk at the kill is there in the end.
        left: processes that were still there after `GONE_S`, and files that are not whole or nobody's.
        message: the last words of a run that did not finish, or the first thing that differs.
    """

    begins: Begins
    target: str
    delay_s: float
    struck: bool
    finished: bool
    same: bool
    left: tuple[str, ...]
    message: str = ""

    @property
    def right(self) -> bool:
        """Whether all is as it should be."""
        return self.finished and self.same and not self.left


class Runs:
    """A task, a run of it whose race has just begun, and what comes of it undisturbed.

    Args:
        folder: to work in.
        start: starts a process as `subprocess.Popen` does.
        environment: of the processes.
        anew: options of a run that begins from nothing.
    """

    def __init__(
        self,
        folder: Path,
        start: Start = subprocess.Popen,
        environment: Mapping[str, str] | None = None,
        anew: Sequence[str] = ANEW,
    ) -> None:
        self.folder, self._start, self._anew = folder, start, anew
        self._environment = dict(os.environ if environment is None else environment)
        self._instance = f"{os.getpid()}-{time.monotonic_ns()}"  # two of these at once strike their own alone
        folder.mkdir(exist_ok=True)
        (folder / "blobs.py").write_text(TASK)
        self._begun = folder / "begun"
        begun = time.monotonic()
        process = self._tune("begun", *OPTIONS, "--run-dir", str(self._begun))
        while not (self._begun / "journal.log").exists() or b'"now"' not in (self._begun / "journal.log").read_bytes():
            if process.poll() is not None:
                raise RuntimeError(self._words("begun"))
            time.sleep(_POLL_S)
        self.begun_s = time.monotonic() - begun
        process.kill()
        process.wait()
        wait_until_gone(self._mark("begun"))
        begun = time.monotonic()
        self.trials = self._resumed("undisturbed")
        self.undisturbed_s = time.monotonic() - begun
        self.largest = largest_of(folder / "undisturbed")

    def _mark(self, name: str) -> str:
        return f"{self._instance}-{name}"

    def _tune(self, name: str, *options: str) -> Any:
        with open(self.folder / f"{name}.out", "w") as out, open(self.folder / f"{name}.err", "w") as err:
            return self._start(
                [sys.executable, "-m", "autobatch", "tune", "blobs.py", "--json", *options],
                cwd=self.folder,
                env=self._environment | {MARK: self._mark(name)},
                stdout=out,
                stderr=err,
            )

    def _words(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text().strip()[-2000:]

    def _resumed(self, name: str) -> list[Any]:
        """The trials of a run that is left to itself: one that is there, or a copy of the one that has begun."""
        run = self.folder / name
        if not run.exists():
            shutil.copytree(self._begun, run)
        # One that was killed before it had written anything is no run yet.
        options = ["--resume", str(run)] if (run / "run.json").exists() else [*self._anew, "--run-dir", str(run)]
        process = self._tune(name, *options)
        if process.wait() != 0:
            raise RuntimeError(self._words(name))
        return trials_of(self.folder / f"{name}.out")

    def killed(self, number: int, target: str, delay_s: float, begins: Begins = "race") -> Kill:
        """A run, a copy of the one that has begun or a new one, with a kill after `delay_s`, and the run resumed."""
        name = f"killed-{number}"
        run, mark = self.folder / name, self._mark(name)
        if begins == "race":
            shutil.copytree(self._begun, run)
            process = self._tune(name, "--resume", str(run))
        else:
            process = self._tune(name, *self._anew, "--run-dir", str(run))
        time.sleep(delay_s)
        struck = process.poll() is None and strike(process.pid, mark, target)
        code = process.poll() if target != "worker" else process.wait()
        left: list[str] = []
        known: dict[str, Any] = {}
        try:
            if struck and target != "worker":
                process.wait()
                left += [f"process {pid}" for pid in wait_until_gone(mark)]
                known = known_of(run)
            if is_finished(run):  # it was killed on its way out
                trials = trials_of(run / "report.json")
            elif struck and target != "worker":
                trials = self._resumed(name)
            elif (code if code is not None else process.wait()) == 0:
                trials = trials_of(self.folder / f"{name}.out")
            else:
                raise RuntimeError(self._words(name))
            finished = True
            message = first_difference(self.trials, trials) if begins == "race" else first_loss(known, known_of(run))
            if (largest := largest_of(run)) != self.largest:
                message = f"expected batch {self.largest} to be the largest, found {largest}"
        except (RuntimeError, ReportError) as error:
            finished, message = False, str(error)
        left += [f"process {pid}" for pid in wait_until_gone(mark)]
        left += [name for path in run.rglob("*") if (name := str(path.relative_to(run))) not in FILES]
        shutil.rmtree(run)
        return Kill(
            begins=begins,
            target=target,
            delay_s=delay_s,
            struck=struck,
            finished=finished,
            same=finished and not message,
            left=tuple(left),
            message=message,
        )


def kills(folder: Path, count: int, seed: int, told: Callable[[Kill], None] | None = None, **how: Any) -> list[Kill]:
    """`count` runs, each with one kill at a random moment, every second one before its race; `told` hears of each."""
    chance = random.Random(seed)
    runs = Runs(folder, **how)
    done = []
    for number in range(count):
        begins: Begins = "nothing" if number % 2 else "race"
        longest_s = runs.begun_s if begins == "nothing" else runs.undisturbed_s
        done.append(runs.killed(number, chance.choice(TARGETS), chance.uniform(0.0, longest_s), begins))
        if told is not None:
            told(done[-1])
    return done


def strike(pid: int, mark: str, target: str) -> bool:
    """Kill the coordinator `pid` of the run with this mark, or a worker of it, or both; False where there was none."""
    parents = {other: _parent(other) for other in marked(mark)}
    servers = {other for other, parent in parents.items() if other != pid and (parent == pid or parent not in parents)}
    workers = [other for other, parent in parents.items() if parent in servers]
    if target == "worker" and not workers:
        return False
    victims = {"coordinator": [pid], "worker": workers[-1:], "both": [*workers, pid]}[target]
    struck = False
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            struck = True
    return struck


def marked(mark: str) -> list[int]:
    """The running processes that were started with this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while it was looked at
            is_zombie = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if not is_zombie and f"{MARK}={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def wait_until_gone(mark: str) -> list[int]:
    """The processes with this mark that are still there after `GONE_S`."""
    until = time.monotonic() + GONE_S
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return left


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def trials_of(file: Path) -> list[Any]:
    """What a report says of its trials, without what depends on the clock."""
    trials = json.loads(file.read_text())["trials"]
    return [{key: value for key, value in trial.items() if key not in ("seconds", "predicted_s")} for trial in trials]


def first_difference(expected: list[Any], found: list[Any]) -> str:
    """The first trial that is another; empty where all are the same."""
    for one, other in zip(expected, found, strict=False):
        if one != other:
            return f"expected {one}, found {other}"
    return "" if len(expected) == len(found) else f"expected {len(expected)} trials, found {len(found)}"


def is_finished(run: Path) -> bool:
    """Whether the run in a folder has come to its end; False where there is none yet."""
    return (run / "run.json").exists() and read_state(run).is_finished


def known_of(run: Path) -> dict[str, Any]:
    """What the files of a run hold: what each stage found, and the score of each rung.

    Raises:
        ReportError: a file is not whole.
    """
    if not (run / "run.json").exists():
        return {}
    known = {f"what was found of {stage}": value for stage, value in read_state(run).results.to_json().items() if value}
    kept = read_kept(run / "journal.log") if (run / "journal.log").exists() else None
    for trial in kept.trials if kept is not None else ():
        known |= {f"trial {trial.number} at step {step}": score for step, score in trial.scores}
    return known


def first_loss(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first thing that is gone or another; empty where all is there."""
    lost = [name for name, value in before.items() if after.get(name) != value]
    return f"{lost[0]} is gone, or another" if lost else ""


def largest_of(run: Path) -> int:
    """The largest batch that a finished run found."""
    return int(json.loads((run / "report.json").read_text())["max_batch"]["batch_size"])
