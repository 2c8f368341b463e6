"""A cluster: Ray places the workers, each with its own GPU, wherever one is free. The study stays with the caller.

A worker is a Ray actor that hosts a `RemoteRunner`, so everything on its machine is as on this one: a separate process
for torch, fresh ones for final probes, and an out-of-memory costs one segment. The task's folder and this package are
sent by Ray's runtime environment. Checkpoints are kept in the run's folder here. A worker that sees that folder too (a
shared file system) writes there; for any other, they travel with the segment through the object store. So if a machine
is lost, the segment is trained again from its last checkpoint, by an actor that Ray places again.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.checkpoints import checkpoint_path, forget_checkpoints
from ..core.facts import DeviceInfo, MemoryLimit, TaskFacts
from ..core.measurement import Energy, LrSweep, Measurement, Workload
from ..core.plan import Plan
from ..core.runner import Runner
from ..core.segment import SegmentResult, TrainSegment
from ..devices.backend import CARDS, PROCESSOR
from ..errors import DeviceError, SettingError, WorkerDied, WorkerTimeout, text_of
from ..runs.run_folder import SHARED
from .pool import Pool, check_workers
from .ray_actor import Home, Host, Raised, write_checkpoint
from .remote import GRACE_S, segment_of_dead
from .served import RunnerSpec

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError
except ImportError as missing:
    raise SettingError("--engine ray needs Ray: pip install 'ray>=2.40'") from missing

# A worker keeps a segment's own limit. After this many more seconds, its machine is taken to be gone. Assumed: a
# checkpoint of some gigabytes may take this long to travel.
_TRAVEL_S = 120.0
# How long Ray may take to place an actor and open the device there: at the start, when a cluster may have to start a
# machine for it, and to replace a lost actor, for which the others need not wait. Assumed.
_PLACING_S, _REPLACING_S = 900.0, 120.0
# What is not sent with the task's folder: runs, and the private files of version control and Python.
_LEFT_HERE = [".autobatch", ".git", "__pycache__", "*.pyc", ".venv", "venv"]


class _ActorLost(WorkerDied):
    """Ray lost the actor. Another one has been requested."""


class RayRunner(Runner):
    """A runner in a Ray actor, which is placed again when it is lost. The call is then made once more.

    Args:
        spec: what it opens.
        home: the caller's checkpoints.
        resources: what Ray reserves for it, "num_cpus" and "num_gpus".
        remaining_s: seconds that a call may still take; None for no limit.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        home: Home,
        resources: Mapping[str, float],
        remaining_s: Callable[[], float] | None = None,
    ) -> None:
        self._spec, self._home, self._resources, self._remaining_s = spec, home, dict(resources), remaining_s
        self._facts: TaskFacts | None = None
        self._device: DeviceInfo | None = None
        self._shares: bool | None = None  # whether the present actor shares the folder; None until it has answered
        self._is_closed = False
        self._actor = self._placed()

    def _placed(self) -> Any:
        """A new actor. Ray starts it when there is room."""
        spec = self._spec
        if self._facts is not None:
            spec = replace(spec, worst_cases=self._facts.worst_cases)
        return ray.remote(Host).options(**self._resources).remote(spec, self._home)

    def _get(self, answer: Any, timeout_s: float | None) -> Any:
        remaining_s = self._remaining_s() if self._remaining_s else None
        limits = [limit for limit in (timeout_s, remaining_s) if limit is not None]
        try:
            answered = ray.get(answer, timeout=min(limits) if limits else None)
        except GetTimeoutError:
            self._replace()
            raise WorkerTimeout(f"no answer from the cluster within the {min(limits):.1f} s it had") from None
        except RayActorError as error:
            self._replace()
            raise _ActorLost(f"Ray lost the worker: {_error_line(error)}") from None
        except RayError as error:
            raise WorkerDied(f"Ray could not run the worker: {_error_line(error)}") from None
        if isinstance(answered, Raised):
            raise answered.error
        return answered

    def _replace(self) -> None:
        self._shares = None
        if self._is_closed:  # calls that wait in other threads must not start an actor
            return
        with suppress(RayError):
            ray.kill(self._actor)
        self._actor = self._placed()

    def _settle(self) -> bool:
        """Wait once for the present actor to answer. Returns whether it sees the caller's folder.

        Raises:
            DeviceError: Ray has no place for it, or placed it on a device of another kind.
        """
        if self._shares is None:
            known, limit_s = self._device, _PLACING_S if self._device is None else _REPLACING_S
            remaining_s = self._remaining_s() if self._remaining_s else None
            try:
                device: DeviceInfo = self._get(self._actor.call.remote("device", (), {}), limit_s)
                shares = bool(self._get(self._actor.shares.remote(), limit_s))
            except WorkerTimeout:
                if remaining_s is not None and remaining_s <= limit_s:  # the whole time was over
                    raise
                raise DeviceError(f"Ray found no place for a worker within {limit_s:.0f} s") from None
            if known is not None and (device.kind, device.name) != (known.kind, known.name):
                raise DeviceError(f"Ray placed a worker anew on another device, {device.name}")
            self._device, self._shares = device, shares
        return self._shares

    def _call(self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """The answer of the present actor, or of its replacement if it is lost meanwhile."""
        try:
            return self._get(self._actor.call.remote(method, args, kwargs), timeout_s)
        except _ActorLost:
            if self._is_closed:
                raise
        self._settle()  # raises if there is no other place
        return self._get(self._actor.call.remote(method, args, kwargs), timeout_s)

    def _measured(self, method: str, plan: Plan, **kwargs: Any) -> Measurement:
        """A measurement; "crashed" if it has cost two actors."""
        try:
            measured: Measurement = self._call(method, plan, **kwargs)
        except _ActorLost as loss:
            if self._is_closed:
                raise
            return Measurement(plan=plan, outcome="crashed", message=str(loss))
        return measured

    def facts(self) -> TaskFacts:
        if self._facts is None:
            facts: TaskFacts = self._call("facts")
            self._facts = facts
        return self._facts

    def learn(self, facts: TaskFacts) -> None:
        self._facts = facts
        self._call("learn", facts)

    def device(self) -> DeviceInfo:
        if self._device is None:
            self._settle()
        assert self._device is not None
        return self._device

    def memory(self) -> MemoryLimit:
        memory: MemoryLimit = self._call("memory")
        return memory

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        return self._measured("probe", plan, final=final)

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        return self._measured("time", plan, budget_s=budget_s, loader=loader, parts=parts)

    def energy(self, plan: Plan, *, budget_s: float) -> Energy | None:
        energy: Energy | None = self._call("energy", plan, budget_s=budget_s)
        return energy

    def workload(self) -> Workload | None:
        workload: Workload | None = self._call("workload")
        return workload

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        reached: float | None = self._call("matmul_flops_per_s", budget_s=budget_s)
        return reached

    def see_evaluation_end(self, limit_s: float) -> None:
        self._call("see_evaluation_end", limit_s)

    def time_evaluation(self, batch_size: int) -> float:
        return float(self._call("time_evaluation", batch_size))

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        sweep: LrSweep = self._call("sweep_lr", plan, lowest=lowest, highest=highest, steps=steps, seed=seed)
        return sweep

    def _checkpoint(self, trial: int, step: int) -> Any:
        """A reference to the checkpoint in the object store, if it has to travel to the actor; otherwise None."""
        path = checkpoint_path(self._home.folder, trial, step)
        return None if self._settle() or not step or not path.is_file() else ray.put(path.read_bytes())

    def advance(self, segment: TrainSegment) -> SegmentResult:
        begun = time.monotonic()
        limit_s = None if segment.limit_s is None else segment.limit_s + GRACE_S + _TRAVEL_S
        try:
            checkpoint = self._checkpoint(segment.trial, segment.start_step)
            self._get(self._actor.call.remote("prepare", (), {"fresh": segment.fresh}), None)
            begun = time.monotonic()  # placing a worker and loading the data are not the segment's time
            result, left = self._get(self._actor.advance.remote(segment, checkpoint), limit_s)
        except WorkerDied as death:
            return segment_of_dead(segment, death, time.monotonic() - begun)
        if isinstance(result, Raised):
            raise result.error
        if left is not None:
            write_checkpoint(checkpoint_path(self._home.folder, segment.trial, segment.until_step), left)
        travelled_s = time.monotonic() - begun - result.seconds
        ended: SegmentResult = replace(result, seconds=result.seconds + max(0.0, travelled_s))
        return ended

    def test_score(self, segment: TrainSegment) -> float | None:
        try:
            checkpoint = self._checkpoint(segment.trial, segment.until_step)
            score: float | None = self._get(self._actor.test_score.remote(segment, checkpoint), None)
        except WorkerDied:  # also if time runs out: the result is valid without it
            return None
        return score

    def forget(self, trial: int, before: int | None = None) -> None:
        forget_checkpoints(self._home.folder, trial, before)

    def farewell(self) -> Any:
        """Make the actor end what it has started. Returns a reference to wait for."""
        self._is_closed = True
        return self._actor.close.remote()

    def close(self) -> None:
        self._is_closed = True
        with suppress(RayError):
            ray.kill(self._actor)


class Cluster:
    """A connection to a Ray cluster, or to one on this machine that ends with it.

    Args:
        spec: that of the task, whose folder is sent.
        address: of a running cluster: "auto" for this machine's own, "ray://host:10001" for a remote one; None starts
            one here.
        checkpoints: the run's folder of checkpoints.

    Raises:
        DeviceError: there is no cluster at that address.
    """

    def __init__(self, spec: RunnerSpec, address: str | None, checkpoints: Path) -> None:
        self._spec = spec
        # Ray sends usage statistics unless told not to. An explicit setting of the cluster's user stays.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # All of the task's folder is sent, also data that version control ignores.
        os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
        environment: dict[str, Any] = {"py_modules": [str(Path(__file__).parents[1])]}
        if spec.path is not None:
            environment |= {"working_dir": str(spec.path.absolute().parent), "excludes": _LEFT_HERE}
        local = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
        try:
            ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            where = "started on this machine" if address is None else f"reached at {address}"
            raise DeviceError(
                f"Ray cannot be {where}: {_error_line(error)}. `ray start --head` starts a cluster. If it needs a "
                "token, which is its default, set RAY_AUTH_MODE=token here too. Without --address, autobatch starts a "
                "cluster on this machine alone"
            ) from None
        checkpoints.mkdir(parents=True, exist_ok=True)
        self._home = Home(folder=checkpoints.absolute(), token=uuid.uuid4().hex)
        (checkpoints / SHARED).write_text(self._home.token)

    def runners(self, remaining_s: Callable[[], float] | None = None) -> Sequence[RayRunner]:
        """One runner for each worker: the requested number, or one for each free GPU of the cluster.

        Raises:
            SettingError: the cluster has fewer.
        """
        spec, resources = self._spec, ray.cluster_resources()
        gpus, free_gpus = int(resources.get("GPU", 0)), int(ray.available_resources().get("GPU", 0))
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        name = spec.device.strip().lower()
        cards, processor = list(CARDS), PROCESSOR.torch_name
        if name not in ("auto", *cards, processor):
            raise SettingError(
                f"on a cluster a device is auto, {', '.join(cards)} or {processor}, and Ray chooses which; "
                f"found {spec.device!r}"
            )
        on_gpu = name in cards or (name == "auto" and gpus > 0)
        if name == "auto":  # Ray does not say which vendor's GPUs it has
            name = cards[0] if on_gpu else processor
        wanted, most = spec.workers or (max(1, free_gpus) if on_gpu else 1), gpus if on_gpu else sum(nodes)
        check_workers(wanted, most, unit="GPU" if on_gpu else "core", where="the cluster")
        threads = 1 if on_gpu else threads_for(wanted, nodes)
        spec = replace(spec, device=name, threads=threads, workers=wanted)
        needs = {"num_gpus": 1.0 if on_gpu else 0.0, "num_cpus": float(threads)}
        return [RayRunner(spec, self._home, needs, remaining_s) for _ in range(wanted)]

    def close(self) -> None:
        """Leave the cluster. One that was started here ends."""
        (self._home.folder / SHARED).unlink(missing_ok=True)
        with suppress(OSError):  # the folder is not empty
            self._home.folder.rmdir()
        ray.shutdown()


def threads_for(workers: int, nodes: Sequence[int]) -> int:
    """The most cores that each of this many workers can have on nodes of these sizes; at least one."""
    for threads in range(max(nodes), 1, -1):
        if sum(cores // threads for cores in nodes) >= workers:
            return threads
    return 1


class _OnCluster(Pool):
    """All workers of a cluster. The connection ends when they are closed."""

    def __init__(self, cluster: Cluster, remaining_s: Callable[[], float] | None) -> None:
        self._cluster, self._hosts = cluster, cluster.runners(remaining_s)
        super().__init__(self._hosts)

    def close(self) -> None:
        with suppress(RayError):  # an actor that trains does not answer in time, and is killed
            goodbyes = [host.farewell() for host in self._hosts]
            ray.wait(goodbyes, num_returns=len(goodbyes), timeout=GRACE_S)
        super().close()
        self._cluster.close()


def open_cluster(
    spec: RunnerSpec, address: str | None, *, checkpoints: Path, remaining_s: Callable[[], float] | None = None
) -> Pool:
    """The workers of a cluster as one runner; see `Cluster` for the arguments and the errors."""
    cluster = Cluster(spec, address, checkpoints)
    try:
        return _OnCluster(cluster, remaining_s)
    except BaseException:
        cluster.close()
        raise


def _error_line(error: BaseException) -> str:
    """One line of a Ray error: the task's own error, if it contains one, which is at the end."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in text_of(cause).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "ray::" in lines[0] else lines[0]
