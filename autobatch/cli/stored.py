"""What is on the disk and in the machine: `runs`, `clean`, `report`, `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..render.document import visible
from .exports import HTML, TENSORBOARD, check_exports, write_page, write_tensorboard
from .options import OUTPUT, examples
from .output import check_output, show, show_document


@click.command(epilog=examples("autobatch runs", "autobatch runs --json"))
@click.argument("folder", type=click.Path(path_type=Path), default=Path(".autobatch"), metavar="[FOLDER]")
@OUTPUT
def runs(folder: Path, **options: Any) -> None:
    """List the runs of `tune`: the status of each, the budget spent, and the best score so far."""
    check_output(options)
    from ..render.terminal import print_runs
    from ..runs.runs import run_folders, summary

    show([summary(path).to_json() for path in run_folders(folder)], print_runs, options)


@click.command(epilog=examples("autobatch clean --finished", "autobatch clean .autobatch/model/2026-01-31T12-00-00"))
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


@click.command(
    epilog=examples(
        "autobatch report report.json --html report.html",
        "autobatch report .autobatch/model/2026-01-31T12-00-00 --markdown",
        "autobatch report old_card.json new_card.json",
    )
)
@click.argument("files", type=click.Path(path_type=Path), metavar="REPORT.json...", nargs=-1, required=True)
@click.option(
    "--markdown", "as_markdown", is_flag=True, help="Print it as Markdown."
)  # tune's AUTOBATCH_MARKDOWN names a file
@HTML
@TENSORBOARD
@OUTPUT
def report(files: tuple[Path, ...], as_markdown: bool, **options: Any) -> None:
    """Show a stored report, or compare several reports of "bench" with the first.

    REPORT.json may also be the folder of a run of "tune".
    """
    if as_markdown and (options["as_json"] or options["output"] is not None):
        raise click.UsageError("--markdown prints only Markdown: leave out --json and --output, or --markdown")
    check_output(options)
    check_exports(options)
    from ..errors import ReportError
    from ..render.stored import read_reports

    stored = read_reports(files)
    write_page(stored.page, options)
    if options["tensorboard"] is not None:
        if stored.tuned is None:
            raise ReportError('--tensorboard is for a report of "autobatch tune": it has trials, these have none')
        write_tensorboard(stored.tuned, options)
    if as_markdown:
        from ..render.markdown import to_markdown

        click.echo(to_markdown(stored.document))
    else:
        show_document(stored.result, stored.document, options)


@click.command(epilog=examples("autobatch doctor", "autobatch doctor --json"))
@OUTPUT
def doctor(**options: Any) -> None:
    """List the devices of this machine, what is known about them, and why a fact is missing."""
    check_output(options)
    from ..core.codec import device_to_json
    from ..devices import describe_devices
    from ..render.terminal import print_devices

    devices = describe_devices()
    show([device_to_json(device) for device in devices], lambda _, console: print_devices(devices, console), options)
