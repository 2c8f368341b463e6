"""One of two ranks over gloo, of which rank 1 has less memory; for test_together.py, which runs it twice at once.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python -m tests.helpers.two_ranks FOLDER

Each part leaves what it found in FOLDER/<rank>.json; one that fails leaves its traceback in place of that.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import autobatch
from autobatch.engines.ranks import exchange
from autobatch.engines.ranks.stand_in import _fakes

TIMEOUT = timedelta(seconds=120)  # a hang is a failure, and this ends it
LIMITS = ("48MiB", "16MiB")  # far apart: what a process that has run already counts is off by some pages
SAMPLE = torch.zeros(64)


class Net(nn.Module):
    """Two arguments, so that a wrapper that hides the signature is found out; a buffer, so that DDP sends one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 8)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return torch.relu(self.last(torch.relu(self.second(torch.relu(self.first(x))))))


def sharded() -> nn.Module:
    net = Net()
    for layer in (net.first, net.second, net.last):
        fully_shard(layer)
    fully_shard(net)  # in place
    return net


def local(tensor: Tensor | None) -> Tensor | None:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def state_of(model: nn.Module) -> dict[str, Any]:
    """Every value, the objects that hold them, and what else a step changes."""
    return {
        "parameters": {name: (id(p), local(p.detach().clone())) for name, p in model.named_parameters()},
        "storage": {name: local(p.data).data_ptr() for name, p in model.named_parameters()},  # type: ignore[union-attr]
        "buffers": {name: (id(b), b.clone()) for name, b in model.named_buffers()},
        "gradients": {n: None if p.grad is None else local(p.grad.clone()) for n, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "flags": {k: v for k, v in vars(model).items() if k.startswith("require_") or k == "static_graph"},
        "random": torch.get_rng_state(),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before if not same(before[key], after[key])]


def train(model: nn.Module, steps: int) -> None:
    """Synchronised steps, each rank on data of its own; the last one leaves its gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.step()
        optimizer.zero_grad()
        torch.manual_seed(10 * step + dist.get_rank())
        model(torch.randn(4, 64)).square().mean().backward()


def evidence(found: autobatch.MaxBatch) -> dict[str, Any]:
    return {
        "batch": int(found),
        "limited_by": found.limited_by,
        "assumed": found.assumed,
        "source": found.limit.source,
        "sizes": [probe.plan.batch_size for probe in found.probes],
        "outcomes": sorted({probe.outcome for probe in found.probes}),
    }


def limit() -> str:
    return LIMITS[dist.get_rank()]


def gathering_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """As contrastive losses do: it needs what the other ranks computed."""
    output = model(batch)
    everyone = [torch.zeros_like(output) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, output.detach())
    loss: Tensor = (output - torch.stack(everyone).mean(dim=0)).square().mean() + output.mean()
    return loss


# -- the parts


def alone() -> dict[str, Any]:
    """Before there is a process group: what this rank gets by itself."""
    rank = int(sys.argv[2])
    return evidence(autobatch.find_max_batch(Net(), SAMPLE, device="cpu", memory_limit=LIMITS[rank], multiple_of=64))


def plain() -> dict[str, Any]:
    return evidence(autobatch.find_max_batch(Net(), SAMPLE, device="cpu", memory_limit=limit(), multiple_of=64))


def ddp_in_workers() -> dict[str, Any]:
    model = DistributedDataParallel(Net(), gradient_as_bucket_view=True)
    before = state_of(model)
    found = autobatch.find_max_batch(model, SAMPLE, device="cpu", memory_limit=limit(), multiple_of=64)
    return evidence(found) | {"changed": differences(before, state_of(model))}


def borrowed(make: Callable[[], nn.Module], **settings: Any) -> dict[str, Any]:
    """A search in this process, and whether one that never happened would have left the model otherwise."""
    model, control = make(), make()
    train(model, 2)
    train(control, 2)
    before = state_of(model)
    found = autobatch.find_max_batch(
        model, SAMPLE, device="cpu", memory_limit=limit(), loss=gathering_loss, multiple_of=1024, **settings
    )
    changed = differences(before, state_of(model))
    train(model, 3)
    train(control, 3)
    after, wanted = state_of(model), state_of(control)
    values = ("parameters", "gradients", "buffers")
    later = [key for key in values if not same(_values(after[key]), _values(wanted[key]))]
    return evidence(found) | {"changed": changed, "later": later}


def _values(named: dict[str, Any]) -> dict[str, Any]:
    return {name: value[1] if isinstance(value, tuple) else value for name, value in named.items()}


def ddp_in_process() -> dict[str, Any]:
    return borrowed(lambda: DistributedDataParallel(Net()), isolate=False)


def ddp_untrained() -> dict[str, Any]:
    """Wrappers that have not taken a step yet: what the first one sets up is left to the user's own."""
    found: dict[str, Any] = {}
    wrapped = {
        "static_graph": partial(DistributedDataParallel, static_graph=True),
        "find_unused_parameters": partial(DistributedDataParallel, find_unused_parameters=True),
    }
    for name, wrap in wrapped.items():
        model = wrap(Net())
        told = error_of(partial(autobatch.find_max_batch, model, SAMPLE, device="cpu", max_batch_size=4, isolate=False))
        train(model, 3)
        gradient = model.module.last.weight.grad.clone()
        dist.all_reduce(gradient)  # where gradients were averaged, all ranks have the same
        found[name] = told | {"averages": torch.allclose(gradient, 2 * model.module.last.weight.grad)}
    return found


def fsdp() -> dict[str, Any]:
    return borrowed(sharded)


def fsdp_refused() -> dict[str, Any]:
    return error_of(lambda: autobatch.find_max_batch(sharded(), SAMPLE, device="cpu", isolate=True))


def error_of(work: Callable[[], object]) -> dict[str, Any]:
    try:
        work()
    except autobatch.AutobatchError as error:
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": None}


def raising() -> dict[str, Any]:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            raise ValueError("a bug of the user's")
        return model(batch).mean()  # type: ignore[no-any-return]

    model = sharded()
    before = state_of(model)
    told = error_of(lambda: autobatch.find_max_batch(model, SAMPLE, device="cpu", loss=loss))
    return told | {"changed": differences(before, state_of(model))}


def different() -> dict[str, Any]:
    sizes = (64, 128)[dist.get_rank()]
    return error_of(lambda: autobatch.find_max_batch(Net(), SAMPLE, device="cpu", max_batch_size=sizes, isolate=False))


def groups_afterwards() -> dict[str, Any]:
    """The user's group works, and nothing is left of ours."""
    total = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    groups = dist.distributed_c10d._world.pg_map
    return {"sum": float(total), "groups": len(groups), "backend": dist.get_backend(), "fakes": len(_fakes)}


def absent() -> dict[str, Any]:
    """Only rank 0 calls. Last, because the ranks have not made the same groups afterwards."""
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 1:
        store.wait(["rank 0 is through"], TIMEOUT)
        return {}
    exchange._JOIN_S = 2.0
    told = error_of(lambda: autobatch.find_max_batch(Net(), SAMPLE, device="cpu", max_batch_size=4))
    store.set("rank 0 is through", "yes")
    return told


PARTS: list[Callable[[], dict[str, Any]]] = [
    plain,
    ddp_in_workers,
    ddp_in_process,
    ddp_untrained,
    fsdp,
    fsdp_refused,
    raising,
    different,
    groups_afterwards,
    absent,
]


def main() -> None:
    """Run all parts, or those that are named."""
    gc.collect()
    gc.freeze()  # each probe collects, and what was imported is most of what there is to look at
    folder, rank, *names = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    found: dict[str, Any] = {}

    def run(part: Callable[[], dict[str, Any]]) -> None:
        if names and part.__name__ not in names:
            return
        try:
            found[part.__name__] = part()
        except Exception:  # noqa: BLE001  # it goes on: the other rank has to end as well
            found[part.__name__] = {"failed": traceback.format_exc()}
        print(f"[{time.process_time():.0f} s]", part.__name__, found[part.__name__], file=sys.stderr, flush=True)
        (folder / f"{rank}.json").write_text(json.dumps(found))

    run(alone)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    for part in PARTS:
        run(part)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
