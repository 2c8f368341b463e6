"""The field's own packages on the simulated device, unmodified, each through its public entry point.

    pip install -r benchmarks/peers.txt
    python benchmarks/peers.py list
    python benchmarks/peers.py run "lightning binsearch" [--timeout 180] [--minutes 15]

`max_batch.py --peers` runs this in the Python that has them, for 20 minutes by default, and draws the table. A step
raises what CUDA would raise where the simulated peak is above the capacity, and notes each attempt in a file, so that
what a package did is known also where it never returns. Each case has a process of its own: these packages keep what
they found in caches.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from simulated_memory import CAPACITY, CASES, CEILING, GIB, SHAPES, Result, largest_safe
from torch.utils.data import DataLoader, Dataset

HIGH = 2 * 131_072  # where a search that only goes down has to start to be able to answer in all cases
LIFTED = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDevice:
    """A card whose memory is a formula.

    Attributes:
        shape, limit: the case.
        log: a line for each step, "batch fits", whichever process took it.
    """

    shape: str
    limit: int
    log: Path

    def step(self, batch_size: int) -> int:
        """One training step; its batch size, so that a function made of it returns what it last ran with."""
        fits = SHAPES[self.shape](self.limit)(batch_size) <= CAPACITY
        with self.log.open("a") as log:
            log.write(f"{batch_size} {int(fits)}\n")
        if not fits:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
                f"{CAPACITY / GIB:.2f} GiB of which 1.00 GiB is free."
            )
        return batch_size

    def steps(self) -> list[tuple[int, bool]]:
        """The batch size of each step so far, and whether it ran."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(batch), fits == "1") for batch, fits in (line.split() for line in lines)]

    def highest_peak(self) -> int:
        """Bytes, over the steps that ran."""
        peak = SHAPES[self.shape](self.limit)
        return max((peak(batch) for batch, fits in self.steps() if fits), default=0)


class Rows(Dataset[Any]):
    """As many rows as any search could ask for; a batch of them is one allocation, so that only searches cost time."""

    def __len__(self) -> int:
        return CEILING

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return torch.zeros(len(indices))


def _as_it_is(batch: Any) -> Any:
    return batch


def search_lightning(device: SimulatedDevice, mode: str, **bounds: Any) -> Any:
    """`Tuner.scale_batch_size`; the module's own batch size is `init_val`, without which the first trial is another."""
    lightning = import_module("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]  # the package is not installed here
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 2
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Rows(), batch_size=self.batch_size, collate_fn=_as_it_is)

        def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
            device.step(len(batch))
            return self.weight * batch.mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=device.log.parent,
    )
    return import_module("lightning.pytorch.tuner").Tuner(trainer).scale_batch_size(Module(), mode=mode, **bounds)


def search_accelerate(device: SimulatedDevice, start: int) -> Any:
    """`find_executable_batch_size` around one step; in earnest the function is the whole training."""

    def train(batch_size: int) -> int:
        return device.step(batch_size)

    return import_module("accelerate.utils").find_executable_batch_size(train, starting_batch_size=start)()


def search_toma(device: SimulatedDevice, start: int) -> Any:
    """`toma.batch` around one step."""
    return import_module("toma").toma.batch(device.step, initial_batchsize=start)()


def search_torch_max_mem(device: SimulatedDevice, start: int) -> Any:
    """`maximize_memory_utilization` around one step."""

    def train(batch_size: int) -> int:
        return device.step(batch_size)

    return import_module("torch_max_mem").maximize_memory_utilization()(train)(batch_size=start)


class SimulatedModel(torch.nn.Module):
    """One forward pass is one step of the device."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self.device = device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.device.step(len(x))
        return x


def search_batch_finder(device: SimulatedDevice, start: int | None) -> Any:
    """`find_max_minibatch`, which on a CPU reads the process's peak and the memory that is free: here the device's."""

    def simulated_usage(who: int) -> SimpleNamespace:
        return SimpleNamespace(ru_maxrss=device.highest_peak() // 1024)

    def simulated_memory() -> SimpleNamespace:
        return SimpleNamespace(available=CAPACITY)

    import_module("resource").getrusage = simulated_usage  # type: ignore[attr-defined]
    import_module("psutil").virtual_memory = simulated_memory  # type: ignore[attr-defined]
    found = import_module("batch_finder").find_max_minibatch(
        partial(SimulatedModel, device), input_shapes=(-1, 1), initial_value=start
    )
    return None if found is None else found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A package, how it is called, and in words what it is called with."""

    package: str
    called: str
    search: Callable[[SimulatedDevice], Any]


