"""Models of public packages as their users write them: what `max-batch --prove` and `tune` answer, or refuse and why.

    pip install -r benchmarks/requirements-real-models.txt
    python benchmarks/real_models.py [CASE ...] [--commands max-batch tune live] [--budget 60s] [--limit 240]
                                     [--json OUT] [--again]

The task files are in `real_models/`: small, randomly initialised, on data that they make. Each is run three times in
processes of its own: `max-batch --prove` under a real memory limit on the CPU, `tune` with a short budget, and
`find_max_batch(model)` with the live model alone, whose input must be inferred. The first and last are asked of few
samples and little memory. What is in the JSON file already is not run again, so that it may be made in pieces;
`--again` runs the named cases once more, and keeps the new result.

A case is right where it was answered, for `max-batch` with a proof or the data's size as what ended the search; or
refused by a message of ours with exit code 2, which names a remedy. Whether the remedy works is for the reader to try.
Wrong are exit code 1, a bug of ours, a crash, and a command that did not end in time. Exit code 1 where any is wrong.

torchvision, which some of the packages import, must be of the same build as torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from provenance import about

from autobatch.reports.report import Report

FOLDER = Path(__file__).parent / "real_models"
COMMANDS = ("max-batch", "tune", "live")
PACKAGES = (
    "diffusers",
    "lightning",
    "peft",
    "prodigyopt",
    "pytorch-tabnet",
    "rtdl-num-embeddings",
    "rtdl-revisiting-models",
    "schedulefree",
    "segmentation-models-pytorch",
    "timm",
    "torch-geometric",
    "torchvision",
    "transformers",
)

# What a step of each may use, so that the answer is in the hundreds and memory, not the data, ends the search.
_LIMITS = {
    "lightning_module": "8MiB",
    "prodigy_mlp": "8MiB",
    "rtdl_ft_transformer": "16MiB",
    "rtdl_periodic_mlp": "8MiB",
    "schedulefree_mlp": "8MiB",
    "smp_unet": "320MiB",
    "timm_resnet": "192MiB",
    "timm_vit": "128MiB",
}
_LIMIT = "64MiB"
_LIVE_AT_MOST = 4  # samples that a live model is asked for: whether its input was inferred shows at the first
_LAST_LINES = 4  # of what was printed, where no line is ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one command did with one case."""

    case: str
    command: str
    exit_code: int | None
    answer: str | None
    message: str | None
    is_right: bool
    seconds: float
    repeated: int

    @property
    def verdict(self) -> str:
        return ("answered" if self.exit_code == 0 else "refused") if self.is_right else "WRONG"


def run(case: Path, command: str, budget: str, limit_s: float) -> Result:
    """Run one command in a process of its own and judge what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        arguments = [command, str(case), "--device", "cpu", "--output", str(output)]
        if command == "max-batch":
            arguments += ["--prove", "--memory-limit", _LIMITS.get(case.stem, _LIMIT)]
        elif command == "tune":
            arguments += ["--budget", budget, "--run-dir", str(Path(folder) / "run")]
        python = [sys.executable, "-m", "autobatch", *arguments]
        if command == "live":
            python = [sys.executable, __file__, "--live", str(case), "--json", str(output)]
        started = perf_counter()
        code: int | None
        try:
            done = subprocess.run(python, capture_output=True, text=True, timeout=limit_s, cwd=folder)
            code, printed = done.returncode, done.stderr
        except subprocess.TimeoutExpired as late:
            code, printed = None, (late.stderr or b"").decode(errors="replace")
        seconds = perf_counter() - started
        found = json.loads(output.read_text()) if code == 0 and output.exists() else None
    answer = None if found is None else _ANSWERS[command](found)
    message = None if code == 0 else _message(printed)
    is_right = _is_refusal(code, message) if found is None else answer is not None
    if command == "max-batch" and found is not None:
        is_right = found["proved"] or found["limited_by"] == "dataset"
    return Result(
        case=case.stem,
        command=command,
        exit_code=code,
        answer=answer,
        message=message,
        is_right=is_right,
        seconds=round(seconds, 1),
        repeated=_repeated(printed),
    )


def _is_refusal(code: int | None, message: str | None) -> bool:
    """Whether a command refused its task. Neither a bug of ours nor a package that cannot be imported is a refusal."""
    not_one = ("bug in autobatch", "Could not import", "the import of", "ModuleNotFoundError")
    return code == 2 and message is not None and not any(words in message for words in not_one)


def _message(printed: str) -> str:
    """What the command said in the end, without the folders of this machine."""
    start = printed.rfind("\nautobatch: ")
    text = printed[start:] if start >= 0 else "\n".join(printed.strip().splitlines()[-_LAST_LINES:])
    return re.sub(r"(/[\w.\-]+)+/", ".../", text.strip())


def _repeated(printed: str) -> int:
    """How often a line of a library's warning came again."""
    lines = [line for line in printed.splitlines() if "Warning:" in line]
    return len(lines) - len(set(lines))


