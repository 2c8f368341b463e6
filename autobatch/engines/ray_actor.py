"""In a Ray actor: the runner of a task on that machine, and how its checkpoints and errors travel.

Ray sends this class to other machines. It imports Ray only where it needs the cluster.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.checkpoints import checkpoint_path, forget_checkpoints
from ..core.files import write_whole
from ..core.segment import TrainSegment
from ..errors import AutobatchError, DeviceError, ReportError, StorageError
from ..runs.run_folder import SHARED
from .remote import RemoteRunner
from .served import RunnerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The caller's folder of checkpoints, and a file in it by which a worker recognises the same folder."""

    folder: Path
    token: str


class Host:
    """In an actor: the runner of a task on this machine."""

    def __init__(self, spec: RunnerSpec, home: Home) -> None:
        self._shares = _sees(home)
        self._folder = home.folder if self._shares else Path(tempfile.mkdtemp(prefix="autobatch-"))
        spec = replace(spec, workers=_workers_here(spec))
        if spec.path is not None:  # the actor's working directory is the task's folder
            spec = replace(spec, path=Path(spec.path.name).absolute())
        self._runner = RemoteRunner(replace(spec, checkpoints=self._folder))

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the runner returns or raises. Our own errors travel as data, and are raised as they are on arrival."""
        return self._answer(lambda: getattr(self._runner, method)(*args, **kwargs))

    def _answer(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises. A full disk of this machine is a fault of this machine."""
        try:
            return work()
        except StorageError as error:
            if self._shares:
                return Raised(error)
            return Raised(DeviceError(f"{socket.gethostname()}, where Ray placed a worker, has no room: {error}"))
        except AutobatchError as error:
            return Raised(error)

    def advance(self, segment: TrainSegment, checkpoint: bytes | None) -> Any:
        """The result of a segment, and its checkpoint if that has to travel."""
        result = self._answer(lambda: self._on_checkpoint("advance", segment, segment.start_step, checkpoint))
        left = checkpoint_path(self._folder, segment.trial, segment.until_step)
        content = left.read_bytes() if not self._shares and left.is_file() else None
        if not self._shares:
            forget_checkpoints(self._folder, segment.trial)  # another machine may train the next segment
        return result, content

    def test_score(self, segment: TrainSegment, checkpoint: bytes | None) -> Any:
        """The score on the test data of the checkpoint that a segment left."""
        return self._answer(lambda: self._on_checkpoint("test_score", segment, segment.until_step, checkpoint))

    def _on_checkpoint(self, method: str, segment: TrainSegment, step: int, checkpoint: bytes | None) -> Any:
        if checkpoint is not None:
            write_checkpoint(checkpoint_path(self._folder, segment.trial, step), checkpoint)
        return getattr(self._runner, method)(segment)

    def shares(self) -> bool:
        """Whether checkpoints are written directly into the caller's folder."""
        return self._shares

    def close(self) -> None:
        """End the worker processes of this machine, and delete their files."""
        self._runner.close()
        if not self._shares:
            shutil.rmtree(self._folder, ignore_errors=True)


def _sees(home: Home) -> bool:
    """Whether this process can use the caller's folder: the same folder, and not another one of that name."""
    try:
        return (home.folder / SHARED).read_text() == home.token and os.access(home.folder, os.W_OK)
    except OSError:  # it does not exist here, or belongs to another user
        return False


@dataclass(frozen=True, slots=True)
class Raised:
    """One of our errors that travels as data, and is raised on arrival."""

    error: AutobatchError


def most_on_node(workers: int, threads: int, cores: int) -> int:
    """How many of `workers` with `threads` cores each fit on a node of `cores`; at least one."""
    return max(1, min(workers, cores // threads))


def _workers_here(spec: RunnerSpec) -> int | None:
    """How many workers of this run may come to share this machine; outside of a cluster, the spec's number.

    Ray places them, and places lost ones again. So each takes only the share of memory that it would have if all that
    fit were here.
    """
    import ray  # always installed in an actor; elsewhere an extra

    if not ray.is_initialized():
        return spec.workers
    here = ray.get_runtime_context().get_node_id()
    cores = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["NodeID"] == here)
    return most_on_node(spec.workers or 1, spec.threads, cores)


def write_checkpoint(path: Path, content: bytes) -> None:
    """Write a checkpoint that has travelled.

    Raises:
        StorageError: there is no room for it.
    """
    try:
        write_whole(path, content)
    except ReportError as error:
        raise StorageError(str(error)) from None