PEERS = {
    "lightning power": Peer(
        package="lightning",
        called="Tuner.scale_batch_size() at its defaults (max_val 8192)",
        search=partial(search_lightning, mode="power"),
    ),
    "lightning power, no max_val": Peer(
        package="lightning",
        called="the same with max_val lifted",
        search=partial(search_lightning, mode="power", max_val=LIFTED),
    ),
    "lightning binsearch": Peer(
        package="lightning",
        called='mode="binsearch" (max_val 8192, margin 5 %)',
        search=partial(search_lightning, mode="binsearch"),
    ),
    "lightning binsearch, no max_val": Peer(
        package="lightning",
        called="the same with max_val lifted",
        search=partial(search_lightning, mode="binsearch", max_val=LIFTED),
    ),
    "accelerate": Peer(
        package="accelerate",
        called="find_executable_batch_size from 128, its default",
        search=partial(search_accelerate, start=128),
    ),
    "accelerate, from above": Peer(
        package="accelerate", called=f"the same from {HIGH:,}", search=partial(search_accelerate, start=HIGH)
    ),
    "toma": Peer(package="toma", called="toma.batch from 512, as its README", search=partial(search_toma, start=512)),
    "toma, from above": Peer(package="toma", called=f"the same from {HIGH:,}", search=partial(search_toma, start=HIGH)),
    "torch-max-mem, from above": Peer(
        package="torch-max-mem",
        called=f"maximize_memory_utilization from {HIGH:,}; it has no default",
        search=partial(search_torch_max_mem, start=HIGH),
    ),
    "batch-finder": Peer(
        package="batch-finder",
        called="find_max_minibatch from 32, its default on a CPU",
        search=partial(search_batch_finder, start=None),
    ),
    "batch-finder, from 512": Peer(
        package="batch-finder",
        called="the same from 512, its default on CUDA",
        search=partial(search_batch_finder, start=512),
    ),
}


def _search(peer: Peer, device: SimulatedDevice, answer: Path) -> None:
    """In a child: search, and write what came to `answer`; what the package prints goes beside it."""
    os.setsid()  # to be ended together with what the package starts
    printed = os.open(device.log.with_suffix(".printed"), os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    started = time.perf_counter()
    told: dict[str, Any] = {"ending": "returned", "found": None, "message": None}
    try:
        found = peer.search(device)
        told["found"] = None if found is None else int(found)
    except Exception as error:  # noqa: BLE001  # whatever a package raises is its result
        told |= {"ending": "failed", "message": f"{type(error).__name__}: {error}"[:300]}
    told["seconds"] = round(time.perf_counter() - started, 3)
    answer.with_suffix(".new").write_text(json.dumps(told))
    answer.with_suffix(".new").replace(answer)


def run_case(name: str, shape: str, limit: int, timeout_s: float) -> Result:
    """One package in one case; ended after `timeout_s`."""
    with TemporaryDirectory() as folder:
        device = SimulatedDevice(shape=shape, limit=limit, log=Path(folder) / "steps")
        answer = Path(folder) / "answer"
        child = multiprocessing.get_context("fork").Process(target=_search, args=(PEERS[name], device, answer))
        started = time.perf_counter()
        child.start()
        child.join(timeout_s)
        if child.is_alive() and child.pid is not None:
            os.killpg(child.pid, signal.SIGKILL)
            child.join()
        told: dict[str, Any] = {"ending": "timeout", "found": None, "seconds": round(time.perf_counter() - started, 3)}
        if answer.exists():
            told = json.loads(answer.read_text())
        elif child.exitcode != -signal.SIGKILL:
            told |= {"ending": "failed", "message": f"the process ended with code {child.exitcode}"}
        steps, found = device.steps(), told["found"]
        peak = SHAPES[shape](limit)
        truth = largest_safe(shape, limit, CAPACITY)
        return Result(
            search=name,
            shape=shape,
            limit=limit,
            truth=truth,
            truth_in_budget=truth,
            ran=(found, True) in steps,
            fits=found is not None and peak(found) <= CAPACITY,
            ooms=sum(not fits for _, fits in steps),
            steps=sum(fits for _, fits in steps),
            **told,
        )


def installed() -> dict[str, dict[str, str | None]]:
    """Each peer's package, its version (None where it is not installed) and how it is called."""

    def found(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        name: {"package": peer.package, "version": found(peer.package), "called": peer.called}
        for name, peer in PEERS.items()
    }


def main() -> None:
    """List the peers, or run one and print a line of JSON for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    run = commands.add_parser("run")
    run.add_argument("peer", choices=PEERS)
    run.add_argument("--timeout", type=float, default=180.0, help="seconds that one case may take")
    run.add_argument("--minutes", type=float, default=15.0, help="after which no case is begun but the affine ones")
    options = parser.parse_args()
    if options.command == "list":
        print(json.dumps(installed(), indent=2))
        return
    torch.set_num_threads(1)  # a fork has none of the threads of the process that it is of
    import_module(PEERS[options.peer].package.replace("-", "_"))
    gc.freeze()  # else each collection in a fork, of which these packages make many, first copies every page
    started = time.monotonic()
    for shape, limit in CASES:
        if shape == "affine" or time.monotonic() - started < 60 * options.minutes:
            print(json.dumps(asdict(run_case(options.peer, shape, limit, options.timeout))), flush=True)


if __name__ == "__main__":
    main()
