"""What a script leaves at `{checkpoint}`, kept as one file for each trial and step, as every other checkpoint is.

A script may write there what it likes: a file, several that begin with that name, a folder. All of it is put into one
archive, so that whoever looks after checkpoints (`core/checkpoints.py`) finds what they know.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from ...core.checkpoints import checkpoint_path, is_whole
from ...errors import CheckpointError, StorageError

NAME = "checkpoint"  # in a folder of its own


class Kept:
    """The checkpoints of a command's trials.

    Args:
        folder: where they are kept.
        work: the folder that a run has its own in, empty when it begins.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work

    @property
    def path(self) -> Path:
        """What is put in the place of `{checkpoint}`."""
        return self.work / NAME

    def clear(self) -> None:
        """Nothing to go on from."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)

    def restore(self, trial: int, step: int) -> None:
        """Put what a trial left at that step where a run looks for it.

        Raises:
            CheckpointError: there is nothing.
        """
        self.clear()
        kept = checkpoint_path(self.folder, trial, step)
        if not is_whole(kept):
            raise CheckpointError(f"trial {trial} has no checkpoint at step {step} to go on from")
        with zipfile.ZipFile(kept) as archive:
            archive.extractall(self.work)

    @property
    def has_been_left(self) -> bool:
        """Whether the run has left anything."""
        return any(self.work.iterdir())

    def keep(self, trial: int, step: int) -> None:
        """Keep what the run has left as the trial's at that step.

        Raises:
            StorageError: there is no room for it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = checkpoint_path(self.folder, trial, step)
        partial = kept.with_name(f"{kept.name}.part")
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(self.work.rglob("*")):
                    archive.write(path, path.relative_to(self.work))
            partial.replace(kept)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StorageError(f"{kept} cannot be written: {error.strerror}") from None
