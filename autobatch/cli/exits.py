"""How a command ends: its exit code, and one message if something went wrong."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

import click

from ..errors import AutobatchError, BudgetTooShort, NoValidResult, StartError, StorageError, WorkerDied
from ..render.document import visible_lines

# Exit codes. 2 means that the command was refused before training; click also exits with 2 for wrong usage.
FOUND_NOTHING, FAILED, REFUSED, INTERRUPTED = 3, 1, 2, 130


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, with its results kept."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # otherwise nohup keeps it running without its terminal
        signal.signal(signal.SIGHUP, _hung_up)


def _terminated(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _hung_up(signum: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell and the system both send it; once is enough
    raise KeyboardInterrupt


def leave(end: SystemExit) -> NoReturn:
    """End this process as `end` would, but without destroying every object, because the system frees them at once.

    Measured: destroying them takes a quarter of a second with Optuna and rich loaded, and 2.8 s on a core that ten
    processes share. That is after the ledger's last reading, and so beyond the budget. If torch is loaded here it may
    have a device open, and then the process ends as usual.
    """
    if "torch" in sys.modules or not isinstance(end.code, int):
        raise end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the stream is closed, or there never was one
            stream.flush()
    os._exit(end.code)


def exit_code(error: AutobatchError) -> int:
    if isinstance(error, NoValidResult | BudgetTooShort):
        return FOUND_NOTHING
    return FAILED if isinstance(error, WorkerDied | StorageError | StartError) else REFUSED


def fail_with_traceback(code: int) -> NoReturn:
    import traceback

    click.echo(visible_lines(traceback.format_exc()), err=True, nl=False)
    sys.exit(code)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"autobatch: {visible_lines(message)}", err=True)
    sys.exit(code)
