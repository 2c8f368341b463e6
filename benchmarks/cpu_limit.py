"""Is the largest batch under a real memory limit on a CPU exact, and is it the same each time?

    python benchmarks/cpu_limit.py [--repeats 5] [--json OUT]

Runs `autobatch max-batch --prove` as a user would, several times for each of three models, and prints what came back.
Exit code 1 where an answer was not proved, or differed between repeats.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from provenance import about

MODELS = {"convolutions": "96MiB", "transformer": "128MiB", "lstm": "96MiB"}
FOLDER = Path(__file__).parent / "models"


def ask(model: str, limit: str) -> dict[str, Any]:
    """One answer of the command line, with the seconds it took."""
    command = [sys.executable, "-m", "autobatch", "max-batch", str(FOLDER / f"{model}.py"), "--device", "cpu"]
    command += ["--memory-limit", limit, "--prove", "--json", "--quiet"]
    begun = time.perf_counter()
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer | {"seconds": time.perf_counter() - begun}


def main() -> int:
    """Run all of it; 0 where every answer was proved and repeated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    answers: dict[str, list[dict[str, Any]]] = {}
    good = True
    print(f"{'model':14} {'limit':>8} {'answers':>24} {'proved':>7} {'probes':>7} {'refused':>8} {'seconds':>8}")
    for model, limit in MODELS.items():
        answers[model] = [ask(model, limit) for _ in range(options.repeats)]
        sizes = [answer["batch_size"] for answer in answers[model]]
        proved = all(answer["proved"] for answer in answers[model])
        probes = max(len(answer["probes"]) for answer in answers[model])
        refused = max(sum(p["outcome"] != "ok" for p in answer["probes"]) for answer in answers[model])
        seconds = sorted(answer["seconds"] for answer in answers[model])[options.repeats // 2]
        listed = " ".join(map(str, sizes))
        print(f"{model:14} {limit:>8} {listed:>24} {proved!s:>7} {probes:>7} {refused:>8} {seconds:>8.1f}", flush=True)
        good = good and proved and len(set(sizes)) == 1
    if options.json is not None:
        options.json.write_text(json.dumps(about() | {"answers": answers}, indent=1) + "\n")
    print("exact and repeated" if good else "NOT exact, or not repeated")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
