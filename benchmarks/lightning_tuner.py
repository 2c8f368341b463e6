"""Lightning's own batch-size finder and range test beside ours, on one project and under a real memory limit on a CPU.

    python benchmarks/lightning_tuner.py [--limit 192MiB] [--json OUT]

Each finder runs in a process of its own, on the project as it stands (tasks/_lightning_images.py), with the memory that
a process may take limited by the system. What each returned is then trained by Lightning's own `fit` in a fresh process
under the same limit. The true maximum is bisected by such fits. Counted are the seconds, the steps that ran out of
memory, and the lines that a user adds to a script that has module, data module and Trainer. Each learning rate is
trained by `fit` for as many steps, from the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from autobatch.core.units import parse_size
from autobatch.devices.environment import MMAP_THRESHOLD_BYTES, worker_environment

# Lines of a script beside those that are there for `fit`. Counted from Lightning's documentation and from docs/.
_LINES = {
    "lightning scale_batch_size": [
        "from lightning.pytorch.tuner import Tuner",
        "tuner = Tuner(trainer)",
        "tuner.scale_batch_size(module, datamodule=dm)",
    ],
    "autobatch find_max_batch": [
        "import autobatch",
        "dm.hparams.batch_size = int(autobatch.find_max_batch(module, datamodule=dm))",
    ],
    "lightning lr_find": [
        "from lightning.pytorch.tuner import Tuner",
        "tuner = Tuner(trainer)",
        "tuner.lr_find(module, datamodule=dm)",
    ],
    "autobatch find_lr": [
        "import autobatch",
        "module.hparams.lr = autobatch.find_lr(module, datamodule=dm).suggestion",
    ],
}
_SETTINGS: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
_RATE_STEPS = 60
_CLOSE = 0.01  # the bisection ends at this share of the batch


def _limited(limit_bytes: int) -> None:
    """Have the system refuse what this process takes beyond so much, as ours has it, after what comes once has come."""
    import torch

    from autobatch.devices import open_device

    torch.set_num_threads(1)
    _fit(2, 1)
    open_device("cpu").set_limit(limit_bytes, 0.0)


def _fit(batch_size: int, steps: int, lr: float | None = None) -> dict[str, float]:
    """Lightning's own training of the project; what it logged at its end."""
    L: Any = import_module("lightning")
    project: Any = import_module("_lightning_images")

    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(max_steps=steps, val_check_interval=1.0, **_SETTINGS)
    module, data = (
        (project.Classifier() if lr is None else project.Classifier(lr=lr)),
        project.Images(batch_size=batch_size),
    )
    trainer.fit(module, datamodule=data)
    if lr is None:
        return {}
    return {name: float(value) for name, value in trainer.validate(module, datamodule=data, verbose=False)[0].items()}


def _fits(batch_size: int) -> bool:
    from autobatch.devices.oom import is_out_of_memory

    try:
        _fit(batch_size, 3)
    except RuntimeError as error:
        if not is_out_of_memory(error, limited_cpu=True):
            raise
        return False
    return True


def _lightning_batch(mode: str) -> dict[str, Any]:
    L: Any = import_module("lightning")
    tuner: Any = import_module("lightning.pytorch.tuner")
    scaling: Any = import_module("lightning.pytorch.tuner.batch_size_scaling")
    project: Any = import_module("_lightning_images")

    refused = []
    known = scaling.is_oom_error

    def noted(error: BaseException) -> bool:
        if known(error):
            refused.append(str(error))
        return bool(known(error))

    scaling.is_oom_error = noted
    trainer = L.Trainer(max_steps=3, **_SETTINGS)
    began = time.perf_counter()
    found = tuner.Tuner(trainer).scale_batch_size(project.Classifier(), datamodule=project.Images(), mode=mode)
    return {"returned": found, "seconds": time.perf_counter() - began, "ooms": len(refused)}


def _our_batch(limit_bytes: int) -> dict[str, Any]:
    project: Any = import_module("_lightning_images")

    import autobatch

    began = time.perf_counter()
    found = autobatch.find_max_batch(
        project.Classifier(),
        datamodule=project.Images(),
        memory_limit=limit_bytes,
        headroom=0.0,
        device="cpu",
    )
    evidence = found.to_json()
    outcomes = [probe["outcome"] for probe in evidence["probes"]]
    return {
        "returned": int(found),
        "seconds": time.perf_counter() - began,
        "ooms": sum(outcome != "ok" for outcome in outcomes),
        "probes": len(outcomes),
    }


