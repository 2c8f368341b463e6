"""Where the checkpoints of a run lie: one file for each trial and step, so that a segment can run again.

A segment reads the file of its first step and writes one of its last step. The older file is deleted only when the
result is in the run's record: if the process is killed in between, the segment runs again from its first step, with the
same result. `worker/trial_state.py` reads the contents of a checkpoint; this module is what is known without torch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path


def checkpoint_path(folder: Path, trial: int, step: int) -> Path:
    """The file of a trial that has taken `step` optimizer steps."""
    return folder / f"trial-{trial:05d}-{step:09d}.pt"


def part_of_rank(path: Path, rank: int) -> Path:
    """The file of what only rank `rank` has, beside the checkpoint at `path`, which rank 0 writes."""
    return path.with_name(f"{path.name}.rank-{rank}")


def is_whole(path: Path) -> bool:
    """Whether the file can be a checkpoint: an archive with its list of contents, which is written last.

    A file that was copied in part has none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def forget_checkpoints(folder: Path, trial: int, before: int | None = None) -> None:
    """Delete the files of a trial, also half-written ones; with `before`, only those from before that step."""
    for path in folder.glob(f"trial-{trial:05d}-*.pt*"):
        if before is None or path.name < checkpoint_path(folder, trial, before).name:
            path.unlink(missing_ok=True)
