"""Whether a step went on after memory had run out, because Python code caught the error.

"Halve the batch if it does not fit" is a habit in long trainings. In a measurement, a step that trained on a part of
its batch needs little memory and little time, so its size would seem the largest and the fastest. It leaves the same
gradients as a whole step, so the error itself must be noticed.

Python calls a trace function for each error that enters a frame, caught there or not. Ours is set by `PyEval_SetTrace`
and not by `sys.settrace`, which until Python 3.12 keeps a copy of each call's arguments until the call returns
(Python/sysmodule.c, `call_trampoline`). That would hold tensors that the step has released, and so change the peak.
Each call takes some microseconds more, so only some steps of a training are watched.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, cast

import torch

from ..errors import first_line

# Include/cpython/pystate.h
_CALL, _EXCEPTION = 0, 1
# An error that torch itself catches is not the task's: an autotuner tries kernels that need too much.
_TORCH = str(Path(torch.__file__).parent) + os.sep
# After this many calls and returns a step is no longer watched, so that watching does not slow down a compilation.
# Measured: 2 to 6 us each, so about a second at most. A step of a transformer of 48 layers has about 20,000.
_MOST_EVENTS = 200_000
# The share of the time that watching may take, for steps that are not watched on request.
_SHARE = 0.005


class Caught:
    """Watches steps for an out-of-memory error that does not leave them.

    Args:
        is_out_of_memory: whether an error is one.

    Attributes:
        errors: each error that was caught, with its place.
    """

    def __init__(self, is_out_of_memory: Callable[[BaseException], bool]) -> None:
        self.errors: list[str] = []
        self._is_out_of_memory = is_out_of_memory
        self._due_at = 0.0
        self._events = 0
        # The last error: its identity (the error itself would hold the step's tensors), its message if it is an
        # out-of-memory, and the last frame that it reached.
        self._whose = 0
        self._on_its_way: str | None = None
        self._place = "", 0

    @property
    def is_due(self) -> bool:
        """Whether the next step should be watched, if only some steps are."""
        return perf_counter() >= self._due_at

    def expect(self) -> None:
        """Watch the next step, whenever the last one was watched."""
        self._due_at = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile each error is looked at; not where somebody else traces, such as a debugger."""
        if sys.gettrace() is not None or not is_possible():
            yield
            return
        with self._traced():
            yield

    @contextmanager
    def _traced(self) -> Iterator[None]:
        begun, before, hook = perf_counter(), len(self.errors), sys.unraisablehook
        self._events = 0
        self._on_its_way, self._whose = None, 0

        # What is raised in our function cannot be let out from there: a signal's handler may begin in it, and where the
        # task recurses to the end there is no room for it. A method of a list's needs less room than a function.
        unraised: list[Any] = []
        sys.unraisablehook = unraised.append
        _SET_TRACE(_CALLBACK, ctypes.py_object(self))
        is_through = False
        try:
            yield
            is_through = True
        finally:
            if cast(object, sys.gettrace()) is self:
                _SET_TRACE(None, None)
            sys.unraisablehook = hook
            if is_through:
                self._note()  # the error did not leave the step
            else:
                del self.errors[before:]  # an error that left the step is no caught one
            # As if watched steps took no longer than others.
            self._due_at = perf_counter() + (perf_counter() - begun) / _SHARE
            for unraisable in unraised:
                # From Python 3.13 on the function is named in words.
                if unraisable.object is not _on_event and repr(_on_event) not in (unraisable.err_msg or ""):
                    hook(unraisable)
                elif unraisable.exc_value is not None and unraisable.exc_type is not RecursionError:
                    raise unraisable.exc_value

    def see_none(self, what: str) -> None:
        """Check that nothing was caught so far.

        Args:
            what: what was watched, for the message.

        Raises:
            torch.OutOfMemoryError: an error was caught.
        """
        if self.errors:
            raise torch.OutOfMemoryError(
                f"memory ran out in {what}, which went on with something else ({self.errors[0]}). Let the error out: "
                "the memory of such a step says nothing about a whole one"
            )

    def event(self, frame: FrameType, what: int, argument: int | None) -> None:
        """Called by Python for a call, a return or an error in a frame."""
        self._events += 1
        if what == _CALL:
            frame.f_trace_lines = False
            if self._events > _MOST_EVENTS:
                _SET_TRACE(None, None)
        elif what == _EXCEPTION and argument is not None:
            held: Any = ctypes.py_object.from_buffer(ctypes.c_void_p(argument))
            _, error, traceback = held.value
            if traceback is None or isinstance(error, (StopIteration, GeneratorExit)):  # the end of a loop
                return
            if traceback.tb_next is None or id(error) != self._whose:
                self._note()
                self._whose = id(error)
                self._on_its_way = first_line(error) if self._is_out_of_memory(error) else None
            self._place = frame.f_code.co_filename, traceback.tb_lineno

    def _note(self) -> None:
        """Record the last error at the last place that it reached."""
        path, line = self._place
        if self._on_its_way is not None and not path.startswith(_TORCH):
            self.errors.append(f"{self._on_its_way}; {path}, line {line}, caught it")
        self._on_its_way = None


def _on_event(watch: Caught, frame: FrameType, what: int, argument: int | None) -> None:
    watch.event(frame, what, argument)


@functools.cache
def is_possible() -> bool:
    """Whether this Python tells a trace function of C's what is relied on here.

    It was run on Python 3.11 and 3.13, whose tracing is another one underneath. On any other it is tried, on an error
    that is caught and on one that is not an out-of-memory. Where that does not come out, nothing is watched: a step
    that goes on after an out-of-memory is then found only if it leaves no gradient (`swallowed`).
    """
    if platform.machine() not in _MACHINES:
        return False
    watch = Caught(lambda error: isinstance(error, MemoryError))
    with watch._traced():
        for error in (MemoryError(), KeyError()):
            with suppress(MemoryError, KeyError):
                raise error
    return len(watch.errors) == 1


# Python takes any answer but 0 for an error. ctypes leaves that of a function of `int` as it was in memory where the
# function raised, and Python then crashed. A function without an answer comes back with 0, libffi's own code for
# "void", which stands where an `int` would (src/x86/unix64.S, src/aarch64/sysv.S).
_MACHINES = ("x86_64", "aarch64", "arm64")  # the last is what macOS calls the second
_TRACE_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.py_object, ctypes.py_object, ctypes.c_int, ctypes.c_void_p)
_CALLBACK = _TRACE_FUNCTION(_on_event)
_SET_TRACE = ctypes.pythonapi.PyEval_SetTrace
