"""Does `tune` end within its budget, and how much of it goes to training?

    python benchmarks/wall_clock.py [TASK.py] [--budgets 60s 5m] [--repeats 3] [--json OUT]

Runs the command as a user types it. Printed are the wall seconds of the whole process, imports of this command line
included, the time on its own ledger, both over the budget, and the share of the budget that went to training steps
(waits for data included; trials and confirmations, without their evaluations and checkpoints). The project asks for at
most 1 % or one evaluation past the budget, and for 75 % of five minutes and 90 % of thirty in training. Exit code 1
where a run went over.
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

from autobatch.units import parse_duration

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"
MOST_OVER = 0.01
TRAINING = ("training", "confirmation")


def run_once(task: Path, budget: str, seed: int) -> dict[str, Any]:
    """What one run of `tune` took, and how it ended."""
    command = [sys.executable, "-m", "autobatch", "tune", str(task.resolve()), "--budget", budget, "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        done = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True, check=False)
        wall_s = time.perf_counter() - begun
    if done.returncode != 0:
        return {"budget": budget, "seed": seed, "wall_s": wall_s, "error": done.stderr.strip().splitlines()[-1]}
    report = json.loads(done.stdout)
    ledger = report["ledger"]
    return {
        "budget": budget,
        "seed": seed,
        "wall_s": wall_s,
        "elapsed_s": ledger["elapsed_s"],
        "training_s": sum(ledger["entries"].get(kind, 0.0) for kind in TRAINING),
        "entries": ledger["entries"],
        "trials": len(report["trials"]),
        "score": report["score"]["mean"],
        "baseline": report["baseline"]["mean"],
    }


def main() -> int:
    """Run all of it; 0 where every run ended in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, nargs="?", default=DIGITS)
    parser.add_argument("--budgets", nargs="+", default=["60s", "5m"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()
    runs = []
    print(f"{'budget':>7} {'wall':>9} {'ledger':>9} {'over':>7} {'training':>9} {'trials':>7}")
    for budget in asked.budgets:
        budget_s = parse_duration(budget)
        for seed in range(asked.repeats):
            run = run_once(asked.task, budget, seed)
            runs.append(run)
            if "error" in run:
                print(f"{budget:>7} {run['wall_s']:>8.2f}s {run['error']}", flush=True)
                continue
            print(
                f"{budget:>7} {run['wall_s']:>8.2f}s {run['elapsed_s']:>8.2f}s {run['elapsed_s'] / budget_s - 1:>7.1%} "
                f"{run['training_s'] / budget_s:>9.1%} {run['trials']:>7} {run['score']:>8.4f} {run['baseline']:>9.4f}",
                flush=True,
            )
    late = [r for r in runs if "error" in r or r["elapsed_s"] > (1 + MOST_OVER) * parse_duration(r["budget"])]
    print(f"{len(runs) - len(late)} of {len(runs)} ended at most {MOST_OVER:.0%} after their budget")
    if asked.json is not None:
        asked.json.write_text(json.dumps(about() | {"runs": runs}, indent=1) + "\n", encoding="utf-8")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
