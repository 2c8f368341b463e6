"""The command line: it reads flags, runs a stage, prints results to stdout and everything else to stderr.

This module imports only click, so that `--help` and `--version` answer at once. Each command imports what it runs.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import click

from .._version import __version__
from ..errors import AutobatchError, SettingError, text_of
from ..render.document import visible, visible_lines
from ..searching.schedulers.table import SEARCHES
from ..searching.storage.url import shown_words, without_users
from .defaults import ConfiguredGroup
from .exits import (
    FAILED,
    FOUND_NOTHING,
    INTERRUPTED,
    end_when_told,
    exit_code,
    fail,
    fail_with_traceback,
)
from .options import (
    CEILING,
    DEVICE,
    FEWEST_STEPS,
    LATEST,
    MEMORY,
    NPROC,
    OBJECTIVE,
    OUTPUT,
    PRECISIONS,
    TASK,
    Several,
    SpreadingCommand,
    option,
)
from .output import (
    check_output,
    progress_on_stderr,
    show,
    show_bench,
    show_document,
    show_report,
)
from .streams import (
    end_as_pipes_do,
    is_closed_pipe,
    keep_streams,
    lost_result,
)
from .torchrun import on_each_rank, refuse_torchrun

IMPORTED_S = time.monotonic()
INTERPRETER_S = (
    5.0  # what it takes to start one and to import this, at most, on a slow disk. Assumed: usual are tenths.
)

# The shell splits an unquoted URL at its first space.
ONE_WORD = "What follows --storage is one word: put a URL in quotes, '...'"


@click.group(cls=ConfiguredGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="autobatch %(version)s")
def cli() -> None:
    """Find the batch size and learning rate that give a PyTorch task its best score in the time you have.

    Flags can also be set in [tool.autobatch] of pyproject.toml or in AUTOBATCH_ variables, except those of "clean" and
    "report --markdown". A flag overrides a variable, and a variable overrides the file.
    """


@cli.command()
@click.argument("task", type=click.Path(path_type=Path), metavar="MODEL.py", required=False)
@option("--budget", default="10m", metavar="TIME", help="Wall time for the whole run: 90s, 10m, 1h30m.")
@option(
    "--train-time",
    metavar="TIME",
    help="How long your real training takes. Trials are compared after this long if the budget allows it.",
)
@DEVICE
@MEMORY
@NPROC
@option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train N trials at the same time, one GPU each. Default: one trial on every GPU.",
)
@option("--seed", type=int, default=0, help="Seed for every random choice.")
@option("--search", type=click.Choice(tuple(SEARCHES)), default="auto", help="The method that chooses the next trial.")
@option(
    "--warm-start",
    type=click.Path(path_type=Path),
    metavar="REPORT.json",
    multiple=True,
    help="Try first what this earlier run chose.",
)
@option(
    "--max-trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Try at most N configurations. Default: as many as the budget allows.",
)
@option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Where workers run: on this machine, or on a Ray cluster with one GPU each.",
)
@option(
    "--address", metavar="ADDRESS", help="Address of the Ray cluster: auto, ray://host:10001. Default: start one here."
)
@option(
    "--storage",
    metavar="URL",
    show_default=False,  # a URL from pyproject.toml may contain a password
    help="Also record the run in this database: postgresql+psycopg://user@host/name, or any other URL for Optuna.",
)
@option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the run. Default: .autobatch/<task>/<time>/",
)
@option(
    "--resume",
    is_flag=False,
    flag_value=LATEST,
    metavar="[RUN]",
    help="Continue a stopped run: this folder, or the task's latest. It keeps its settings; a flag changes one.",
)
@option("--force", is_flag=True, help="Resume even if the task, its data, the device or a setting has changed.")
@option(
    "--keep-checkpoints",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Keep the checkpoints of the N best trials in the run's folder.",
)
@option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write the report as Markdown.")
@OUTPUT
def tune(task: Path | None, **options: Any) -> None:
    """Find the batch size, learning rate and accumulation steps with the best validation score."""
    context = click.get_current_context()
    resume = options["resume"]
    if task is None and resume is not None and resume.endswith(".py"):  # --resume model.py
        task, resume = Path(resume), LATEST
    if task is None:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    if options["storage"] is not None and task.suffix != ".py":  # not quoted: it may be the rest of a password
        raise click.UsageError(f"a task is a Python file, MODEL.py. {ONE_WORD}")
    refuse_torchrun("tune")
    os.environ.pop("AUTOBATCH_STORAGE", None)  # no process started here inherits a password
    from ..core.files import check_writable

    for file in (options["output"], options["markdown"]):
        if file is not None:
            check_writable(file)
    from .. import api
    from ..core.units import parse_duration

    names: tuple[str, ...]
    names = ("budget", "train_time", "device", "memory_limit", "headroom", "seed", "search", "warm_start", "max_trials")
    names += ("keep_checkpoints", "nproc", "workers", "storage", "engine", "address")
    settings = {name: options[name] for name in names}
    if resume is not None:  # the run keeps its settings, except for flags typed beside --resume
        source = click.core.ParameterSource
        # A run's folder does not decide where data is sent. These two are often set in the environment.
        anywhere = {source.COMMANDLINE, source.ENVIRONMENT, source.DEFAULT_MAP}
        counts = {name: anywhere if name in ("storage", "address") else {source.COMMANDLINE} for name in settings}
        settings = {k: given for k, given in settings.items() if context.get_parameter_source(k) in counts[k]}
    budget_s = None if resume is not None else parse_duration(options["budget"])
    named = options["run_dir"] if resume in (None, LATEST) else resume
    how = shlex.join(["autobatch", "tune", str(task), "--resume", *([] if named is None else [str(named)])])
    with progress_on_stderr(options, budget_s=budget_s, how_to_resume=how) as listen:
        report = api.tune(
            task,
            **settings,
            run_dir=options["run_dir"],
            resume=resume == LATEST or resume or False,
            force=options["force"],
            command=typed_command(),
            on_progress=listen,
            started_s=time.monotonic() - since_start_s(),
        )
    if options["markdown"] is not None:
        from ..core.files import write_whole
        from ..render.content import report_document
        from ..render.markdown import to_markdown

        write_whole(options["markdown"], to_markdown(report_document(report)))
    show_report(report, options)
    if report.lost_device:
        fail(f"ended early because no device was left to train on. The results are kept. Continue with: {how}", FAILED)
    if report.interrupted:
        fail(f"interrupted. Continue with: {how}", INTERRUPTED)
    if report.is_unanswered:
        fail(
            "nothing could be compared with the baseline because the other trials failed: see the warnings",
            FOUND_NOTHING,
        )


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path(".autobatch"), metavar="[FOLDER]")
@OUTPUT
def runs(folder: Path, **options: Any) -> None:
    """List the runs of `tune`: the status of each, the budget spent, and the best score so far."""
    check_output(options)
    from ..render.terminal import print_runs
    from ..runs.runs import run_folders, summary

    show([summary(path).to_json() for path in run_folders(folder)], print_runs, options)


@cli.command()
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, metavar="[RUN]...")
@click.option("--finished", is_flag=True, help="Delete all finished runs in .autobatch.")
@click.option("--all", "everything", is_flag=True, help="Delete all runs in .autobatch that are not running.")
def clean(folders: tuple[Path, ...], finished: bool, everything: bool) -> None:
    """Delete runs of `tune`: their journals, checkpoints, logs and reports, and nothing else."""
    if bool(folders) + finished + everything != 1:
        raise click.UsageError("name the runs to delete, or give --finished or --all; `autobatch runs` lists them")
    from ..runs.runs import remove_run, run_folders, summary

    if not folders:
        wanted = {"finished"} if finished else {"finished", "interrupted", "unreadable"}
        folders = tuple(path for path in run_folders(Path(".autobatch")) if summary(path).status in wanted)
    for path in folders:
        remove_run(path)
        click.echo(f"deleted {visible(str(path))}")
    if not folders:
        click.echo("there is nothing to delete")


@cli.command("max-batch")
@TASK
@DEVICE
@MEMORY
@NPROC
@option(
    "--mode",
    type=click.Choice(["training", "inference"]),
    default="training",
    help="What must fit: training steps, or forward passes.",
)
@option("--multiple-of", type=click.IntRange(min=1), default=1, metavar="N", help="Only answer with multiples of N.")
@option("--power-of-two", is_flag=True, help="Only answer with powers of two.")
@CEILING
@option(
    "--accumulation-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Micro-batches per optimizer step. The answer is the size of one. Default: the baseline's.",
)
@option("--prove", is_flag=True, help="Also run the next larger size in its own process, and show that it fails.")
@option(
    "--soak",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also train N steps on real batches before accepting a size.",
)
@option(
    "--record", type=click.Path(path_type=Path), metavar="FILE", help="Save all probes to a file that can be replayed."
)
@OUTPUT
def max_batch(task: Path, **options: Any) -> None:
    """Find the largest micro-batch per process that fits in memory, by running it.

    Under torchrun every rank runs the probes, and the answer fits on all of them.
    """
    check_output(options)
    from .. import api

    with on_each_rank() as is_first:
        with progress_on_stderr(options if is_first else {**options, "quiet": True}) as listen:
            found = api.find_max_batch(
                task,
                device=options["device"],
                memory_limit=options["memory_limit"],
                headroom=options["headroom"],
                mode=options["mode"],
                multiple_of=options["multiple_of"],
                power_of_two=options["power_of_two"],
                max_batch_size=options["max_batch_size"],
                accumulation_steps=options["accumulation_steps"],
                prove=options["prove"],
                soak=options["soak"],
                record=options["record"],
                nproc=options["nproc"],
                on_progress=listen,
            )
        from ..render.terminal import print_max_batch

        result = found.to_json()
        if options["prove"]:
            result["why_not_proved"] = found.why_not_proved
        if is_first:
            show(result, print_max_batch, options)


@cli.command(cls=SpreadingCommand)
@TASK
@option("--budget", default="30s", metavar="TIME", help="Time for measuring speed, in each compute mode.")
@DEVICE
@MEMORY
@NPROC
@CEILING
@OBJECTIVE
@PRECISIONS
@OUTPUT
def profile(task: Path, **options: Any) -> None:
    """Measure samples per second at several micro-batch sizes, and find where speed saturates.

    With --precisions, it compares compute modes, and shows how each changes the loss.
    """
    refuse_torchrun("profile")
    check_output(options)
    from .. import api
    from ..core.compute_mode import parse_arms

    shared = {
        name: options[name] for name in ("budget", "device", "memory_limit", "headroom", "max_batch_size", "objective")
    }
    with progress_on_stderr(options) as listen:
        if options["precisions"]:
            if options["nproc"] > 1:
                raise SettingError(
                    "--precisions compares compute modes in one process: leave out --nproc or --precisions"
                )
            arms = api.profile_arms(task, parse_arms(options["precisions"]), on_progress=listen, **shared)
        else:
            curve = api.profile(task, nproc=options["nproc"], on_progress=listen, **shared)
    if options["precisions"]:
        from ..measuring.arms import compared
        from ..render.terminal import print_arms

        show(compared(arms), print_arms, options)
        if not any(arm.curve for arm in arms):
            sys.exit(FOUND_NOTHING)
        return
    from ..render.terminal import print_profile

    show(curve.to_json(), print_profile, options)


@cli.command(cls=SpreadingCommand)
@option(
    "--models",
    cls=Several,
    belongs=lambda word: True,
    metavar="NAME ...",
    help="Names of standard models, or task files. Default: all standard models.",
)
@PRECISIONS
@option("--quick", is_flag=True, help="Spend less time on each model. On a CPU, also use only fp32 and less memory.")
@DEVICE
@MEMORY
@CEILING
@OBJECTIVE
@option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write the report as an HTML page.")
@OUTPUT
def bench(**options: Any) -> None:
    """Measure well-known models on this device, and write a report that can be compared with others.

    After each model the report is written to --output, by default benchmarks/results/<device>/<date>.json. To continue
    after a stop, run the same command again, even on another day.
    """
    refuse_torchrun("bench")
    if options["html"] is not None:
        from ..core.files import check_writable

        check_writable(options["html"])
    from .. import api

    try:
        with progress_on_stderr(options) as listen:
            report, path = api.bench(
                options["models"],
                precisions=options["precisions"],
                quick=options["quick"],
                device=options["device"],
                memory_limit=options["memory_limit"],
                headroom=options["headroom"],
                max_batch_size=options["max_batch_size"],
                objective=options["objective"],
                output=options["output"],
                command=typed_command(),
                on_progress=listen,
            )
    except KeyboardInterrupt:
        fail(
            "interrupted. The report's file has the results so far: run the same command again to continue", INTERRUPTED
        )
    show_bench(report, path, options)
    if report.found_nothing:
        sys.exit(FOUND_NOTHING)


@cli.command("find-lr")
@TASK
@option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Micro-batch size. Default: the baseline's micro-batch and accumulation steps.",
)
@option(
    "--rule",
    type=click.Choice(["min/10", "steepest", "valley"]),
    default="min/10",
    help="The rule that reads a rate from the curve.",
)
@option(
    "--steps",
    type=click.IntRange(min=FEWEST_STEPS),
    default=100,
    help="Number of optimizer steps, one per learning rate.",
)
@option("--seed", type=int, default=0, help="Seed for initialisation and data order.")
@DEVICE
@OUTPUT
def find_lr(task: Path, **options: Any) -> None:
    """Run a learning-rate range test on a new model."""
    refuse_torchrun("find-lr")
    check_output(options)
    from .. import api

    with progress_on_stderr(options) as listen:
        curve = api.find_lr(
            task,
            batch_size=options["batch_size"],
            rule=options["rule"],
            steps=options["steps"],
            seed=options["seed"],
            device=options["device"],
            on_progress=listen,
        )
    from ..render.terminal import print_lr

    show(curve.to_json(), print_lr, options)


@cli.command()
@click.argument("files", type=click.Path(path_type=Path), metavar="REPORT.json...", nargs=-1, required=True)
@click.option(
    "--markdown", "as_markdown", is_flag=True, help="Print it as Markdown."
)  # tune's AUTOBATCH_MARKDOWN names a file
@option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write it as an HTML page.")
@OUTPUT
def report(files: tuple[Path, ...], as_markdown: bool, html: Path | None, **options: Any) -> None:
    """Show a stored report, or compare several reports of "bench" with the first."""
    if as_markdown and (options["as_json"] or options["output"] is not None):
        raise click.UsageError("--markdown prints only Markdown: leave out --json and --output, or --markdown")
    check_output(options)
    if html is not None:
        from ..core.files import check_writable

        check_writable(html)
    from ..render.stored import read_reports

    result, document = read_reports(files)
    if html is not None:
        from ..core.files import write_whole
        from ..render.html import to_html

        write_whole(html, to_html(document))
    if as_markdown:
        from ..render.markdown import to_markdown

        click.echo(to_markdown(document))
    else:
        show_document(result, document, options)


@cli.command()
@OUTPUT
def doctor(**options: Any) -> None:
    """List the devices of this machine, what is known about them, and why a fact is missing."""
    check_output(options)
    from ..core.codec import device_to_json
    from ..devices import describe_devices
    from ..render.terminal import print_devices

    devices = describe_devices()
    show([device_to_json(device) for device in devices], lambda _, console: print_devices(devices, console), options)


def typed_command() -> str:
    """The command as it was typed, without what only the database may know."""
    return shlex.join(["autobatch", *shown_words(sys.argv[1:])])


def without_urls(message: str) -> str:
    """A message of click's, without words that may be part of a database's URL."""
    if any(word.partition("=")[0] == "--storage" for word in sys.argv[1:]):
        took = f"Got more words than this command takes. {ONE_WORD}"
        message = re.sub(
            "^(Error: )Got unexpected extra argument.*", rf"\1{took}", message, flags=re.MULTILINE | re.DOTALL
        )
    return without_users(message)


def since_start_s() -> float:
    """Seconds since this program started, so that the budget pays for its start-up.

    The process may be older than the program: `exec` keeps the process, and `bash -c "pip install ... && autobatch
    tune ..."` ends with an `exec`. Time beyond what an interpreter needs to import this module was another program's.
    """
    since_import_s = time.monotonic() - IMPORTED_S
    age_s = process_age_s()
    return age_s if age_s - since_import_s <= INTERPRETER_S else since_import_s


def process_age_s() -> float:
    """Seconds since this process began; 0 if the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii") as stat, open("/proc/uptime", encoding="ascii") as uptime:
            started_ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
            return max(0.0, float(uptime.read().split()[0]) - started_ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def main() -> None:
    """Run the command line. docs/commands.md lists the exit codes."""
    end_when_told()
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
