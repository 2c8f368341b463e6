"""Who trains the segments of a race: one runner, one segment after the other, or several runners, each on its own
device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ..core.runner import Runner
from ..core.segment import SegmentResult, TrainSegment
from ..errors import DeviceError, TaskError, first_line

# Segments of at least two trials that crash in a row on one worker before the worker is taken to be the cause. Assumed:
# one more than the attempts of a single trial.
_MOST_CRASHES = 4


class Crew(ABC):
    """Takes segments while one of its workers is idle, and returns each result as it comes."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Workers that can still take a segment."""

    @property
    @abstractmethod
    def busy(self) -> int:
        """Segments that were submitted and have not been returned."""

    @property
    def has_idle(self) -> bool:
        """Whether another segment can be submitted now."""
        return self.busy < self.size

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each worker that was lost."""
        return ()

    @abstractmethod
    def submit(self, segment: TrainSegment) -> None:
        """Have an idle worker train a segment."""

    @abstractmethod
    def next(self) -> tuple[TrainSegment, Future[SegmentResult]]:
        """The segment that ends first, and its future, which is done. At least one must be under way.

        The future holds the error if `Runner.advance` raised one.
        """


class Alone(Crew):
    """One runner, which trains in this thread when `next` is called."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._segment: TrainSegment | None = None
        self._is_lost = False

    @property
    def size(self) -> int:
        return 0 if self._is_lost else 1

    @property
    def busy(self) -> int:
        return int(self._segment is not None)

    def submit(self, segment: TrainSegment) -> None:
        self._segment = segment

    def next(self) -> tuple[TrainSegment, Future[SegmentResult]]:
        segment, self._segment = self._segment, None
        assert segment is not None
        done: Future[SegmentResult] = Future()
        try:
            done.set_result(self._runner.advance(segment))
        except Exception as error:  # noqa: BLE001  # the caller gets it when it takes the result, as from any future
            self._is_lost = isinstance(error, DeviceError)
            done.set_exception(error)
        return segment, done


class Several(Crew):
    """Several runners, each with its own thread. An idle one takes the next segment.

    A runner that raises `DeviceError` has lost its device and gets no more segments; the error is in the future. A
    runner also gets no more if its segments of different trials keep crashing while there are other runners: its
    machine is then the likely cause. The same holds if its segments end in errors of the task that no other runner has
    seen, although others have trained as many segments.

    Args:
        runners: of one task, on devices of one kind. They can read one another's checkpoints. The caller closes them.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._idle = list(runners)
        self._threads = ThreadPoolExecutor(len(runners), thread_name_prefix="autobatch-worker")
        self._running: dict[Future[SegmentResult], tuple[TrainSegment, Runner]] = {}
        self._crashed: dict[int, list[int]] = {}  # by runner: the trials of its latest crashes in a row
        self._trained: dict[int, int] = {}  # by runner: segments that ended well
        self._blamed: set[int] = set()  # runners on which the task has raised an error
        self._remarks: list[str] = []
        self._is_closed = False

    @property
    def size(self) -> int:
        return len(self._idle) + len(self._running)

    @property
    def busy(self) -> int:
        return len(self._running)

    @property
    def at_work(self) -> tuple[Runner, ...]:
        """The runners that still take segments."""
        return (*self._idle, *(runner for _, runner in self._running.values()))

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(self._remarks)

    def submit(self, segment: TrainSegment) -> None:
        # After a crash, try again on another runner if there is one.
        runner = min(self._idle, key=lambda one: len(self._crashed.get(id(one), ())))
        self._idle.remove(runner)
        self._running[self._threads.submit(self._advance, runner, segment)] = segment, runner

    def _advance(self, runner: Runner, segment: TrainSegment) -> SegmentResult:
        if self._is_closed:  # `advance` would start the worker again
            return SegmentResult(segment=segment, outcome="crashed", message="the run was ended")
        return runner.advance(segment)

    def next(self) -> tuple[TrainSegment, Future[SegmentResult]]:
        done = next(iter(wait(self._running, return_when=FIRST_COMPLETED).done))
        segment, runner = self._running.pop(done)
        error = done.exception()
        if isinstance(error, DeviceError):
            self._remarks.append(f"a device was lost while trial {segment.trial} trained on it: {error}")
            return segment, done
        if isinstance(error, TaskError):
            self._blamed.add(id(runner))
        if isinstance(error, TaskError) or (error is None and done.result().outcome == "crashed"):
            trials = self._crashed.setdefault(id(runner), [])
            trials.append(segment.trial)
            if len(trials) >= _MOST_CRASHES and len(set(trials)) > 1 and self.size and self._is_the_cause(runner):
                message = done.result().message if error is None else first_line(error)
                self._remarks.append(f"a worker got no more trials after {len(trials)} crashes in a row: {message}")
                return segment, done
        else:
            self._crashed.pop(id(runner), None)
            self._trained[id(runner)] = self._trained.get(id(runner), 0) + 1
        self._idle.append(runner)
        return segment, done

    def _is_the_cause(self, runner: Runner) -> bool:
        """Whether the runner, and not the task, is to blame for segments that keep failing."""
        if id(runner) not in self._blamed:
            return True
        others = max((count for other, count in self._trained.items() if other != id(runner)), default=0)
        return self._blamed == {id(runner)} and others >= _MOST_CRASHES

    def close(self) -> None:
        """Take no more segments. Segments under way end when their runner is closed."""
        self._is_closed = True
        self._threads.shutdown(wait=False)
