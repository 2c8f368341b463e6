"""How a script that reads a command line is tuned as it stands: for whoever passes it in the place of a task file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

# What says that a file reads a command line: argparse, click, typer, fire, absl, sys.argv itself.
_READS_ONE = re.compile(r"add_argument\(|ArgumentParser|@(?:click|app)\.|\btyper\b|\bfire\.Fire|absl|\bsys\.argv\b")
_FLAG = re.compile(r"""["'](--[A-Za-z][\w-]*)""")
# How people spell the flags of each place of a command, without dashes.
_SPELLED = {
    "batch_size": ("batchsize", "bs", "batch", "trainbatchsize", "perdevicetrainbatchsize", "microbatchsize"),
    "lr": ("lr", "learningrate"),
    "accumulation_steps": ("accum", "accumulationsteps", "gradaccum", "gradientaccumulationsteps", "accumulate"),
    "seed": ("seed",),
    "max_steps": ("maxsteps", "steps", "numsteps", "maxiters", "iters", "iterations", "maxiterations"),
}


def command_hint(path: Path) -> str | None:
    """What to type to tune a script as it stands; None for a file that reads no command line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not _READS_ONE.search(text):
        return None
    flags = {re.sub("[-_]", "", flag).lower(): flag for flag in _FLAG.findall(text)}
    found = {place: next((flags[name] for name in names if name in flags), None) for place, names in _SPELLED.items()}
    found = {"batch_size": found["batch_size"] or "--batch-size", "lr": found["lr"] or "--lr"} | {
        place: flag for place, flag in found.items() if flag is not None
    }
    words = " ".join(f"{flag} {{{place}}}" for place, flag in found.items())
    script = shlex.quote(str(_from_here(path)))
    return (
        "A script that reads a command line is tuned as it stands by --command:\n"
        f'  autobatch tune --command "python {script} {words}" --score "val_acc=([0-9.]+)" --maximize '
        '--baseline "batch_size=32 lr=1e-3"'
    )


def _from_here(path: Path) -> Path:
    """The path as it is typed in this folder."""
    try:
        return path.relative_to(Path.cwd())
    except (OSError, ValueError):  # this folder was removed, or the file lies elsewhere
        return path
