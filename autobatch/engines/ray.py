"""A cluster: workers placed by Ray, a GPU for each, wherever it has one free. The study stays with the caller.

A worker is a Ray actor that hosts a `RemoteRunner`, so that on its machine all is as on this one: a process of its own
for torch, fresh ones for verdicts, an out-of-memory that costs a rung. The task's folder and this package travel by
Ray's runtime environment. Checkpoints live in the run's folder here: a worker that sees that folder too (a shared file
system) writes there, and for any other they travel with the rung through the object store. So whatever machine is lost,
the rung is trained again from its last checkpoint, by an actor that Ray places anew.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import checkpoint_path, forget_checkpoints
from ..errors import AutobatchError, DeviceError, ReportError, SettingError, StorageError, WorkerDied, WorkerTimeout
from ..files import write_whole
from ..plan import (
    DeviceInfo,
    LrSweep,
    Measurement,
    MemoryLimit,
    Plan,
    Rung,
    RungResult,
    Runner,
    TaskFacts,
    Workload,
)
from ..pool import Pool
from ..remote import GRACE_S, RemoteRunner, RunnerSpec

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError
except ImportError as missing:
    raise SettingError("--engine ray needs Ray: pip install 'autobatch-tuner[ray]'") from missing

# A rung's own limit is kept by its worker; after so much more the machine it is on is taken to be gone. Assumed: what
# a checkpoint of some gigabytes may need to travel.
_TRAVEL_S = 120.0
# Until Ray has placed an actor and the task is open there. Assumed: a cluster may have to start a machine for it.
_PLACING_S = 900.0
# What does not travel with the task's folder: runs, and what version control and Python keep for themselves.
_LEFT_HERE = [".autobatch", ".git", "__pycache__", "*.pyc", ".venv", "venv"]
_IS_SHARED = ".shared-folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Home:
    """Where the caller keeps the checkpoints, and what lies there for a worker that sees the same folder."""

    folder: Path
    token: str


class _Host:
    """In an actor: the runner of a task on this machine."""

    def __init__(self, spec: RunnerSpec, home: _Home) -> None:
        marker = home.folder / _IS_SHARED
        self._shares = marker.is_file() and marker.read_text() == home.token
        self._folder = home.folder if self._shares else Path(tempfile.mkdtemp(prefix="autobatch-"))
        if spec.path is not None:  # the task's folder is the working directory here
            spec = replace(spec, path=Path(spec.path.name).absolute())
        self._runner = RemoteRunner(replace(spec, checkpoints=self._folder))

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the runner answers, or what it raised: an error of ours travels as data, and comes out as it is."""
        try:
            return getattr(self._runner, method)(*args, **kwargs)
        except AutobatchError as error:
            return _Raised(error)

    def advance(self, rung: Rung, checkpoint: bytes | None) -> Any:
        """What came of a rung, and the checkpoint that it left, where it has to travel."""
        if checkpoint is not None:
            _write_checkpoint(checkpoint_path(self._folder, rung.trial, rung.start_step), checkpoint)
        result = self.call("advance", (rung,), {})
        left = checkpoint_path(self._folder, rung.trial, rung.until_step)
        content = left.read_bytes() if not self._shares and left.is_file() else None
        if not self._shares:
            forget_checkpoints(self._folder, rung.trial)  # the next rung of the trial may be another machine's
        return result, content

    def test_score(self, rung: Rung, checkpoint: bytes | None) -> Any:
        """The score on the test data of the checkpoint that a rung left."""
        if checkpoint is not None:
            _write_checkpoint(checkpoint_path(self._folder, rung.trial, rung.until_step), checkpoint)
        return self.call("test_score", (rung,), {})

    def shares(self) -> bool:
        """Whether checkpoints are in the caller's folder as they are written."""
        return self._shares

    def close(self) -> None:
        """End the worker processes of this machine."""
        self._runner.close()


@dataclass(frozen=True, slots=True)
class _Raised:
    error: AutobatchError


