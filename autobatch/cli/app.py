"""The command line: it reads flags, runs a stage, prints results to stdout and everything else to stderr.

This module imports only click, so that `--help` and `--version` answer at once. Each command imports what it runs.
"""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import click

from .._version import __version__
from ..errors import AutobatchError, text_of
from ..render.document import visible_lines
from .apply import apply
from .bench import bench
from .defaults import ConfiguredGroup
from .exits import FAILED, INTERRUPTED, end_on_signals, exit_code, fail, fail_with_traceback
from .options import examples
from .stages import find_lr, max_batch, profile
from .stored import clean, doctor, report, runs
from .streams import end_as_pipes_do, is_closed_pipe, keep_streams, lost_result
from .tune import tune
from .words import without_urls


@click.group(
    cls=ConfiguredGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "autobatch tune model.py --budget 30m",
        "autobatch max-batch model.py",
        "autobatch apply report.json",
        "autobatch tune --help",
    ),
)
@click.version_option(__version__, message="autobatch %(version)s")
def cli() -> None:
    """Find the batch size and learning rate that give a PyTorch task its best score in the time you have.

    Flags can also be set in [tool.autobatch] of pyproject.toml or in AUTOBATCH_ variables, except those of "clean" and
    "report --markdown". A flag overrides a variable, and a variable overrides the file.
    """


for _command in (tune, runs, clean, max_batch, profile, bench, find_lr, report, apply, doctor):
    cli.add_command(_command)


def main() -> None:
    """Run the command line. docs/commands.md lists the exit codes."""
    end_on_signals()
    keep_streams()
    try:
        run()
    except SystemExit as end:
        lost = lost_result()
        if lost is None or end.code:
            raise
        if is_closed_pipe(lost):
            end_as_pipes_do()
        fail(f"the result cannot be printed: {lost.strerror}", FAILED)


def run() -> NoReturn:
    """Run the command line. If something is wrong, print one message and exit."""
    noted = {"debug": False}
    try:
        cli(standalone_mode=False, obj=noted)
        sys.exit(0)
    except (click.Abort, KeyboardInterrupt):  # click raises either
        fail("interrupted before there was any result", INTERRUPTED)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        click.echo(visible_lines(without_urls(told.getvalue())), err=True, nl=False)
        sys.exit(error.exit_code)
    except AutobatchError as error:
        if noted["debug"]:
            fail_with_traceback(exit_code(error))
        fail(_with_warnings(error), exit_code(error))
    except Exception as error:  # noqa: BLE001  # the last boundary: report our own bugs as bugs
        if noted["debug"]:
            fail_with_traceback(FAILED)
        what = f"{type(error).__name__}: {text_of(error)}"
        if isinstance(error, OSError | MemoryError):  # usually the system refused something, which is no bug
            fail(f"{what}\nThis system refused something that autobatch needs. --debug says where.", FAILED)
        fail(f"{what}\nThis is a bug in autobatch, not in your task. Run again with --debug for all of it.", FAILED)


def _with_warnings(error: AutobatchError) -> str:
    """The message of an error, and below it the warnings of the check, which may be the reason."""
    warned = [f"- {warning}" for warning in error.warnings]
    return "\n".join([str(error), *(["Before that, the check of the task had warned:"] if warned else []), *warned])
