"""How a command ends: its exit code, and one message where something went wrong."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

import click

from ..errors import (
    AutobatchError,
    NoValidResult,
    StartError,
    StorageError,
    WorkerDied,
)
from ..render.document import visible_lines

# Exit codes: 2 is what could be known before training; click itself exits 2 for a wrong usage.
FOUND_NOTHING, FAILED, REFUSED, INTERRUPTED = 3, 1, 2, 130


def end_when_told() -> None:
    """Have SIGTERM and SIGHUP, as Ctrl-C, end what is under way with what was found kept."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # else it is not to end with its terminal: nohup
        signal.signal(signal.SIGHUP, _hung_up)


def _terminated(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _hung_up(signum: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell sends it and the system as well: once is enough
    raise KeyboardInterrupt


def leave(end: SystemExit) -> NoReturn:
    """End this process as `end` would, but without taking apart object by object what the system takes back at once.

    Measured: of a `tune` that is an hour of nothing else a quarter of a second, with Optuna and rich loaded; on a core
    that ten processes share 2.8 s, after the last reading of the ledger and so beyond the budget. Where torch is loaded
    in this process it may have a device open, which is left as torch wants it.
    """
    if "torch" in sys.modules or not isinstance(end.code, int):
        raise end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # it has gone, or there never was one
            stream.flush()
    os._exit(end.code)


def exit_code(error: AutobatchError) -> int:
    if isinstance(error, NoValidResult):
        return FOUND_NOTHING
    return FAILED if isinstance(error, WorkerDied | StorageError | StartError) else REFUSED


def fail_with_traceback(code: int) -> NoReturn:
    import traceback

    click.echo(visible_lines(traceback.format_exc()), err=True, nl=False)
    sys.exit(code)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"autobatch: {visible_lines(message)}", err=True)
    sys.exit(code)
