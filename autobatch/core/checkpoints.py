"""Where the checkpoints of a run lie: one file for each trial and step, so that a segment may be run again.

A segment reads the file of the step it starts from and leaves one of the step it ends at. The older one goes only when
the result is in the run's record: whatever is killed in between, the segment is run again from where it began, with the
same result. What is in a checkpoint is trial_state.py's to read; that one is all there is known without torch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path


def checkpoint_path(folder: Path, trial: int, step: int) -> Path:
    """The file of a trial that has taken `step` optimizer steps."""
    return folder / f"trial-{trial:05d}-{step:09d}.pt"


def part_of_rank(path: Path, rank: int) -> Path:
    """Where rank `rank` keeps what is its own, beside a checkpoint at `path` that rank 0 writes."""
    return path.with_name(f"{path.name}.rank-{rank}")


def is_whole(path: Path) -> bool:
    """Whether there is a file that can be a checkpoint: an archive with its list of contents, which is written last.

    One that was copied in part has none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def forget_checkpoints(folder: Path, trial: int, before: int | None = None) -> None:
    """Delete what is kept of a trial, half-written files too; with `before`, only what lies before that step."""
    for path in folder.glob(f"trial-{trial:05d}-*.pt*"):
        if before is None or path.name < checkpoint_path(folder, trial, before).name:
            path.unlink(missing_ok=True)
