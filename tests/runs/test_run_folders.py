"""Folders of runs from anywhere: what is in them is neither waited for nor deleted over a link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autobatch.runs.run_folder import RunFolder, RunState
from autobatch.runs.settings import TuneSettings

from ..cli.test_cli import autobatch, refused

pytestmark = pytest.mark.usefixtures("ready_python")


def stored(folder: Path) -> Path:
    """The folder of a run that was interrupted at its start."""
    opened = RunFolder.made(folder, "model")
    opened.save(RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="model")))
    opened.close()
    return folder


@pytest.mark.parametrize("name", ["lock", "journal.log", "worker.log", "report.json"])
def test_a_pipe_in_the_folder_of_a_run_is_not_waited_for(name: str, tmp_path: Path) -> None:
    path = stored(tmp_path / ".autobatch" / "model" / "one")
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    listed = autobatch("runs", "--json", cwd=tmp_path)
    assert [found["status"] for found in json.loads(listed.stdout)] == [
        "unreadable" if name == "journal.log" else "interrupted"
    ]
    told = refused(autobatch("clean", path, cwd=tmp_path))
    assert f"{name} is no file, as it is in the folder of a run" in told
    assert (path / "run.json").exists()


@pytest.mark.parametrize("link", [".autobatch", ".autobatch/model"])
@pytest.mark.parametrize("absolute", [False, True])
def test_no_run_is_deleted_over_a_link(link: str, absolute: bool, tmp_path: Path) -> None:
    path = stored(tmp_path / "elsewhere" / "model" / "one")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(path.parents[1] if link == ".autobatch" else path.parent)
    named = Path(".autobatch/model/one")
    told = refused(autobatch("clean", tmp_path / named if absolute else named, cwd=tmp_path))
    assert f"{link} is a link, and nothing is deleted over one: name the run as {path}" in told
    assert autobatch("clean", "--all", cwd=tmp_path).stdout == "there is nothing to delete\n"
    assert (path / "run.json").exists()
    assert autobatch("clean", path, cwd=tmp_path).returncode == 0
    assert not path.exists()
