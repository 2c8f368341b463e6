"""Does the search for the largest batch survive whatever is killed in it, and leave nothing behind?

    python benchmarks/faults.py [--points 200] [--coordinators 20] [--resume-runs 0] [--json OUT]

A search under a real memory limit is run again and again; in each run a process of it is killed with SIGKILL at a
random moment: the worker that probes, the worker that stands by, the server that forks them, or, in a process of its
own, the coordinator. Then the answer must be the one that came undisturbed, or a clear error of ours; no process may be
left, and no file in the temporary folder or in shared memory. When all is over, this process must have as many open
files as before, and the machine its memory back (printed). Exit code 1 where it is not so.

With `--resume-runs N`, `tune` is killed N times too, and resumed (kills.py): every run must come to the trials of an
undisturbed one, to the last bit of their scores, or, where it is killed before its race, keep all that it had found.
What the kill came too late for, or found no process for, is counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kills import TARGETS as RESUME_TARGETS
from kills import Kill, kills
from provenance import about

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Plan
from autobatch.devices import host_memory
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.errors import AutobatchError
from autobatch.measuring.memory import find_max_batch_size

TASK = Path(__file__).parent / "models" / "perceptron.py"
LIMIT_BYTES = 16 << 20
CEILING = 1 << 13
MULTIPLE_OF = 2048  # of an answer of 4096: few probes, so that many kills are affordable
TARGETS = ("prober", "worker", "server")
_MARK = "AUTOBATCH_KILL_POINT"
_GONE_S = 30.0  # what ended processes may take to disappear


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One kill, and what came of it.

    Attributes:
        target: what was killed.
        probe: the number of the probe in which it was.
        delay_s: seconds after that probe had begun.
        struck: whether the search was still running then.
        outcome: "answer", or the name of the error.
        right: whether that is the undisturbed answer, or a clear error.
        left: processes and files that were left behind.
    """

    target: str
    probe: int
    delay_s: float
    struck: bool
    outcome: str
    right: bool
    left: tuple[str, ...]


class Saboteur:
    """Kills a process of a runner, once, `delay_s` after a given probe has begun."""

    def __init__(self, runner: RemoteRunner, target: str, probe: int, delay_s: float) -> None:
        self._runner, self._target, self._delay_s = runner, target, delay_s
        self._probes_left = probe
        self.struck = False
        self._timer: threading.Timer | None = None
        self._start = runner._start
        self._latest = runner._worker

    def __enter__(self) -> Saboteur:
        self._runner._start = self._noting  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self._runner._start
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def _noting(self, *, exact: bool) -> Any:
        self._latest = self._start(exact=exact)
        if self._probes_left == 0:
            self._timer = threading.Timer(self._delay_s, self._strike)
            self._timer.start()
        self._probes_left -= 1
        return self._latest

    def _strike(self) -> None:
        server = self._runner._server
        pid = None
        if self._target == "server" and server is not None and server.alive:
            pid = server.pid
        elif self._target == "worker" and self._runner._worker.process.alive:
            pid = self._runner._worker.process.pid
        elif self._target == "prober" and self._latest.process.alive:
            pid = self._latest.process.pid
        if pid is not None:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(pid, signal.SIGKILL)
                self.struck = True


@contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """A temporary folder for this process and those it starts, so that nobody else's files are taken for theirs."""
    before, default = os.environ.get("TMPDIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = default
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def new_mark() -> str:
    """What tells the processes of one run from all others."""
    return f"{os.getpid()}-{time.monotonic_ns()}"


def open_runner(mark: str) -> RemoteRunner:
    """A runner of the task under the limit, whose processes have the mark."""
    spec = RunnerSpec(path=TASK, device="cpu", memory_limit_bytes=LIMIT_BYTES)
    return RemoteRunner(spec, log=Path(os.devnull), environment={_MARK: mark})


def search(runner: RemoteRunner) -> tuple[int, tuple[Measurement, ...]]:
    """The answer and the probes of one search."""
    found = find_max_batch_size(
        runner, Plan(batch_size=1), ceiling=CEILING, ceiling_is="ceiling", multiple_of=MULTIPLE_OF
    )
    return int(found), found.probes


def marked(mark: str) -> set[int]:
    """The running processes that were started with `mark` in their environment, whoever their parent is by now."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while it was looked at
            is_zombie = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if not is_zombie and mark.encode() in (folder / "environ").read_bytes():
                found.add(int(folder.name))
    return found


def left_behind(mark: str, kept: set[int], files_before: set[str]) -> tuple[str, ...]:
    """Processes with the mark beside those of `kept`, once they have had their time to go; and new files."""
    until = time.monotonic() + _GONE_S
    seen = [marked(mark) - kept]
    # Twice: one may be forked behind the first look's back, by a server that is then gone when its turn comes.
    while any(seen[-2:]) or len(seen) < 2:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
        seen.append(marked(mark) - kept)
    return (*(f"process {pid}" for pid in sorted(seen[-1])), *sorted(files() - files_before))


def files() -> set[str]:
    """What lies in shared memory under a name of torch's, and in the temporary folder, but for torch's own cache."""
    temporary = [path for path in Path(tempfile.gettempdir()).iterdir() if not path.name.startswith("torchinductor_")]
    return {str(path) for path in (*Path("/dev/shm").glob("torch_*"), *temporary)}


def open_files() -> int:
    """File descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def available_bytes() -> int:
    """Memory that the machine has free."""
    memory = host_memory.available()
    return 0 if memory is None else memory.free_bytes


def kill_point(runner: RemoteRunner, mark: str, expected: int, target: str, probe: int, delay_s: float) -> Point:
    """One search with a kill in it. The server and one worker may be there afterwards: they are the runner's."""
    if not runner._worker.process.alive:  # killed by an earlier point; probes do without it
        runner._worker = runner._start(exact=False)
    before = files()
    with Saboteur(runner, target, probe, delay_s) as saboteur:
        try:
            answer, _ = search(runner)
            outcome, right = "answer", answer == expected
            if not right:
                outcome = f"answer {answer} instead of {expected}"
        except AutobatchError as error:
            outcome, right = f"{type(error).__name__}: {error}", bool(str(error))
    kept = {runner._worker.process.pid} | ({runner._server.pid} if runner._server is not None else set())
    return Point(
        target=target,
        probe=probe,
        delay_s=delay_s,
        struck=saboteur.struck,
        outcome=outcome,
        right=right,
        left=left_behind(mark, kept, before),
    )


def kill_points(count: int, seed: int, told: Callable[[Point], None] | None = None) -> list[Point]:
    """`count` searches on one runner, each with a kill at a random moment; `told` is called with each."""
    chance = random.Random(seed)
    mark = new_mark()
    runner = open_runner(mark)
    try:
        expected, probes = search(runner)
        points = []
        for _ in range(count):
            probe = chance.randrange(len(probes))
            # Anywhere in the probe, its process's start and end included.
            delay_s = chance.uniform(0.0, 1.5 * probes[probe].seconds + 0.2)
            points.append(kill_point(runner, mark, expected, chance.choice(TARGETS), probe, delay_s))
            if told is not None:
                told(points[-1])
        return points
    finally:
        runner.close()


def start_command(mark: str) -> subprocess.Popen[bytes]:
    """The same search as a user starts it; the coordinator is a process of its own."""
    options = ["--device", "cpu", "--memory-limit", str(LIMIT_BYTES)]
    return subprocess.Popen(
        [sys.executable, "-m", "autobatch", "max-batch", str(TASK), *options],
        env={**os.environ, _MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def undisturbed_s() -> float:
    """Seconds that the command takes when nobody kills it."""
    begun = time.monotonic()
    if start_command(new_mark()).wait() != 0:
        raise RuntimeError("the undisturbed command failed")
    return time.monotonic() - begun


def kill_coordinator(delay_s: float) -> Point:
    """A command that is killed `delay_s` after its start: it cannot answer, but must leave nothing."""
    before, mark = files(), new_mark()
    process = start_command(mark)
    time.sleep(delay_s)
    struck = process.poll() is None
    process.kill()
    process.wait()
    return Point(
        target="coordinator",
        probe=-1,
        delay_s=delay_s,
        struck=struck,
        outcome="killed" if struck else "ended before",
        right=True,
        left=left_behind(mark, set(), before),
    )


def main() -> int:
    """Run all of it; 0 where every point was right and left nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--coordinators", type=int, default=20)
    parser.add_argument("--resume-runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    begun = time.perf_counter()
    descriptors, free_bytes = open_files(), available_bytes()
    with own_temporary_folder() as temporary:
        points = kill_points(options.points, options.seed, lambda point: print(point, file=sys.stderr, flush=True))
        chance = random.Random(options.seed)
        whole_s = undisturbed_s()
        points += [kill_coordinator(chance.uniform(0.0, whole_s)) for _ in range(options.coordinators)]
        resumed: list[Kill] = []
        if options.resume_runs:
            with tempfile.TemporaryDirectory(prefix="runs-") as folder:
                resumed = kills(
                    Path(folder),
                    options.resume_runs,
                    options.seed,
                    lambda kill: print(kill, file=sys.stderr, flush=True),
                )
    bad = [point for point in points if not point.right or point.left]
    still_open = open_files() - descriptors
    print(
        f"open files more than before: {still_open}; memory less than before: {free_bytes - available_bytes():,} bytes"
    )
    print(f"{'killed':12} {'points':>7} {'struck':>7}   what came")
    for target in (*TARGETS, "coordinator"):
        of = [point for point in points if point.target == target]
        came = Counter(point.outcome.splitlines()[0][:60] for point in of)
        told = ", ".join(f"{outcome}: {count}" for outcome, count in came.most_common())
        print(f"{target:12} {len(of):>7} {sum(point.struck for point in of):>7}   {told}")
    for begins, target in product(("nothing", "race"), RESUME_TARGETS) if resumed else ():
        ran = [kill for kill in resumed if (kill.begins, kill.target) == (begins, target)]
        struck, missed = [kill for kill in ran if kill.struck], [kill for kill in ran if not kill.struck]
        print(
            f"tune from {begins:7} {target:12} {len(struck):>4} struck: {sum(kill.finished for kill in struck):>4} "
            f"finished, {sum(kill.same for kill in struck):>4} the same; {len(missed):>4} not struck: "
            f"{sum(kill.right for kill in missed):>4} right"
        )
    for point in (*bad, *(kill for kill in resumed if not kill.right)):
        print(f"NOT right: {point}")
    print(f"{len(points) - len(bad)} of {len(points)} right and clean, in {time.perf_counter() - begun:.0f} s")
    if options.json is not None:
        found = {"points": [asdict(point) for point in points], "resumed": [asdict(kill) for kill in resumed]}
        text = json.dumps(about() | found, indent=1) + "\n"
        for here, shown in ((temporary, "TMP"), (TASK.parents[2], ".")):  # what an error says of this machine's paths
            text = text.replace(str(here), shown)
        options.json.write_text(text)
    return 1 if bad or still_open > 0 or not all(kill.right for kill in resumed) else 0


if __name__ == "__main__":
    sys.exit(main())
