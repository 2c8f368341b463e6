"""The largest batch of five models under a real memory limit on a CPU, against doubling and bisecting.

    python benchmarks/max_batch_cpu.py [--json OUT] [--repeats 1] [--models resnet gpt ...] [--memory-limit 128MiB]

Both searches probe in the same way, each size in a fresh process that counts memory to the page, and their answers
have run as final probes there; ours proves besides that the next size fails. Doubling and bisecting learns one bit from
a probe, so it explores below the very wall that final probes run under: without headroom, under the limit that ours had
less its own. A third search is the field's usual one: the same inside one process, and its answer is compared with the
proved one. The target is a third of the seconds or a third of the refusals of doubling and bisecting. Seconds are of
the search alone; opening the task, the same for all, is told apart.

Exit code 1 where an answer of ours is not proved or not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from provenance import about

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Plan
from autobatch.core.runner import Runner
from autobatch.core.units import parse_size
from autobatch.devices.environment import count_exactly, default_threads, worker_environment
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.measuring.bracket import fits
from autobatch.measuring.memory import find_max_batch_size

MODELS = ("resnet", "gpt", "lstm", "contrastive", "ragged")
LIMIT = "128MiB"  # one for all: answers are in the hundreds, and a step is well below a second on an idle machine
FOLDER = Path(__file__).parent / "models"
HEADROOM = 0.05  # the default
GAIN = 3.0  # the target


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One run of one size: `final` for the longer one, `seconds` from the question to the answer."""

    batch_size: int
    final: bool
    outcome: str
    peak_bytes: int | None
    seconds: float
    message: str | None

    def __str__(self) -> str:
        return f"{self.batch_size}{'f' if self.final else ''}{'' if self.outcome == 'ok' else f' {self.outcome}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What one search found, and what it took.

    Attributes:
        proved: the next size was run and failed, in the same way as the answer.
        budget_bytes: what a step could use.
        open_s: starting the worker and checking the task.
        search_s: all probes.
        cpu_s: processor time of all of it, opening included: what a neighbour on the machine moves least.
    """

    found: int
    proved: bool
    budget_bytes: int
    open_s: float
    search_s: float
    cpu_s: float
    probes: Sequence[Probe]

    @property
    def refusals(self) -> int:
        """Probes that were not let run to their end."""
        return sum(probe.outcome in ("oom", "crashed") for probe in self.probes)


def noted(told: Measurement, final: bool, begun: float) -> Probe:
    """A probe that was begun at that time, on the clock of `time.perf_counter`."""
    return Probe(
        batch_size=told.plan.batch_size,
        final=final,
        outcome=told.outcome,
        peak_bytes=told.peak_bytes,
        seconds=round(time.perf_counter() - begun, 3),
        message=told.message,
    )


class Recorded(RemoteRunner):
    """Notes each probe."""

    def __init__(self, spec: RunnerSpec) -> None:
        super().__init__(spec)
        self.noted: list[Probe] = []

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        begun = time.perf_counter()
        told = super().probe(plan, final=final)
        self.noted.append(noted(told, final, begun))
        return told


def ours(runner: Recorded, plan: Plan) -> tuple[int, bool, list[Probe]]:
    """The answer of our search, whether it is proved, and the probes."""
    ceiling = runner.facts().train_size or 0
    answer = find_max_batch_size(runner, plan, ceiling=ceiling, ceiling_is="dataset", prove=True)
    return int(answer), answer.proof is not None, runner.noted


def double_and_bisect(runner: Runner, plan: Plan) -> tuple[int, bool, list[Probe]]:
    """The same by doubling until a size fails and halving the gap; the answer, or a smaller one, is a final probe.

    No probe more than that: that the next size fails was seen while exploring, and is not run again.
    """
    probes: list[Probe] = []

    def runs(batch_size: int, *, final: bool = False) -> bool:
        begun = time.perf_counter()
        told = runner.probe(replace(plan, batch_size=batch_size), final=final)
        probes.append(noted(told, final, begun))
        return fits(told, runner.memory(), final=final)

    low, high = 0, 1
    while runs(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    while low and not runs(low, final=True):
        low -= 1
    return low, False, probes


SEARCHES: dict[str, Callable[[Recorded, Plan], tuple[int, bool, list[Probe]]]] = {
    "autobatch": ours,
    "doubling and bisecting": double_and_bisect,
}


def children_cpu_s() -> float:
    """Processor time of the processes that this one started and that have ended, and of theirs."""
    used = os.times()
    return used.children_user + used.children_system


def search(name: str, model: str, limit_bytes: int, headroom: float) -> Search:
    """One search in fresh processes."""
    begun, cpu_begun = time.perf_counter(), children_cpu_s()
    spec = RunnerSpec(
        path=FOLDER / f"{model}.py",
        device="cpu",
        memory_limit_bytes=limit_bytes,
        headroom=headroom,
        threads=default_threads(),
        is_timed=False,
    )
    runner = Recorded(spec)
    try:
        plan = Plan(batch_size=1, precision=runner.facts().precision)
        budget_bytes = runner.memory().budget_bytes
        opened = time.perf_counter()
        found, proved, probes = SEARCHES[name](runner, plan)
        search_s = time.perf_counter() - opened
    finally:
        runner.close()
    return Search(
        found=found,
        proved=proved,
        budget_bytes=budget_bytes,
        open_s=round(opened - begun, 3),
        search_s=round(search_s, 3),
        cpu_s=round(children_cpu_s() - cpu_begun, 2),
        probes=probes,
    )


def search_in_one_process(model: str, limit_bytes: int) -> Search | None:
    """Doubling and bisecting in a process of its own that does all of it; memory is counted as in the fresh ones.

    None where the process died: a library that takes no notice of a refused allocation ends it, and the search with it.
    """
    command = [sys.executable, __file__, "--one-process", model, str(limit_bytes)]
    environment = os.environ | worker_environment(default_threads(), is_timed=False)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return None
    told = json.loads(done.stdout)
    return Search(**(told | {"probes": [Probe(**probe) for probe in told["probes"]]}))


def one_process(model: str, limit_bytes: int) -> Search:
    """In that process: the search."""
    import torch

    from autobatch.devices import open_device
    from autobatch.tasks.task import load_task
    from autobatch.worker.torch_runner import TorchRunner

    begun = time.perf_counter()
    count_exactly()
    torch.set_num_threads(default_threads())
    task = load_task(FOLDER / f"{model}.py")
    runner = TorchRunner(task, open_device("cpu"), memory_limit_bytes=limit_bytes, headroom=0)
    budget_bytes = runner.memory().budget_bytes
    opened = time.perf_counter()
    found, proved, probes = double_and_bisect(runner, Plan(batch_size=1, precision=task.precision))
    search_s = time.perf_counter() - opened
    runner.close()
    return Search(
        found=found,
        proved=proved,
        budget_bytes=budget_bytes,
        open_s=round(opened - begun, 3),
        search_s=round(search_s, 3),
        cpu_s=round(time.process_time(), 2),
        probes=probes,
    )


def gain(more: float, less: float) -> float:
    """How many times less it is; nothing at all counts as one half."""
    return more / max(less, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """All repeats of the three searches on one model."""

    model: str
    limit: str
    our: list[Search]
    bisected: list[Search]
    alone: list[Search | None]

    @property
    def seconds(self) -> tuple[float, float]:
        """Median seconds of ours and of doubling and bisecting."""
        return median(run.search_s for run in self.our), median(run.search_s for run in self.bisected)

    @property
    def refusals(self) -> tuple[float, float]:
        """The same of the refusals; the proof is one of ours."""
        return median(run.refusals for run in self.our), median(run.refusals for run in self.bisected)

    @property
    def is_exact(self) -> bool:
        """Whether each of our answers is proved, and they are one."""
        return all(run.proved for run in self.our) and len({run.found for run in self.our}) == 1

    def verdict(self) -> str:
        """In a sentence, what was gained."""
        (our_s, their_s), (our_oom, their_oom) = self.seconds, self.refusals
        fewer_s, fewer_oom = gain(their_s, our_s), gain(their_oom, our_oom)
        met = "target met" if max(fewer_s, fewer_oom) >= GAIN else f"SHORT of the target of {GAIN:g}"
        exact = "exact" if self.is_exact else "NOT PROVED OR NOT REPEATED"
        aside = ""
        alone = [run for run in self.alone if run is not None]
        for runs, place in ((self.bisected, "doubling and bisecting"), (alone, "in one process")):
            others = sorted({run.found for run in runs} - {run.found for run in self.our})
            aside += f"; {place} found {', '.join(map(str, others))}" if others else ""
        if died := len(self.alone) - len(alone):
            aside += f"; in one process died {died} times of {len(self.alone)}"
        return (
            f"{self.model}: {self.our[0].found}, {exact}; {fewer_s:.1f} times fewer seconds, "
            f"{fewer_oom:.1f} times fewer refusals, {met}{aside}"
        )


def compare(model: str, limit: str, repeats: int) -> Compared:
    """Each search, in turn, as often."""
    compared = Compared(model=model, limit=limit, our=[], bisected=[], alone=[])
    for _ in range(repeats):
        compared.our.append(search("autobatch", model, parse_size(limit), HEADROOM))
        print_row(model, limit, "autobatch", compared.our[-1])
        budget_bytes = compared.our[-1].budget_bytes
        compared.bisected.append(search("doubling and bisecting", model, budget_bytes, 0))
        print_row(model, limit, "doubling and bisecting", compared.bisected[-1])
        compared.alone.append(search_in_one_process(model, budget_bytes))
        print_row(model, limit, "the same in one process", compared.alone[-1])
    return compared


def print_row(model: str, limit: str, name: str, run: Search | None) -> None:
    """One search, and the sizes it ran in order; f marks a final probe."""
    if run is None:
        print(f"{model:12} {limit:>7}  {name:24}  died", flush=True)
        return
    figures = f"{run.found:>6} {'yes' if run.proved else '':>6} {len(run.probes):>6} {run.refusals:>7}"
    seconds = f"{run.search_s:>7.1f} {run.open_s:>7.1f} {run.cpu_s:>7.1f}"
    print(f"{model:12} {limit:>7}  {name:24}{figures} {seconds}  {', '.join(map(str, run.probes))}", flush=True)


def print_overall(all_compared: Sequence[Compared]) -> None:
    """What was gained over all models."""
    our_s, their_s = (sum(compared.seconds[side] for compared in all_compared) for side in (0, 1))
    our_oom, their_oom = (sum(compared.refusals[side] for compared in all_compared) for side in (0, 1))
    met = sum("target met" in compared.verdict() for compared in all_compared)
    print(
        f"over all: {our_s:.0f} s against {their_s:.0f}, {gain(their_s, our_s):.1f} times fewer; {our_oom:g} refusals "
        f"against {their_oom:g}, {gain(their_oom, our_oom):.1f} times fewer; target met by {met} of {len(all_compared)}"
    )


def main() -> int:
    """Run all of it; 0 where every answer of ours was proved and repeated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--memory-limit", default=LIMIT)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--one-process", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_process is not None:
        print(json.dumps(asdict(one_process(options.one_process[0], int(options.one_process[1])))))
        return 0
    head = f"{'model':12} {'limit':>7}  {'search':24}{'found':>6} {'proved':>6} {'probes':>6} {'refused':>7}"
    print(f"{head} {'seconds':>7} {'opening':>7} {'cpu s':>7}  sizes", flush=True)
    all_compared = [compare(model, options.memory_limit, options.repeats) for model in options.models]
    print()
    for compared in all_compared:
        print(compared.verdict())
    print_overall(all_compared)
    if options.json is not None:
        told = about() | {"verdicts": [compared.verdict() for compared in all_compared]}
        told |= {"models": [asdict(compared) for compared in all_compared]}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(compared.is_exact for compared in all_compared) else 1


if __name__ == "__main__":
    sys.exit(main())
