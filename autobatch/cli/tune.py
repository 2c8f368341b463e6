"""`autobatch tune`."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..searching.schedulers.table import SEARCHES
from ..searching.storage.url import HIDDEN, shown_url
from .exits import FAILED, FOUND_NOTHING, INTERRUPTED, fail
from .exports import HTML, TENSORBOARD, check_exports, write_page, write_tensorboard
from .options import (
    COMMAND_TO_TUNE,
    DEVICE,
    LATEST,
    MEMORY,
    NPROC,
    OUTPUT,
    Word,
    examples,
    given_task,
    option,
    typed_task,
)
from .output import check_output, progress_on_stderr, show_document, show_report
from .start import since_start_s
from .torchrun import refuse_torchrun
from .words import ONE_WORD, typed_command

if TYPE_CHECKING:
    from ..reports.report import Report
    from ..tasks.command import Command


@click.command(
    epilog=examples(
        "autobatch tune model.py --budget 30m",
        "autobatch tune model.py --budget 2h --train-time 12h --html report.html",
        "autobatch tune model.py --budget 1h --dry-run",
        "autobatch tune model.py --resume",
    )
)
@click.argument("task", type=click.Path(path_type=Path), metavar="MODEL.py", required=False)
@COMMAND_TO_TUNE
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
@option("--search", type=Word(tuple(SEARCHES)), default="auto", help="The method that chooses the next trial.")
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
    type=Word(["local", "ray"]),
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
@option("--dry-run", is_flag=True, help="Show what would run, and how long each stage would get. Train nothing.")
@option(
    "--keep-checkpoints",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Keep the checkpoints of the N best trials in the run's folder.",
)
@option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write the report as Markdown.")
@HTML
@TENSORBOARD
@OUTPUT
def tune(task: Path | None, **options: Any) -> None:
    """Find the batch size, learning rate and accumulation steps with the best validation score."""
    context = click.get_current_context()
    resume = options["resume"]
    if task is None and resume is not None and resume.endswith(".py"):  # --resume model.py
        task, resume = Path(resume), LATEST
    given = given_task(task, options)
    if options["dry_run"]:
        _dry_run(given, options)
        return
    # What was typed is not quoted: it may be the rest of a password.
    if options["storage"] is not None and isinstance(given, Path) and given.suffix != ".py":
        raise click.UsageError(f"a task is a Python file, MODEL.py. {ONE_WORD}")
    refuse_torchrun("tune")
    os.environ.pop("AUTOBATCH_STORAGE", None)  # no process started here inherits a password
    from ..core.files import check_writable

    for file in (options["output"], options["markdown"]):
        if file is not None:
            check_writable(file)
    check_exports(options)
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
    how = shlex.join(
        ["autobatch", "tune", *typed_task(given, options), "--resume", *([] if named is None else [str(named)])]
    )
    with progress_on_stderr(options, budget_s=budget_s, how_to_resume=how) as listen:
        report = api.tune(
            given,
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
    if options["html"] is not None:
        from ..render.page_content import page_document

        write_page(page_document(report), options)
    write_tensorboard(report, options)
    show_report(report, options)
    if not options["quiet"] and (opens := dashboard(report, options["storage"])) is not None:
        click.echo(f"All trials in a browser: {opens}", err=True)
    if report.lost_device:
        fail(f"ended early because no device was left to train on. The results are kept. Continue with: {how}", FAILED)
    if report.not_compared is not None:
        click.echo(
            f"autobatch: nothing was compared. With more time, this run goes on with: {how} --budget TIME", err=True
        )
    if report.interrupted:
        fail(f"interrupted. Continue with: {how}", INTERRUPTED)
    if report.is_unanswered:
        fail(
            "nothing could be compared with the baseline because the other trials failed: see the warnings",
            FOUND_NOTHING,
        )


def _dry_run(task: Path | Command, options: dict[str, Any]) -> None:
    """Show what the same command without --dry-run would do."""
    refuse_torchrun("tune")
    for flag, is_given in (("--resume", options["resume"] is not None), ("--engine ray", options["engine"] == "ray")):
        if is_given:
            raise click.UsageError(f"--dry-run looks at a new run on this machine: leave out {flag}, or --dry-run")
    os.environ.pop("AUTOBATCH_STORAGE", None)  # as in a run
    check_output(options)
    from .. import api
    from ..render.dry_run_content import dry_run_document

    names = ("budget", "train_time", "device", "memory_limit", "headroom", "seed", "search", "max_trials", "nproc")
    given = {name: options[name] for name in (*names, "workers")}
    with progress_on_stderr(options):
        found = api.dry_run(task, **given, started_s=time.monotonic() - since_start_s()).to_json()
    show_document(found, dry_run_document(found), options)


def dashboard(report: Report, storage: str | None) -> str | None:
    """The command that shows the run in optuna-dashboard; None without a database where that is not installed."""
    if storage is not None:
        if click.get_current_context().get_parameter_source("storage") is click.core.ParameterSource.ENVIRONMENT:
            return 'optuna-dashboard "$AUTOBATCH_STORAGE"'
        shown = shown_url(storage)
        hidden = f" ({HIDDEN} stands for what is not shown here)" if HIDDEN in shown else ""
        return f"optuna-dashboard {shlex.quote(shown)}{hidden}"
    if report.folder is None or shutil.which("optuna-dashboard") is None:
        return None
    from ..runs.run_folder import JOURNAL

    return f"optuna-dashboard {shlex.quote(str(report.folder / JOURNAL))}"
