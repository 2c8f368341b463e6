"""Who trains the rungs of a race: one runner, each in its turn, or several at once, each on a device of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from .errors import DeviceError
from .plan import Rung, RungResult, Runner


class Crew(ABC):
    """Takes rungs as long as one of its workers is idle, and gives back what came of each as it ends."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Workers that can still take a rung."""

    @property
    @abstractmethod
    def busy(self) -> int:
        """Rungs that were submitted and have not been given back."""

    @property
    def has_idle(self) -> bool:
        """Whether another rung can be submitted now."""
        return self.busy < self.size

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each worker that was lost."""
        return ()

    @abstractmethod
    def submit(self, rung: Rung) -> None:
        """Have an idle worker train a rung."""

    @abstractmethod
    def next(self) -> tuple[Rung, Future[RungResult]]:
        """The rung that ends first, and its future, which is done; only where one is under way.

        What `Runner.advance` raised is in the future. A rung whose device is gone has "crashed" while others are left.
        """


class Alone(Crew):
    """One runner, which trains in this thread while its result is waited for."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._rung: Rung | None = None

    @property
    def size(self) -> int:
        return 1

    @property
    def busy(self) -> int:
        return int(self._rung is not None)

    def submit(self, rung: Rung) -> None:
        self._rung = rung

    def next(self) -> tuple[Rung, Future[RungResult]]:
        rung, self._rung = self._rung, None
        assert rung is not None
        done: Future[RungResult] = Future()
        try:
            done.set_result(self._runner.advance(rung))
        except Exception as error:  # noqa: BLE001  # whoever takes the result gets it, as from any future
            done.set_exception(error)
        return rung, done


class Several(Crew):
    """Several runners, each waited for in a thread of its own; whoever is idle takes the next rung.

    A runner that raises `DeviceError` has lost its device and gets no further rung.

    Args:
        runners: of one task on like devices, which read one another's checkpoints. They stay their owner's to close.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._idle = list(runners)
        self._threads = ThreadPoolExecutor(len(runners), thread_name_prefix="autobatch-worker")
        self._running: dict[Future[RungResult], tuple[Rung, Runner]] = {}
        self._remarks: list[str] = []

    @property
    def size(self) -> int:
        return len(self._idle) + len(self._running)

    @property
    def busy(self) -> int:
        return len(self._running)

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(self._remarks)

    def submit(self, rung: Rung) -> None:
        runner = self._idle.pop(0)
        self._running[self._threads.submit(runner.advance, rung)] = rung, runner

    def next(self) -> tuple[Rung, Future[RungResult]]:
        done = next(iter(wait(self._running, return_when=FIRST_COMPLETED).done))
        rung, runner = self._running.pop(done)
        lost = done.exception()
        if not isinstance(lost, DeviceError):
            self._idle.append(runner)
            return rung, done
        self._remarks.append(f"a device was lost while trial {rung.trial} trained on it: {lost}")
        if not self.size:
            return rung, done
        crashed: Future[RungResult] = Future()
        crashed.set_result(RungResult(rung=rung, outcome="crashed", message=str(lost)))
        return rung, crashed

    def close(self) -> None:
        """Take no more rungs; what is under way ends with its runner."""
        self._threads.shutdown(wait=False)
