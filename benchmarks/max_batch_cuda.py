"""The largest batch of ResNet-50, ViT-B/16 and GPT-2 small on a CUDA device: exact, and at what cost?

    python benchmarks/max_batch_cuda.py --json benchmarks/results/<gpu>/<date>-max-batch.json [--recordings FOLDER]
        [--models gpt2_small ...] [--precisions fp32 bf16] [--limits 8GiB 16GiB 24GiB whole]

Each case is `autobatch max-batch --prove` as a user would run it. `nvidia-smi` is read every 50 ms meanwhile: what it
shows at most is compared with the largest peak that a probe told. The file is written anew after each case, so what a
time limit cuts off is lost, and nothing else. Exit code 1 where an answer was not proved.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autobatch.bench.standard_models import standard_models

MODELS = ("resnet50", "vit_b16", "gpt2_small")
PRECISIONS = ("fp32", "bf16")
WHOLE = "whole"
LIMITS = ("8GiB", "16GiB", "24GiB", WHOLE)
MIB = 1 << 20


@contextmanager
def watched() -> Iterator[list[int]]:
    """What nvidia-smi shows as in use of the first card, in bytes: before anything, then its maximum so far."""
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", f"--id={card}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    before = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * MIB
    seen = [before, before]
    with subprocess.Popen([*command, "--loop-ms=50"], stdout=subprocess.PIPE, text=True) as process:
        lines = process.stdout
        assert lines is not None

        def read() -> None:
            for line in lines:
                if line.strip().isdecimal():  # the last one may be cut off
                    seen[1] = max(seen[1], int(line) * MIB)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield seen
        finally:
            process.terminate()
            reader.join()


def write_task(model: str, precision: str, folder: Path) -> Path:
    """The standard model's own task file with a line more, that of its precision, in `folder`."""
    path = folder / f"{model}.py"
    path.write_text(f"{standard_models()[model].read_text()}\n\nprecision = {precision!r}\n")
    return path


def ask(task: Path, limit: str, record: Path | None) -> dict[str, Any]:
    """The command's answer or its error, seconds, and what nvidia-smi saw."""
    command = [sys.executable, "-m", "autobatch", "max-batch", str(task), "--device", "cuda"]
    command += ["--prove", "--json", "--quiet"]
    if limit != WHOLE:
        command += ["--memory-limit", limit]
    if record is not None:
        command += ["--record", str(record)]
    begun = time.perf_counter()
    with watched() as seen:
        done = subprocess.run(command, capture_output=True, text=True)
    case: dict[str, Any] = {
        "seconds": round(time.perf_counter() - begun, 2),
        "in_use_before_bytes": seen[0],
        "most_in_use_bytes": seen[1],
    }
    if done.returncode:
        return case | {"error": done.stderr.strip()}
    return case | {"answer": json.loads(done.stdout)}


def run(model: str, precision: str, limit: str, recordings: Path | None) -> dict[str, Any]:
    """One case, and what it is of."""
    case = {"model": model, "precision": precision, "limit": limit}
    record = None if recordings is None else recordings / f"{model}-{precision}-{limit}.json"
    with tempfile.TemporaryDirectory() as folder:
        return case | ask(write_task(model, precision, Path(folder)), limit, record)


def row(case: dict[str, Any]) -> str:
    """One line of the table."""
    head = f"{case['model']:10} {case['precision']:5} {case['limit']:>6}"
    if "error" in case:
        return f"{head}  {case['error'].splitlines()[-1] if case['error'] else 'failed without a word'}"
    answer = case["answer"]
    probes = answer["probes"]
    ooms = sum(probe["outcome"] in ("oom", "crashed") for probe in probes)
    retries = sum(probe["alloc_retries"] or 0 for probe in probes)
    told = max(probe["peak_bytes"] or 0 for probe in probes)
    seen = case["most_in_use_bytes"] - case["in_use_before_bytes"]
    return (
        f"{head} {answer['batch_size']:>7} {'yes' if answer['proved'] else 'NO':>6} {len(probes):>6} {ooms:>5} "
        f"{retries:>7} {case['seconds']:>7.1f} {answer['peak_bytes'] / MIB:>8.0f} "
        f"{(answer['allocated_bytes'] or 0) / MIB:>8.0f} {told / MIB:>8.0f} {seen / MIB:>8.0f}"
    )


def about(arguments: Sequence[str]) -> dict[str, Any]:
    """What makes the figures comparable, found out by another process: a context here would take memory."""
    command = [sys.executable, "-m", "autobatch", "doctor", "--json"]
    return {
        "command": f"python benchmarks/max_batch_cuda.py {' '.join(arguments)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout),
    }


def main() -> int:
    """Run all of it; 0 where every answer was proved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--limits", nargs="+", choices=LIMITS, default=LIMITS)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--recordings", type=Path, metavar="FOLDER", help="keep each search there, to be replayed")
    options = parser.parse_args()
    for folder in (options.json.parent if options.json else None, options.recordings):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    told = about(sys.argv[1:])
    cases: list[dict[str, Any]] = []
    print(
        f"{'model':10} {'':5} {'limit':>6} {'batch':>7} {'proved':>6} {'probes':>6} {'OOMs':>5} {'retries':>7} "
        f"{'seconds':>7} {'peak MiB':>8} {'tensors':>8} {'highest':>8} {'smi MiB':>8}",
        flush=True,
    )
    for limit in options.limits:
        for model in options.models:
            for precision in options.precisions:
                cases.append(run(model, precision, limit, options.recordings))
                print(row(cases[-1]), flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(told | {"cases": cases}, indent=1) + "\n")
    return 0 if all("answer" in case and case["answer"]["proved"] for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