def _max_batch(found: dict[str, Any]) -> str:
    ended = "proved" if found["proved"] else f"ended by the {found['limited_by']}"
    return f"{found['batch_size']}, {ended}"


def _tuned(found: dict[str, Any]) -> str:
    report = Report.from_json(found)
    plan = report.config.plan
    kept = ", which is what you have" if report.chose_baseline else ""
    warned = f"; {len(report.warnings)} warnings" if report.warnings else ""
    return f"batch {plan.batch_size} x {plan.accumulation_steps}, lr {report.config.lr:.3g}{kept}{warned}"


_ANSWERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "max-batch": _max_batch,
    "tune": _tuned,
    "live": lambda found: str(found["assumed"]),
}


def measure_live(case: Path, output: Path) -> None:
    """`find_max_batch(model)` of the task's model and of nothing else."""
    import autobatch
    from autobatch.errors import AutobatchError

    model = autobatch.load_task(case).model()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = autobatch.find_max_batch(model, device="cpu", max_batch_size=_LIVE_AT_MOST)
    except AutobatchError as error:
        print(f"\nautobatch: {error}", file=sys.stderr)
        sys.exit(2)
    output.write_text(json.dumps({"batch_size": int(found), "assumed": found.assumed[0]}))


def table(results: Sequence[Result]) -> str:
    lines = [f"{'case':24} {'command':10} {'':8} {'exit':>4} {'s':>6}  answer or message"]
    for result in results:
        said = (result.answer or result.message or "").replace("\n", " ")
        code = "-" if result.exit_code is None else result.exit_code
        lines.append(
            f"{result.case:24} {result.command:10} {result.verdict:8} {code:>4} {result.seconds:6.1f}  {said[:160]}"
        )
    right = sum(result.is_right for result in results)
    answered = sum(result.exit_code == 0 for result in results)
    return "\n".join([*lines, f"{right} of {len(results)} right; {answered} answered"])


def main() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--budget", default="60s", help="of tune")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a command is ended")
    parser.add_argument("--json", type=Path, help="keep the results here; what it holds already is not run again")
    parser.add_argument("--again", action="store_true", help="run the cases again that the JSON file holds")
    parser.add_argument("--live", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.live is not None:
        measure_live(arguments.live, arguments.json)
        return
    if unknown := set(arguments.cases) - set(names):
        parser.error(f"there is no case {', '.join(sorted(unknown))}: {', '.join(names)}")
    results: list[Result] = []
    head = {**about(*PACKAGES), "budget": arguments.budget, "limit_s": arguments.limit}
    if arguments.json is not None and arguments.json.exists():
        kept = json.loads(arguments.json.read_text())
        if (kept["budget"], kept["limit_s"]) != (arguments.budget, arguments.limit):
            parser.error(f"{arguments.json} was made with --budget {kept['budget']} --limit {kept['limit_s']:g}")
        head = {name: value for name, value in kept.items() if name != "results"}
        results = [Result(**result) for result in kept["results"]]
    if arguments.again:
        asked = {(name, command) for name in arguments.cases or names for command in arguments.commands}
        results = [result for result in results if (result.case, result.command) not in asked]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded
    for command in arguments.commands:
        for name in arguments.cases or names:
            if any((result.case, result.command) == (name, command) for result in results):
                continue
            results.append(run(FOLDER / f"{name}.py", command, arguments.budget, arguments.limit))
            print(table(results[-1:]).splitlines()[1], flush=True)
            if arguments.json is not None:
                text = json.dumps({**head, "results": [asdict(result) for result in results]}, indent=1)
                arguments.json.write_text(f"{text}\n")
    print(f"\n{table(results)}")
    sys.exit(0 if all(result.is_right for result in results) else 1)


if __name__ == "__main__":
    main()
