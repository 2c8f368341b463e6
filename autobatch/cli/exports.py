"""What a command writes beside its result: a page, and files for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import option

if TYPE_CHECKING:
    from ..render.document import Document
    from ..reports.report import Report

HTML = option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write the report as an HTML page.")
TENSORBOARD = option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write every trial to this folder for TensorBoard's HPARAMS tab (pip install tensorboard).",
)


def check_exports(options: Mapping[str, Any]) -> None:
    """Find out now whether these can be written, and not after the work that fills them."""
    from ..core.files import check_writable

    if options["html"] is not None:
        check_writable(options["html"])
    if options.get("tensorboard") is not None:
        from ..reports.tensorboard import check_tensorboard

        check_tensorboard(options["tensorboard"])


def write_page(document: Document, options: Mapping[str, Any]) -> None:
    """Write the page, where one is wanted."""
    if options["html"] is not None:
        from ..core.files import write_whole
        from ..render.html import to_html

        write_whole(options["html"], to_html(document))


def write_tensorboard(report: Report, options: Mapping[str, Any]) -> None:
    """Write the files for TensorBoard, where they are wanted, and say what shows them."""
    if options["tensorboard"] is not None:
        from ..reports.tensorboard import write_hparams

        write_hparams(report, options["tensorboard"])
