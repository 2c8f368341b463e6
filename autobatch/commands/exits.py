"""How a command ends: its exit code, and one message where something went wrong."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from ..errors import AutobatchError, NoValidResult, StorageError, WorkerDied

# Exit codes: 2 is what could be known before training; click itself exits 2 for a wrong usage.
FOUND_NOTHING, FAILED, REFUSED, INTERRUPTED = 3, 1, 2, 130


def terminated(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def exit_code(error: AutobatchError) -> int:
    if isinstance(error, NoValidResult):
        return FOUND_NOTHING
    return FAILED if isinstance(error, WorkerDied | StorageError) else REFUSED


def fail_with_traceback(code: int) -> NoReturn:
    import traceback

    traceback.print_exc()
    sys.exit(code)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"autobatch: {message}", err=True)
    sys.exit(code)
