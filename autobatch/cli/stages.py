"""The stages of `tune` as commands of their own: `max-batch`, `profile`, `find-lr`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..errors import SettingError
from .exits import FOUND_NOTHING
from .options import (
    CEILING,
    COMMAND_TO_PROBE,
    DEVICE,
    FEWEST_STEPS,
    MEMORY,
    NPROC,
    OBJECTIVE,
    OUTPUT,
    PRECISIONS,
    TASK,
    SpreadingCommand,
    Word,
    examples,
    given_task,
    option,
)
from .output import check_output, progress_on_stderr, show
from .torchrun import on_each_rank, refuse_torchrun


@click.command(
    "max-batch",
    epilog=examples(
        "autobatch max-batch model.py",
        "autobatch max-batch model.py --memory-limit 8GiB --prove",
        "autobatch max-batch model.py --mode inference --power-of-two",
        'autobatch max-batch --command "python train.py --batch-size {batch_size}"',
    ),
)
@click.argument("task", type=click.Path(path_type=Path), metavar="MODEL.py", required=False)
@COMMAND_TO_PROBE
@DEVICE
@MEMORY
@NPROC
@option(
    "--mode",
    type=Word(["training", "inference"]),
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
def max_batch(task: Path | None, **options: Any) -> None:
    """Find the largest micro-batch per process that fits in memory, by running it.

    Under torchrun every rank runs the probes, and the answer fits on all of them.
    """
    check_output(options)
    given = given_task(task, options)
    from .. import api

    with on_each_rank() as is_first:
        with progress_on_stderr(options if is_first else {**options, "quiet": True}) as listen:
            found = api.find_max_batch(
                given,
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


@click.command(
    cls=SpreadingCommand,
    epilog=examples(
        "autobatch profile model.py",
        "autobatch profile model.py --precisions fp32 bf16 bf16+channels_last",
        "autobatch profile model.py --objective energy --json",
    ),
)
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
    from ..core.compute_mode import parse_compute_modes

    shared = {
        name: options[name] for name in ("budget", "device", "memory_limit", "headroom", "max_batch_size", "objective")
    }
    with progress_on_stderr(options) as listen:
        if options["precisions"]:
            if options["nproc"] > 1:
                raise SettingError(
                    "--precisions compares compute modes in one process: leave out --nproc or --precisions"
                )
            from ..bench.verbs import profile_compute_modes

            compute_modes = profile_compute_modes(
                task, parse_compute_modes(options["precisions"]), on_progress=listen, **shared
            )
        else:
            curve = api.profile(task, nproc=options["nproc"], on_progress=listen, **shared)
    if options["precisions"]:
        from ..measuring.compute_modes import compared
        from ..render.terminal import print_compute_modes

        show(compared(compute_modes), print_compute_modes, options)
        if not any(compute_mode.curve for compute_mode in compute_modes):
            sys.exit(FOUND_NOTHING)
        return
    from ..render.terminal import print_profile

    show(curve.to_json(), print_profile, options)


@click.command(
    "find-lr",
    epilog=examples("autobatch find-lr model.py", "autobatch find-lr model.py --batch-size 256 --rule valley"),
)
@TASK
@option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Micro-batch size. Default: the baseline's micro-batch and accumulation steps.",
)
@option(
    "--rule",
    type=Word(["min/10", "steepest", "valley"]),
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
