"""Probes and out-of-memory errors of the search for the largest batch, on 42 simulated cases.

Six shapes of peak memory over the batch size, seven true limits each, against doubling and bisecting on the same
runner. Nothing is timed and nothing is random: the same table comes out everywhere. With `--peers` also the field's own
packages, on the same cases, where they are installed (`pip install -r benchmarks/peers.txt`, here or in the environment
whose Python is named).

    python benchmarks/max_batch.py [--headroom 0.05] [--json [OUT]] [--peers [--python PATH] [--minutes 20]]

Exit code 1 where our search at its default headroom misses a target: at most 10 probes a case, at most 5 OOMs in all,
exact wherever memory is monotone, and never an answer that did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from simulated_memory import CAPACITY, CASES, CEILING, MONOTONE, SHAPES, Result, Shape, largest_safe

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Plan
from autobatch.measuring.memory import find_max_batch_size
from autobatch.simulated.sim import SimRunner, sim_facts

HEADROOM = 0.05
MOST_PROBES, MOST_OOMS = 10, 5  # a case on average, and over all cases
FOLDER = Path(__file__).parent


def simulate(peak: Shape, headroom: float) -> SimRunner:
    """A runner with that memory and a dataset that never ends the search; a step takes one second of its clock."""
    return SimRunner(
        known=sim_facts(train_size=CEILING),
        peak_bytes=peak,
        step_s=lambda batch: 1.0,
        capacity_bytes=CAPACITY,
        headroom=headroom,
    )


def double_and_bisect(runner: SimRunner) -> tuple[int, list[Measurement]]:
    """The answer and the probes of doubling until a size fails and halving the gap: the best in the field."""
    probes: list[Measurement] = []

    def runs(batch_size: int) -> bool:
        probes.append(runner.probe(Plan(batch_size=batch_size)))
        return probes[-1].outcome == "ok"

    low, high = 0, 1
    while runs(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low, probes


def ours(runner: SimRunner) -> tuple[int, list[Measurement]]:
    """The answer and the probes of our search."""
    answer = find_max_batch_size(runner, Plan(batch_size=1), ceiling=CEILING, ceiling_is="ceiling")
    return int(answer), list(answer.probes)


SEARCHES = {"autobatch": ours, "doubling and bisecting": double_and_bisect}


def run_case(search: str, shape: str, limit: int, headroom: float) -> Result:
    """One search of this file in one case."""
    peak = SHAPES[shape](limit)
    runner = simulate(peak, headroom)
    started = time.perf_counter()
    found, probes = SEARCHES[search](runner)
    seconds = round(time.perf_counter() - started, 4)
    return Result(
        search=search if headroom else f"{search}, no headroom",
        shape=shape,
        limit=limit,
        truth=largest_safe(shape, limit, CAPACITY),
        truth_in_budget=largest_safe(shape, limit, runner.memory().budget_bytes),
        ending="returned",
        found=found,
        ran=any(probe.plan.batch_size == found and probe.outcome == "ok" for probe in probes),
        fits=peak(found) <= CAPACITY,
        ooms=sum(probe.outcome == "oom" for probe in probes),
        steps=int(sum(probe.seconds for probe in probes if probe.outcome != "oom")),
        seconds=seconds,
        probes=len(probes),
    )


def run_all(search: str, headroom: float) -> list[Result]:
    """The same in every case."""
    return [run_case(search, shape, limit, headroom) for shape, limit in CASES]


def num_probes(results: Sequence[Result]) -> int:
    """Over all cases."""
    return sum(result.probes or 0 for result in results)


def num_ooms(results: Sequence[Result]) -> int:
    """Over all cases."""
    return sum(result.ooms for result in results)


def is_exact(result: Result) -> bool:
    """Whether the answer is the largest there is within what the search was told to use."""
    return result.found == result.truth_in_budget


def targets(results: Sequence[Result]) -> list[tuple[str, bool]]:
    """A sentence for each thing that our search is to achieve, and whether it does."""
    monotone = [result for result in results if result.shape in MONOTONE]
    exact, ran = sum(map(is_exact, monotone)), sum(result.ran for result in results)
    probes, ooms = num_probes(results) / len(results), num_ooms(results)
    return [
        (f"{probes:.1f} probes a case, at most {MOST_PROBES}", probes <= MOST_PROBES),
        (f"{ooms} OOMs in all, at most {MOST_OOMS}", ooms <= MOST_OOMS),
        (f"exact in {exact} of {len(monotone)} cases where memory is monotone", exact == len(monotone)),
        (f"{ran} of {len(results)} answers ran", ran == len(results)),
    ]


# -- peers ------------------------------------------------------------------------------------------------------------


def _peers(python: str, *arguments: str) -> list[str]:
    return [python, str(FOLDER / "peers.py"), *arguments]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def list_peers(python: str) -> dict[str, dict[str, str | None]]:
    """The packages to compare with, as that Python has them; see `peers.installed`."""
    listed = subprocess.run(_peers(python, "list"), env=_environment(), check=True, stdout=subprocess.PIPE, text=True)
    peers: dict[str, dict[str, str | None]] = json.loads(listed.stdout)
    return peers


def run_peer(python: str, name: str, timeout_s: float, minutes: float) -> Iterator[Result]:
    """What one of them did, case by case."""
    command = _peers(python, "run", name, "--timeout", str(timeout_s), "--minutes", str(minutes))
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            yield Result(**json.loads(line))


# -- what is printed --------------------------------------------------------------------------------------------------


def print_cases(our: Sequence[Result], bisected: Sequence[Result]) -> None:
    """A line for each case, ours against doubling and bisecting."""
    head = f"{'shape':<18}{'limit':>8}{'truth':>8}{'found':>8}{'probes':>8}{'OOMs':>6}"
    print(f"{head}   doubling and bisecting: {'found':>7}{'probes':>8}{'OOMs':>6}")
    for case, other in zip(our, bisected, strict=True):
        line = f"{case.shape:<18}{case.limit:>8}{case.truth_in_budget:>8}{case.found:>8}{case.probes:>8}{case.ooms:>6}"
        print(f"{line}{other.found:>35}{other.probes:>8}{other.ooms:>6}")
    print(
        f"\n{len(our)} cases: {num_probes(our)} probes and {num_ooms(our)} OOMs; doubling and bisecting within the "
        f"same budget: {num_probes(bisected)} probes and {num_ooms(bisected)} OOMs.\n"
        f"Lowest share of the truth anywhere: {min((case.found or 0) / case.truth_in_budget for case in our):.3f}."
    )


def summary(results: Sequence[Result]) -> str:
    """One row of the comparison; its columns are those of `print_peers`."""
    answered = [result for result in results if result.found is not None]
    shares = [result.found / result.truth for result in answered if result.found is not None]
    share = f"{median(shares):.2f} ({min(shares):.3f} to {max(shares):.2f})" if shares else "none"
    unanswered = len(results) - len(answered)
    return (
        f"| {len(results)}{f' ({unanswered} without an answer)' if unanswered else ''} | {share} "
        f"| {sum(not result.fits for result in answered)} | {sum(not result.ran for result in answered)} "
        f"| {num_ooms(results)} | {sum(result.steps for result in results)} "
        f"| {median(result.seconds for result in results):.2g} |"
    )


def print_peers(compared: dict[str, list[Result]], peers: dict[str, dict[str, str | None]]) -> None:
    """The comparison as a Markdown table, and who is not in it."""
    print("\n| search | cases | returned / true: median (range) | do not fit | never ran | OOMs | steps | s a case |")
    print("|---|---|---|---|---|---|---|---|")
    for name, results in compared.items():
        print(f"| {name} {summary(results) if results else '| could not be run | | | | | | |'}")
    print()
    for name, peer in peers.items():
        if name in compared:
            print(f"{name}: {peer['package']} {peer['version']}, {peer['called']}")
    absent = sorted({str(peer["package"]) for peer in peers.values() if peer["version"] is None})
    if absent:
        print(f"Not installed, and left out: {', '.join(absent)}. pip install -r benchmarks/peers.txt")


def to_json(about: dict[str, Any], results: Sequence[Result]) -> str:
    """All of it as one object, with a line for each result."""
    lines = ",\n  ".join(json.dumps(asdict(result)) for result in results)
    return f'{json.dumps(about, indent=1).removesuffix("}").rstrip()},\n "results": [\n  {lines}\n ]\n}}\n'


def compare(options: argparse.Namespace, peers: dict[str, dict[str, str | None]]) -> dict[str, list[Result]]:
    """The searches of this file at the wall itself, where the peers stop too, and each peer that is installed."""
    compared = {}
    for search in SEARCHES:
        results = run_all(search, 0.0)
        compared[results[0].search] = results
    for name, peer in peers.items():
        if peer["version"] is not None:
            print(f"{name} ...", file=sys.stderr, flush=True)
            compared[name] = list(run_peer(options.python, name, options.timeout, options.minutes))
    return compared


def main() -> int:
    """Print the table, its sums and the comparison; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headroom", type=float, default=HEADROOM, help="share of the capacity kept free")
    parser.add_argument("--json", nargs="?", const="-", metavar="OUT", help="as JSON: into OUT, or in place of tables")
    parser.add_argument("--peers", action="store_true", help="compare with the packages of benchmarks/peers.txt")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="the Python that has them")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds that a peer may take for one case")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which a peer begins no case but affine ones")
    options = parser.parse_args()
    our, bisected = run_all("autobatch", options.headroom), run_all("doubling and bisecting", options.headroom)
    peers = list_peers(options.python) if options.peers else {}
    compared = compare(options, peers) if options.peers else {}
    found = targets(our)
    about = {
        "command": f"python benchmarks/max_batch.py --headroom {options.headroom}{' --peers' if options.peers else ''}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "headroom": options.headroom,
        "targets": dict(found),
        "peers": peers,
    }
    told = to_json(about, [*our, *bisected, *chain.from_iterable(compared.values())])
    if options.json == "-":
        print(told, end="")
    else:
        print_cases(our, bisected)
        if compared:
            print_peers({our[0].search: our} | compared, peers)
        for text, met in found if options.headroom == HEADROOM else ():
            print(f"{'met' if met else 'MISSED'}: {text}")
        if options.json is not None:
            Path(options.json).write_text(told)
    return 0 if options.headroom != HEADROOM or all(met for _, met in found) else 1


if __name__ == "__main__":
    sys.exit(main())
