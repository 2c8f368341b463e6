"""Does `tune` end within its budget, and how much of it goes to training?

    python benchmarks/wall_clock.py [TASK.py] [--budgets 60s 5m] [--repeats 3] [--json OUT]

Runs the command as a user types it. Printed are the wall seconds of the whole process, imports of this command line
included, the time on its own ledger, how far the wall seconds are past the budget, and the share of the budget in
training steps (waits for data included; trials and confirmations, without their evaluations and checkpoints).

Each run is judged: by its wall seconds, which may be past the budget by 1 % of it or by one evaluation, whichever is
more, and by the share in training steps, at least 75 % of a budget of five minutes or more and 90 % of one of thirty or
more. Exit code 1 where a run missed one of the two or ended without a report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import about

from autobatch.core.files import write_json
from autobatch.core.units import parse_duration

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"
MOST_OVER = 0.01
LEAST_IN_TRAINING = {300.0: 0.75, 1800.0: 0.90}  # by the least budget that it is asked of, in seconds, rising
TRAINING = ("training", "confirmation")


def run_once(task: Path, budget: str, seed: int) -> dict[str, Any]:
    """What one run of `tune` took, and how it ended."""
    command = [sys.executable, "-m", "autobatch", "tune", str(task.resolve()), "--budget", budget, "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        done = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True, check=False)
        wall_s = time.perf_counter() - begun
    run: dict[str, Any] = {"budget": budget, "budget_s": parse_duration(budget), "seed": seed, "wall_s": wall_s}
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        return run | {"error": said.splitlines()[-1]}
    return run | figures_of(json.loads(done.stdout))


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says of where the time went."""
    ledger, trials = report["ledger"], report["trials"]
    # One at each rung, one to time it, and those of the test data.
    evaluations = 1 + sum(len(trial["scores"]) for trial in trials)
    evaluations += sum(report[whose]["test"] is not None for whose in ("score", "baseline"))
    return {
        "elapsed_s": ledger["elapsed_s"],
        "training_s": sum(ledger["entries"].get(kind, 0.0) for kind in TRAINING),
        "evaluation_s": ledger["entries"].get("evaluation", 0.0) / evaluations,
        "entries": ledger["entries"],
        "trials": len(trials),
        "score": report["score"]["mean"],
        "baseline": report["baseline"]["mean"],
    }


def misses(run: dict[str, Any]) -> list[str]:
    """What a run was asked for and did not keep, in a clause each."""
    if "error" in run:
        return [run["error"]]
    found, budget_s = [], run["budget_s"]
    over_s, allowed_s = run["wall_s"] - budget_s, max(MOST_OVER * budget_s, run["evaluation_s"])
    if over_s > allowed_s:
        found.append(f"{over_s:.2f} s over, {allowed_s:.2f} allowed")
    share = run["training_s"] / budget_s
    least = max((share for least_s, share in LEAST_IN_TRAINING.items() if budget_s >= least_s), default=0.0)
    if share < least:
        found.append(f"{share:.1%} in training, {least:.0%} asked")
    return found


def shown(score: float | None) -> str:
    """A score, or a dash where there is none: not every baseline can be trained."""
    return "-" if score is None else f"{score:.4f}"


def line(run: dict[str, Any]) -> str:
    """A run and its verdict."""
    verdict = "; ".join(misses(run)) or "kept"
    if "error" in run:
        return f"{run['budget']:>7} {run['wall_s']:>8.2f}s {verdict}"
    return (
        f"{run['budget']:>7} {run['wall_s']:>8.2f}s {run['elapsed_s']:>8.2f}s "
        f"{run['wall_s'] / run['budget_s'] - 1:>7.1%} "
        f"{run['training_s'] / run['budget_s']:>9.1%} {run['trials']:>7} "
        f"{shown(run['score']):>8} {shown(run['baseline']):>9}  "
        f"{verdict}"
    )


def main() -> int:
    """Run all of it; 0 where every run kept what it was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, nargs="?", default=DIGITS)
    parser.add_argument("--budgets", nargs="+", default=["60s", "5m"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()
    runs = []
    print(
        f"{'budget':>7} {'wall':>9} {'ledger':>9} {'over':>7} {'training':>9} {'trials':>7} {'score':>8} "
        f"{'baseline':>9}  verdict"
    )
    for budget in asked.budgets:
        for seed in range(asked.repeats):
            runs.append(run_once(asked.task, budget, seed))
            print(line(runs[-1]), flush=True)
            if asked.json is not None:
                write_json(asked.json, about() | {"runs": runs})
    kept = sum(not misses(run) for run in runs)
    print(f"{kept} of {len(runs)} runs ended in time and trained for the share that is asked of their budget")
    return 0 if kept == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