class RayRunner(Runner):
    """A runner in an actor of Ray's, which is placed anew when it is lost.

    Args:
        spec: what it opens.
        home: the caller's checkpoints.
        resources: what Ray is to set aside for it, "num_cpus" and "num_gpus".
        remaining_s: seconds that a call may still take; None for no limit.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        home: _Home,
        resources: Mapping[str, float],
        remaining_s: Callable[[], float] | None = None,
    ) -> None:
        self._spec, self._home, self._resources, self._remaining_s = spec, home, dict(resources), remaining_s
        self._facts: TaskFacts | None = None
        self._device: DeviceInfo | None = None
        self._actor = self._placed()

    def _placed(self) -> Any:
        """An actor; Ray starts it when there is room."""
        self._is_shared: bool | None = None
        spec = self._spec
        if self._facts is not None:
            spec = replace(spec, worst_cases=self._facts.worst_cases)
        return ray.remote(_Host).options(**self._resources).remote(spec, self._home)

    def _get(self, answer: Any, timeout_s: float | None) -> Any:
        remaining_s = self._remaining_s() if self._remaining_s else None
        limits = [limit for limit in (timeout_s, remaining_s) if limit is not None]
        try:
            found = ray.get(answer, timeout=min(limits) if limits else None)
        except GetTimeoutError:
            self._replace()
            raise WorkerTimeout(f"no answer from the cluster within the {min(limits):.1f} s it had") from None
        except RayActorError as error:
            self._replace()
            raise WorkerDied(f"Ray lost the worker: {_first_line(error)}") from None
        except RayError as error:
            raise WorkerDied(f"Ray could not run the worker: {_first_line(error)}") from None
        if isinstance(found, _Raised):
            raise found.error
        return found

    def _replace(self) -> None:
        with suppress(RayError):
            ray.kill(self._actor)
        self._actor = self._placed()

    def _call(self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        return self._get(self._actor.call.remote(method, args, kwargs), timeout_s)

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
            device: DeviceInfo = self._call("device", timeout_s=_PLACING_S)
            self._device = device
        return self._device

    def memory(self) -> MemoryLimit:
        memory: MemoryLimit = self._call("memory")
        return memory

    def probe(self, plan: Plan, *, verdict: bool = False) -> Measurement:
        measured: Measurement = self._call("probe", plan, verdict=verdict)
        return measured

    def time(self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None) -> Measurement:
        measured: Measurement = self._call("time", plan, budget_s=budget_s, loader=loader)
        return measured

    def workload(self) -> Workload | None:
        found: Workload | None = self._call("workload")
        return found

    def matmul_flops_per_s(self, *, budget_s: float) -> float | None:
        reached: float | None = self._call("matmul_flops_per_s", budget_s=budget_s)
        return reached

    def time_evaluation(self, batch_size: int) -> float:
        return float(self._call("time_evaluation", batch_size))

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        sweep: LrSweep = self._call("sweep_lr", plan, lowest=lowest, highest=highest, steps=steps, seed=seed)
        return sweep

    def _checkpoint(self, trial: int, step: int) -> Any:
        """What has to travel to the actor, as a reference into the object store; None where nothing does."""
        if self._is_shared is None:
            self._is_shared = bool(self._get(self._actor.shares.remote(), _PLACING_S))
        path = checkpoint_path(self._home.folder, trial, step)
        return None if self._is_shared or not step or not path.is_file() else ray.put(path.read_bytes())

    def advance(self, rung: Rung) -> RungResult:
        begun = time.monotonic()
        limit_s = None if rung.limit_s is None else rung.limit_s + GRACE_S + _TRAVEL_S
        try:
            checkpoint = self._checkpoint(rung.trial, rung.start_step)
            result, left = self._get(self._actor.advance.remote(rung, checkpoint), limit_s)
        except WorkerTimeout as death:
            spent_s = time.monotonic() - begun
            return RungResult(rung=rung, outcome="timeout", message=str(death), train_s=spent_s, seconds=spent_s)
        except WorkerDied as death:
            spent_s = time.monotonic() - begun
            return RungResult(rung=rung, outcome="crashed", message=str(death), train_s=spent_s, seconds=spent_s)
        if isinstance(result, _Raised):
            raise result.error
        if left is not None:
            _write_checkpoint(checkpoint_path(self._home.folder, rung.trial, rung.until_step), left)
        travelled_s = time.monotonic() - begun - result.seconds
        ended: RungResult = replace(result, seconds=result.seconds + max(0.0, travelled_s))
        return ended

    def test_score(self, rung: Rung) -> float | None:
        try:
            checkpoint = self._checkpoint(rung.trial, rung.until_step)
            score: float | None = self._get(self._actor.test_score.remote(rung, checkpoint), None)
        except WorkerDied:  # also for want of time: what was found stands without it
            return None
        return score

    def forget(self, trial: int, before: int | None = None) -> None:
        forget_checkpoints(self._home.folder, trial, before)

    def close(self) -> None:
        with suppress(RayError):  # it has gone already
            ray.get(self._actor.close.remote(), timeout=GRACE_S)
        with suppress(RayError):
            ray.kill(self._actor)


class Cluster:
    """A connection to a Ray cluster, or one on this machine that ends with it.

    Args:
        spec: of the task; its folder is what travels.
        address: of a cluster that runs, "auto" for the one that this machine belongs to, "ray://host:10001" for one
            elsewhere; None starts one here.
        checkpoints: folder of the run's.

    Raises:
        DeviceError: there is no cluster at that address.
    """

    def __init__(self, spec: RunnerSpec, address: str | None, checkpoints: Path) -> None:
        self._spec = spec
        # Ray reports its use to its makers unless told not to; whoever runs a cluster has decided that for it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        environment: dict[str, Any] = {"py_modules": [str(Path(__file__).parents[1])]}
        if spec.path is not None:
            environment |= {"working_dir": str(spec.path.absolute().parent), "excludes": _LEFT_HERE}
        local = {} if address is not None else {"include_dashboard": False}
        try:
            ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise DeviceError(
                f"there is no Ray cluster at {address or 'this machine'}: {_first_line(error)}. Start one with "
                "`ray start --head`, or leave --address out to have one on this machine"
            ) from None
        checkpoints.mkdir(parents=True, exist_ok=True)
        self._home = _Home(folder=checkpoints.absolute(), token=uuid.uuid4().hex)
        (checkpoints / _IS_SHARED).write_text(self._home.token)

    def runners(self, remaining_s: Callable[[], float] | None = None) -> Sequence[RayRunner]:
        """One for each worker: as many as were asked for, or as the cluster has GPUs.

        Raises:
            SettingError: it has fewer.
        """
        spec, gpus = self._spec, int(ray.cluster_resources().get("GPU", 0))
        cpus = int(ray.cluster_resources().get("CPU", 1))
        asked = spec.device.strip().lower()
        on_gpu = asked == "cuda" or (asked == "auto" and gpus > 0)
        if not on_gpu and asked not in ("auto", "cpu"):
            raise SettingError(f"on a cluster a device is auto, cuda or cpu: Ray says which one; found {spec.device!r}")
        wanted = spec.workers or (gpus if on_gpu else 1)
        most = gpus if on_gpu else cpus
        if wanted > most:
            raise SettingError(
                f"a worker has a {'GPU' if on_gpu else 'core'} of its own, and the cluster has {most}; found --workers "
                f"{wanted}"
            )
        threads = max(1, cpus // wanted) if not on_gpu else 1
        resources = {"num_gpus": 1.0, "num_cpus": 1.0} if on_gpu else {"num_gpus": 0.0, "num_cpus": float(threads)}
        spec = replace(spec, device="cuda" if on_gpu else "cpu", threads=threads, workers=wanted)
        return [RayRunner(spec, self._home, resources, remaining_s) for _ in range(wanted)]

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        (self._home.folder / _IS_SHARED).unlink(missing_ok=True)
        with suppress(OSError):  # there are checkpoints
            self._home.folder.rmdir()
        ray.shutdown()


class _OnCluster(Pool):
    """All workers of a cluster, which is left when they are closed."""

    def __init__(self, cluster: Cluster, remaining_s: Callable[[], float] | None) -> None:
        self._cluster = cluster
        super().__init__(cluster.runners(remaining_s))

    def close(self) -> None:
        super().close()
        self._cluster.close()


def open_cluster(
    spec: RunnerSpec, address: str | None, *, checkpoints: Path, remaining_s: Callable[[], float] | None = None
) -> Pool:
    """The workers of a cluster as one runner; see `Cluster` for the arguments and what is raised."""
    cluster = Cluster(spec, address, checkpoints)
    try:
        return _OnCluster(cluster, remaining_s)
    except BaseException:
        cluster.close()
        raise


def _write_checkpoint(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except ReportError as error:
        raise StorageError(str(error)) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
