"""`autobatch apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import OUTPUT, Word, examples, option
from .output import check_output, show

# As snippets.FORMATS: `--help` does not import that module.
FORMATS = ("flags", "yaml", "env", "python", "lightning", "hf")


@click.command(
    epilog=examples(
        "autobatch apply report.json",
        "autobatch apply report.json --names batch_size=bs,lr=learning_rate",
        "autobatch apply .autobatch/model/2026-01-31T12-00-00 --as hf",
    )
)
@click.argument("report", type=click.Path(path_type=Path), metavar="REPORT.json")
@option(
    "--as",
    "form",
    type=Word(FORMATS),
    default="flags",
    help="What to print: for a script of your own, or for a Trainer of Lightning or Hugging Face.",
)
@option(
    "--names",
    metavar="FIELD=NAME,...",
    help="Your own names: batch_size=bs,lr=learning_rate. A field without a name (precision=) is left out.",
)
@OUTPUT
def apply(report: Path, form: str, names: str | None, **options: Any) -> None:
    """Print what a report of "tune" recommends, as it is typed or pasted into your own training.

    REPORT.json may also be the folder of a run. Fields are batch_size, accumulation_steps, lr and precision, and, where
    they are given a name, effective_batch_size and ranks.
    """
    check_output(options)
    from ..errors import ReportError
    from ..render import snippets
    from ..render.content import headline
    from ..reports.bench_report import BenchReport, load_report

    stored = load_report(report)
    if isinstance(stored, BenchReport):
        raise ReportError(f'{report} is a report of "autobatch bench": only what "autobatch tune" found can be applied')
    named = snippets.parse_names(names or "")
    if stored.typed is not None and "precision" in snippets.FORMATS[form].renamed:
        named.setdefault("precision", "")  # a command has its own, unknown to us
    found = snippets.snippet(stored.config, form, named)
    show(dict(found.values), lambda _, console: click.echo("\n".join(found.lines)), options)
    if not options["quiet"]:
        click.echo(headline(stored), err=True)