def _lightning_rate() -> dict[str, Any]:
    L: Any = import_module("lightning")
    tuner: Any = import_module("lightning.pytorch.tuner")
    project: Any = import_module("_lightning_images")

    began = time.perf_counter()
    finder = tuner.Tuner(L.Trainer(max_steps=100, **_SETTINGS)).lr_find(
        project.Classifier(), datamodule=project.Images()
    )
    return {"returned": None if finder is None else finder.suggestion(), "seconds": time.perf_counter() - began}


def _our_rate() -> dict[str, Any]:
    project: Any = import_module("_lightning_images")

    import autobatch

    began = time.perf_counter()
    found = autobatch.find_lr(project.Classifier(), datamodule=project.Images(), device="cpu")
    return {"returned": found.suggestion, "seconds": time.perf_counter() - began}


def _part(name: str, limit_bytes: int, argument: str) -> Any:
    """One measurement, in this process."""
    if name == "fits":
        _limited(limit_bytes)
        return _fits(int(argument))
    if name in ("power", "binsearch"):
        _limited(limit_bytes)
        return _lightning_batch(name)
    if name == "trained at":
        return _fit(32, _RATE_STEPS, float(argument))
    return {"ours": lambda: _our_batch(limit_bytes), "lr_find": _lightning_rate, "find_lr": _our_rate}[name]()


def _apart(name: str, limit_bytes: int, argument: str = "", timeout_s: float = 600.0) -> Any:
    """The same in a process of its own; None of one that had to be ended."""
    here = Path(__file__)
    command = [sys.executable, here.name, "--part", name, "--bytes", str(limit_bytes), "--argument", argument]
    # As our own workers are started, so that memory that was given back is not held by a heap, for all alike.
    held = {**worker_environment(1), "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES)}
    try:
        ended = subprocess.run(
            command, cwd=here.parent, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **held}
        )
    except subprocess.TimeoutExpired:
        return None
    if ended.returncode:
        return {"failed": ended.stderr.strip().splitlines()[-1][:300]}
    return json.loads(ended.stdout.strip().splitlines()[-1])


def _true_maximum(limit_bytes: int) -> int:
    """The largest batch that `fit` trains with, to a hundredth, each in a process of its own."""
    low, high = 1, 256
    while _apart("fits", limit_bytes, str(high)) is True:
        low, high = high, 2 * high
    while high - low > max(1, _CLOSE * low):
        middle = (low + high) // 2
        low, high = (middle, high) if _apart("fits", limit_bytes, str(middle)) is True else (low, middle)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default="192MiB")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--argument", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        sys.path.insert(0, str(Path(__file__).parent / "tasks"))
        print(json.dumps(_part(asked.part, asked.bytes, asked.argument)))
        return
    from provenance import about

    limit_bytes = parse_size(asked.limit)
    found: dict[str, Any] = {**about("lightning"), "limit_bytes": limit_bytes, "lines_added": _LINES}
    found["true_maximum"] = _true_maximum(limit_bytes)
    print("true maximum", found["true_maximum"], flush=True)
    found["batch"] = {}
    for told, part in (
        ("autobatch find_max_batch", "ours"),
        ("lightning scale_batch_size, power", "power"),
        ("lightning scale_batch_size, binsearch", "binsearch"),
    ):
        answer = _apart(part, limit_bytes) or {"failed": "it had not returned after 600 s, and was ended"}
        if answer.get("returned"):
            answer["fits"] = _apart("fits", limit_bytes, str(answer["returned"]))
        found["batch"][told] = answer
        print(told, answer, flush=True)
    found["rate"] = {}
    for told, part in (("autobatch find_lr", "find_lr"), ("lightning lr_find", "lr_find")):
        answer = _apart(part, limit_bytes) or {"failed": "it had not returned after 600 s, and was ended"}
        if answer.get("returned"):
            answer["after_steps"] = _RATE_STEPS
            answer["trained"] = _apart("trained at", limit_bytes, str(answer["returned"]))
        found["rate"][told] = answer
        print(told, answer, flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
