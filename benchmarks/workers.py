"""How many more segments do several workers finish in the same time?

    python benchmarks/workers.py [TASK.py ...] [--workers 2] [--seconds 20] [--repeats 3] [--json OUT]

One worker of one thread, then `--workers` of one thread each, in turn, `--repeats` times: segments of equal length are
given to whoever is idle until the time is over, and those that ended are counted, the shares of those under way too.
The project asks two workers on two idle cores for 1.8 times the segments of one. Exit code 1 where a task's median is
below 0.9 of the number of workers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

from provenance import about

from autobatch.core.plan import Config, Plan
from autobatch.core.segment import TrainSegment
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.searching.crew import Several

MODELS = Path(__file__).parent / "models"
TARGET = 0.9
RUNG_S = 1.0  # of a segment, about: short beside the time, long beside what begins and ends it


def segments_in(crew: Several, steps: int, config: Config, seconds: float, first: int) -> tuple[float, int]:
    """Rungs that the crew finishes in so many seconds, and how many trials were begun."""
    count, done, began_s, ends_s = first, 0.0, {}, time.perf_counter() + seconds
    while True:
        while crew.has_idle and time.perf_counter() < ends_s:
            segment = TrainSegment(
                trial=count,
                config=config,
                seed=0,
                start_step=0,
                until_step=steps,
                total_steps=steps,
                eval_batch_size=64,
            )
            began_s[count] = time.perf_counter()
            crew.submit(segment)
            count += 1
        if not crew.busy:
            return done, count
        segment, future = crew.next()
        if (outcome := future.result().outcome) != "ok":
            raise SystemExit(f"a rung ended as {outcome}: {future.result().message}")
        now, since = time.perf_counter(), began_s[segment.trial]
        done += 1.0 if now <= ends_s else max(0.0, (ends_s - since) / (now - since))


def measure(task: Path, workers: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Rungs of one and of several, as often as asked for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spec = RunnerSpec(path=task, device="cpu", threads=1, checkpoints=folder)
        runners = [stack.enter_context(closing(RemoteRunner(spec))) for _ in range(workers)]
        facts = runners[0].facts()
        for other in runners[1:]:
            other.learn(facts)
        plan = Plan(batch_size=32, precision=facts.precision)
        step_s = runners[0].time(plan, budget_s=1.0).median_step_s
        config = Config(plan=plan, lr=facts.baseline.lr)
        steps = max(1, round(RUNG_S / step_s))
        found: dict[int, list[float]] = {1: [], workers: []}
        count = 0
        for number in range(repeats + 1):
            for size in found:
                crew = Several(runners[:size])
                segments, count = segments_in(crew, steps, config, seconds if number else RUNG_S, count)
                crew.close()
                if number:  # the first time starts things
                    found[size].append(segments)
    gains = [many / one for one, many in zip(found[1], found[workers], strict=True)]
    return {
        "task": task.stem,
        "workers": workers,
        "steps": steps,
        "rungs": found,
        "gain": median(gains),
        "gains": gains,
    }


def main() -> int:
    """Print a line for each task; 0 where all gain enough."""
    parser = argparse.ArgumentParser(description="rungs of several workers against those of one")
    parser.add_argument("tasks", nargs="*", type=Path, default=[MODELS / "perceptron.py", MODELS / "convolutions.py"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print(f"{'task':16} {'one':>6} {'all':>6} {'gain':>6}")
    for task in options.tasks:
        found = measure(task, options.workers, options.seconds, options.repeats)
        results.append(found)
        one, many = (median(found["rungs"][size]) for size in (1, options.workers))
        print(f"{found['task']:16} {one:>6.1f} {many:>6.1f} {found['gain']:>6.2f}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(about() | {"results": results}, indent=1) + "\n")
    return 0 if all(found["gain"] >= TARGET * options.workers for found in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
