"""`autobatch bench`."""

from __future__ import annotations

import sys
from typing import Any

import click

from .exits import FOUND_NOTHING, INTERRUPTED, fail
from .exports import HTML, check_exports
from .options import CEILING, DEVICE, MEMORY, OBJECTIVE, OUTPUT, PRECISIONS, Several, SpreadingCommand, examples, option
from .output import progress_on_stderr, show_bench
from .torchrun import refuse_torchrun
from .words import typed_command


@click.command(
    cls=SpreadingCommand,
    epilog=examples(
        "autobatch bench",
        "autobatch bench --quick --models resnet50 gpt2_small",
        "autobatch bench --precisions fp32 bf16 --html device.html",
    ),
)
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
@HTML
@OUTPUT
def bench(**options: Any) -> None:
    """Measure well-known models on this device, and write a report that can be compared with others.

    After each model the report is written to --output, by default benchmarks/results/<device>/<date>.json. To continue
    after a stop, run the same command again, even on another day.
    """
    refuse_torchrun("bench")
    check_exports(options)
    from ..bench.verbs import bench as run_bench

    try:
        with progress_on_stderr(options) as listen:
            report, path = run_bench(
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
