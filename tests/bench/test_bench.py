"""`autobatch bench`, as a user types it: the report in its file, resumed where it stood; and `profile --precisions`."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from autobatch.bench import verbs
from autobatch.bench.file import file_for, folder_for, with_earlier
from autobatch.bench.run import BenchSettings, chosen_models, default_compute_modes, default_memory_limit
from autobatch.bench.standard_models import standard_models
from autobatch.cli.app import cli
from autobatch.core.facts import DeviceInfo
from autobatch.errors import ReportError, SettingError
from autobatch.render.terminal import print_compute_modes
from autobatch.reports.bench_report import BenchReport, Cell

from ..cli.test_cli import MINIMAL, TASKS, autobatch
from ..helpers.processors import trains_lstm_in

pytestmark = pytest.mark.usefixtures("ready_python")

QUICK = ("--quick", "--max-batch-size", 16, "--device", "cpu")


def bench(folder: Path, *more: object, code: int = 0) -> BenchReport:
    done = autobatch("bench", "--models", MINIMAL, *more, *QUICK, "--output", folder / "r.json", cwd=folder)
    assert done.returncode == code, done.stderr
    return BenchReport.load(folder / "r.json")


def test_a_bench_measures_each_model_in_each_way_and_says_where_the_report_is(tmp_path: Path) -> None:
    found = autobatch(
        "bench", "--models", MINIMAL, TASKS / "lstm.py", "--precisions", "fp32", "bf16", *QUICK, "--json", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    path = Path(re.search(r"The whole report is in (\S+):", found.stderr).group(1))  # type: ignore[union-attr]
    assert path.parts[:2] == ("benchmarks", "results")
    report = BenchReport.load(tmp_path / path)
    assert json.loads(found.stdout) == report.to_json()
    assert [(cell.model, cell.compute_mode) for cell in report.cells] == [
        ("minimal", "fp32"),
        ("minimal", "bf16"),
        ("lstm", "fp32"),
        ("lstm", "bf16"),
    ]
    has_lstm = trains_lstm_in(torch.bfloat16)
    assert [cell.outcome for cell in report.cells] == ["ok", "ok", "ok", "ok" if has_lstm else "failed"]
    if not has_lstm:
        assert "torch does not support on this processor in this precision" in (report.cells[3].message or "")
    first, second = report.cells[:2]
    assert first.max_batch is not None
    assert first.throughput is not None
    assert first.max_batch["batch_size"] <= 16
    assert first.parameters
    assert first.flops_per_sample
    assert first.matmul_flops_per_s
    recommended = first.throughput["recommended_batch_size"]
    point = next(p for p in first.throughput["measurements"] if p["batch_size"] == recommended)
    assert set(point["phases_s"]) == {"copy", "forward", "backward", "optimizer"}
    assert first.flops_per_s == pytest.approx(first.flops_per_sample * point["batch_size"] / point["fitted_step_s"])
    assert first.loss_difference is None
    assert second.loss_difference is not None
    assert 0 < abs(second.loss_difference["largest"]) < 0.1
    assert report.size == "small"
    assert report.quick
    assert report.planned == 4
    assert any("64 MiB" in warning for warning in report.warnings)
    assert "2 of 4: minimal in bf16, about" in found.stderr
    lines = found.stderr.splitlines()
    began, ended = (next(i for i, line in enumerate(lines) if words in line) for words in ("in fp32", "up to batch"))
    within = [line.partition("bench: minimal in fp32: ")[2] for line in lines[began + 1 : ended]]
    assert within[0].startswith("batch 2: ok")  # a probe
    sizes = [line.partition(":")[0] for line in within if line.endswith("samples/s")]
    assert len(sizes) == len(set(sizes)) >= 1  # each size once, though each is timed again and again
    assert report.requested == (("minimal", "fp32"), ("minimal", "bf16"), ("lstm", "fp32"), ("lstm", "bf16"))
    assert report.settings == {
        "memory_limit_bytes": 64 << 20,
        "max_batch_size": 16,
        "headroom": 0.05,
        "threads": report.device.threads,
    }
    assert str(MINIMAL.parent) not in json.dumps([cell["source"] for cell in report.to_json()["cells"]])
    assert [cell.losses and cell.losses["steps"] for cell in report.cells] == [10, 10, 10, 10 if has_lstm else None]


@pytest.mark.usefixtures("steady_steps")
def test_a_bench_is_drawn_as_an_overview_and_as_a_page(tmp_path: Path) -> None:
    ask = ("bench", "--models", MINIMAL, *QUICK, "--output", tmp_path / "r.json", "--html", tmp_path / "r.html")
    done = autobatch(*ask, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Overview" in done.stdout
    assert "minimal" in done.stdout
    assert "How it was measured" not in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "How it was measured" in (tmp_path / "r.html").read_text()
    whole = autobatch("report", tmp_path / "r.json", cwd=tmp_path)
    assert "How it was measured" in whole.stdout


@pytest.mark.usefixtures("steady_steps")
def test_a_bench_that_was_ended_goes_on_where_it_stood(tmp_path: Path) -> None:
    whole = bench(tmp_path, "--precisions", "fp32", "bf16")
    ended = replace(whole, cells=whole.cells[:1])
    ended.save(tmp_path / "r.json")
    again = bench(tmp_path, "--precisions", "fp32", "bf16")
    assert again.cells[0] == whole.cells[0]
    assert again.cells[1].compute_mode == "bf16"
    assert again.cells[1] != whole.cells[1]  # measured anew
    assert again.cells[1].loss_difference is not None  # against losses in fp32 that the file does not hold
    assert again.created == whole.created
    assert bench(tmp_path, "--precisions", "fp32", "bf16").cells == again.cells
    more = bench(tmp_path, "--precisions", "fp16")
    assert [cell.compute_mode for cell in more.cells] == ["fp32", "bf16", "fp16"]
    assert more.planned == 3


@pytest.mark.usefixtures("steady_steps")
def test_what_failed_is_told_and_run_again(tmp_path: Path) -> None:
    found = bench(tmp_path, "--precisions", "tf32", code=3)  # all that was tried failed
    assert found.cells[0].outcome == "failed"
    assert found.cells[0].message == "tf32 is a mode of NVIDIA's tensor cores; cpu has none: use bf16"
    mended = replace(found.cells[0], message="another reason")
    replace(found, cells=(mended,)).save(tmp_path / "r.json")
    assert bench(tmp_path, "--precisions", "tf32", code=3).cells[0].message == found.cells[0].message
    both = bench(tmp_path, "--precisions", "tf32", "fp32")
    assert [(cell.compute_mode, cell.outcome) for cell in both.cells] == [("tf32", "failed"), ("fp32", "ok")]
    alone = bench(tmp_path, "--precisions", "fp32")
    assert {(cell.compute_mode, cell.outcome) for cell in alone.cells} == {
        ("tf32", "failed"),
        ("fp32", "ok"),
    }  # still told
    assert bench(tmp_path, "--precisions", "tf32", code=3).planned == 2  # what was there before is none of its answers


@pytest.mark.usefixtures("steady_steps")
@pytest.mark.parametrize("broken_first", [True, False])
def test_a_model_that_is_broken_is_a_failed_cell_wherever_it_is_named(tmp_path: Path, broken_first: bool) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('not today')\n")
    models = [broken, MINIMAL] if broken_first else [MINIMAL, broken]
    done = autobatch("bench", "--models", *models, *QUICK, "--output", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = {cell.model: cell for cell in BenchReport.load(tmp_path / "r.json").cells}
    assert (cells["broken"].outcome, cells["minimal"].outcome) == ("failed", "ok")
    assert "the import of broken.py failed: RuntimeError: not today" in (cells["broken"].message or "")


@pytest.mark.usefixtures("steady_steps")
def test_a_task_file_that_holds_something_else_is_measured_again(tmp_path: Path) -> None:
    """Another file of the same name, or a module beside it edited; the same file in another folder is the same."""
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        width = 32 if folder == "b" else 16
        (tmp_path / folder / "model.py").write_text(
            "from sizes import WIDTH\n" + MINIMAL.read_text().replace("8, 16", "8, WIDTH").replace("16, 3", "WIDTH, 3")
        )
        (tmp_path / folder / "sizes.py").write_text(f"WIDTH = {width}\n")

    def parameters(folder: str, *more: object) -> tuple[dict[str, int | None], str]:
        ask = ("bench", "--models", f"{folder}/model.py", *more, *QUICK, "--output", "r.json")
        done = autobatch(*ask, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return {cell.compute_mode: cell.parameters for cell in BenchReport.load(tmp_path / "r.json").cells}, done.stderr

    told = "r.json has model from a task file that has changed since: it is measured again"
    assert parameters("a", "--precisions", "fp32", "bf16")[0] == {"fp32": 195, "bf16": 195}
    again, stderr = parameters("c", "--precisions", "fp32", "bf16")
    assert again == {"fp32": 195, "bf16": 195}
    assert "2 of 2 are in r.json" in stderr
    assert told not in stderr
    other, stderr = parameters("b")  # one mode: the other's figures were of the other file, and are gone
    assert other == {"fp32": 387}
    assert told in stderr
    (tmp_path / "b" / "sizes.py").write_text("WIDTH = 64\n")
    assert parameters("b")[0] == {"fp32": 771}


@pytest.mark.usefixtures("steady_steps")
def test_a_report_of_other_settings_is_refused_with_both(tmp_path: Path) -> None:
    bench(tmp_path)
    ask = ("bench", "--models", MINIMAL, "--quick", "--device", "cpu", "--output", "r.json")
    whole = (tmp_path / "r.json").read_bytes()
    for more, told in (
        ((), "--max-batch-size (16 then, none now)"),
        (("--max-batch-size", 16, "--memory-limit", "1GiB"), "the memory limit (64 MiB then, 1 GiB now)"),
        (("--max-batch-size", 16, "--headroom", "0.2"), "--headroom (0.05 then, 0.2 now)"),
    ):
        done = autobatch(*ask, *more, cwd=tmp_path)
        assert done.returncode == 2
        assert f"but {told} changed since: name another --output, or delete it" in done.stderr
    assert (tmp_path / "r.json").read_bytes() == whole


@pytest.mark.usefixtures("steady_steps")
def test_a_command_that_was_ended_before_midnight_goes_on_in_its_file(tmp_path: Path) -> None:
    ask = ("bench", "--models", MINIMAL, "--precisions", "fp32", "bf16", *QUICK, "--json")
    assert autobatch(*ask, cwd=tmp_path).returncode == 0
    (today,) = tmp_path.glob("benchmarks/results/*/*.json")
    whole = BenchReport.load(today)
    yesterday = today.with_name("2026-01-01.json")
    today.rename(yesterday)
    replace(whole, cells=whole.cells[:1]).save(yesterday)
    done = autobatch(*ask, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not today.exists()
    assert BenchReport.load(yesterday).cells[0] == whole.cells[0]
    assert len(BenchReport.load(yesterday).cells) == 2
    assert autobatch(*ask, cwd=tmp_path).returncode == 0  # it is whole now: today has a report of its own
    assert today.exists()


CARD = DeviceInfo(name="NVIDIA H200", kind="cuda", uuid="GPU-1", power_limit_w=700.0, torch="2.13.0", runtime="12.8")
BEGUN = BenchReport(
    created="2026-01-01T00:00:00+00:00",
    command="autobatch bench",
    version="0.1.0",
    device=CARD,
    size="small",
    quick=True,
    objective="throughput",
    cells=(),
    planned=2,
    requested=(("mlp", "fp32"), ("mlp", "bf16")),
    settings={"memory_limit_bytes": None, "headroom": 0.05, "max_batch_size": None, "threads": 8},
)
ELSE: list[tuple[dict[str, Any], str]] = [
    ({"version": "0.0.1"}, "autobatch changed since"),
    ({"quick": False}, "--quick changed since"),
    ({"objective": "energy"}, "--objective changed since"),
    ({"size": "full"}, "the size of the models changed since"),
    ({"device": replace(CARD, uuid="GPU-2")}, "the device changed since"),
    ({"device": replace(CARD, torch="2.12.0", runtime="12.6")}, "the runtime and torch changed since"),
    ({"device": replace(CARD, python="3.12.1")}, "Python changed since"),
    ({"device": replace(CARD, driver="1")}, "the driver changed since"),
    ({"device": replace(CARD, power_limit_w=350.5)}, "the power limit (350.5 W then, 700 W now) changed since"),
    (
        {"settings": {**(BEGUN.settings or {}), "memory_limit_bytes": 8 << 30}},
        "the memory limit (8 GiB then, none now) changed since",
    ),
    ({"settings": {**(BEGUN.settings or {}), "threads": 2}}, "the number of threads (2 then, 8 now) changed since"),
]


@pytest.mark.parametrize(("change", "told"), ELSE)
def test_a_report_of_something_else_is_not_gone_on_with(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    replace(BEGUN, **change).save(tmp_path / "r.json")
    with pytest.raises(ReportError, match=re.escape(f"{told}: name another --output, or delete it")):
        with_earlier(BEGUN, tmp_path / "r.json", {})
    assert file_for(BEGUN, tmp_path) != tmp_path / "r.json"
    BEGUN.save(tmp_path / "r.json")
    assert with_earlier(BEGUN, tmp_path / "r.json", {}) == (BEGUN, ())
    assert file_for(BEGUN, tmp_path) == tmp_path / "r.json"


def test_an_older_report_that_does_not_tell_its_settings_is_read_and_not_gone_on_with(tmp_path: Path) -> None:
    data = BEGUN.to_json()
    del data["asked"], data["settings"]
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert BenchReport.load(tmp_path / "r.json") == replace(BEGUN, requested=(), settings=None)
    with pytest.raises(ReportError, match="does not say under which settings it was made: name another --output"):
        with_earlier(BEGUN, tmp_path / "r.json", {})


def test_the_newest_that_the_same_command_left_is_gone_on_with(tmp_path: Path) -> None:
    done = tuple(
        Cell(model=model, compute_mode=compute_mode, outcome="failed", message="no")
        for model, compute_mode in BEGUN.requested
    )
    today = file_for(BEGUN, tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\.json", today.name)
    replace(BEGUN, cells=done).save(tmp_path / "whole.json")
    replace(BEGUN, requested=BEGUN.requested[:1]).save(tmp_path / "of-another-command.json")
    (tmp_path / "other.json").write_text('{"kind": "something else"}')
    (tmp_path / "torn.json").write_text('{"kind": "bench", "cells"')
    assert file_for(BEGUN, tmp_path) == today
    BEGUN.save(tmp_path / "older.json")
    replace(BEGUN, created="2026-01-02T00:00:00+00:00", cells=done[:1]).save(tmp_path / "newer.json")
    assert file_for(BEGUN, tmp_path) == tmp_path / "newer.json"
    assert BenchReport.load(tmp_path / "newer.json").missing == (("mlp", "bf16"),)


def test_models_are_standard_ones_or_files_and_a_name_is_one_models() -> None:
    standard = standard_models()
    assert list(chosen_models([], standard)) == list(standard)
    assert len(standard) == 6
    assert chosen_models(["mlp", str(MINIMAL)], standard) == {"mlp": standard["mlp"], "minimal": MINIMAL}
    with pytest.raises(SettingError, match=r"'resnet' is no model: it is one of gpt2_small, lstm, .*or the path"):
        chosen_models(["resnet"], standard)
    with pytest.raises(SettingError, match="two models are called mlp"):
        chosen_models(["mlp", "mlp"], standard)


def test_a_report_goes_where_its_device_is(tmp_path: Path) -> None:
    assert folder_for(CARD, 8, tmp_path) == tmp_path / "nvidia-h200"
    processor = DeviceInfo(name="../AMD EPYC\n", kind="cpu")
    assert folder_for(processor, 2, tmp_path) == tmp_path / "amd-epyc-2-cores"
    assert folder_for(processor, 1, tmp_path) == tmp_path / "amd-epyc-1-core"


def test_defaults_fit_the_device() -> None:
    assert default_compute_modes("cuda", False) == ("fp32", "tf32", "bf16")
    assert default_compute_modes("cpu", True) == ("fp32",)
    assert default_memory_limit("cuda", True) is None
    assert default_memory_limit("cpu", False) == 1 << 30
    assert BenchSettings.__slots__


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bench", "--models", "nothing"), "'nothing' is no model"),
        (("bench", "--models", MINIMAL, "--precisions", "int8"), "is no way to compute"),
        (("bench", "--models", __file__, "README.md"), "'README.md' is no model"),
        (("bench", "--models", MINIMAL.parent.parent / "recordings" / "made_table.json"), "name ends in .py; found"),
        (("bench", "--models", MINIMAL, "--output", "no/folder/r.json"), "there is no folder"),
        (("bench", "--models", MINIMAL, "--objective", "speed"), "'speed' is not one of"),
        (("profile", MINIMAL, "--precisions"), "requires an argument"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(
    tmp_path: Path, arguments: tuple[object, ...], told: str
) -> None:
    done = autobatch(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(told, done.stderr), done.stderr


def test_a_profile_in_several_precisions_stands_side_by_side(tmp_path: Path) -> None:
    """The words that name precisions go to the option, wherever the task stands."""
    ask = ("profile", "--precisions", "fp32", "bf16", MINIMAL, "--budget", "1s", "--max-batch-size", 16)
    done = autobatch(*ask, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["reference"] == "fp32"
    assert [compute_mode["arm"] for compute_mode in found["arms"]] == ["fp32", "bf16"]
    assert found["arms"][1]["loss_difference"]["steps"] == 10
    drawn = autobatch(*ask, cwd=tmp_path)
    assert "Side by side" in drawn.stdout
    assert "Throughput in bf16" in drawn.stdout
    assert all(len(line) <= 80 for line in drawn.stdout.splitlines())


def test_a_profile_in_which_no_precision_runs_finds_nothing(tmp_path: Path) -> None:
    done = autobatch("profile", MINIMAL, "--precisions", "tf32", "--device", "cpu", "--budget", "1s", cwd=tmp_path)
    assert done.returncode == 3
    assert "tf32 failed: tf32 is a mode" in " ".join(done.stdout.split())


def test_a_task_that_is_broken_is_told_as_it_is_without_precisions(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")
    plain, several = (
        autobatch("profile", "broken.py", *more, "--device", "cpu", cwd=tmp_path)
        for more in ((), ("--precisions", "fp32", "bf16"))
    )
    assert (plain.returncode, several.returncode) == (2, 2)
    told = "autobatch: the import of broken.py failed: RuntimeError: not today"
    assert told in plain.stderr
    assert told in several.stderr
    assert several.stdout == ""


@pytest.mark.usefixtures("steady_steps")
def test_a_loss_that_diverges_in_one_precision_is_told_with_its_step(tmp_path: Path) -> None:
    """The task's loss is no number from the third training step on, where it is computed in bf16."""
    (tmp_path / "model.py").write_text(
        MINIMAL.read_text()
        + """

class Blows(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.steps = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), 0

    def forward(self, x):
        found = self.layers(x)
        self.steps += self.training
        return found * float("nan") if found.dtype == torch.bfloat16 and self.steps > 2 else found


def model():
    return Blows()
"""
    )
    ask = ("profile", "model.py", "--precisions", "fp32", "bf16", "--budget", "1s", "--device", "cpu")
    found = json.loads(autobatch(*ask, "--json", cwd=tmp_path).stdout)["arms"][1]
    assert found["losses"] == {"steps": 2, "diverged_at": 3, "message": None}
    assert found["loss_difference"]["steps"] == 2
    drawn = " ".join(autobatch(*ask, cwd=tmp_path).stdout.split())
    assert "diverged at step 3" in drawn
    assert "In bf16 the loss diverged at step 3." in drawn
    assert "The loss is compared over 2 steps from the same weights" in drawn
    done = autobatch("bench", "--models", "model.py", "--precisions", "fp32", "bf16", *QUICK, cwd=tmp_path)
    assert "The loss diverged in the first steps: model in bf16." in " ".join(done.stdout.split()), done.stderr


def compiling(folder: Path, *more: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """A profile of the minimal task as it is and compiled, what torch.compile keeps being kept in the folder."""
    ask = ("profile", MINIMAL, "--precisions", "fp32", "fp32+compile", "--max-batch-size", 2, "--device", "cpu")
    # Without a look at which vector units the compiler serves, and without processes to compile in: half of the time.
    quick = {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    changes = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "CXX": "g++"} | quick | changes
    return autobatch(*ask, "--budget", "1s", *more, cwd=folder, **changes)


HEADERS = Path(sysconfig.get_path("include")) / "Python.h"


@pytest.mark.usefixtures("steady_steps")
@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or not HEADERS.exists(),
    reason="on a processor torch.compile needs g++ and Python's headers, and one of them is not here",
)
def test_a_compiled_model_stands_beside_the_one_that_is_not(tmp_path: Path) -> None:
    done = compiling(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    plain, compiled = found["arms"]
    assert (plain["arm"], compiled["arm"], found["reference"]) == ("fp32", "fp32+compile", "fp32")
    assert compiled["message"] is None
    assert compiled["max_batch"]["batch_size"] == 2
    assert compiled["throughput"]["measurements"]
    assert compiled["loss_difference"]["steps"] == 10
    assert abs(compiled["loss_difference"]["largest"]) < 1e-3
    assert list((tmp_path / "compiled").rglob("*.so"))  # it was compiled, and did not run as it was written
    drawn = io.StringIO()
    print_compute_modes(found, Console(file=drawn, width=80, color_system=None))
    assert "Throughput in fp32+compile" in drawn.getvalue()
    assert all(len(line) <= 80 for line in drawn.getvalue().splitlines())


@pytest.mark.usefixtures("steady_steps")
def test_without_a_compiler_the_compiled_one_says_so_and_the_other_is_measured(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    done = compiling(tmp_path, PATH=str(tmp_path / "nothing"))
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "fp32+compile failed: torch.compile needs a C++ compiler and found none: install g++" in told
    assert "Throughput in fp32" in told
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.usefixtures("steady_steps")
def test_a_loss_that_takes_samples_in_pairs_is_profiled_at_even_sizes(tmp_path: Path) -> None:
    """As a user finds it: the largest batch is found without an odd one, and one or three samples are our own idea."""
    (tmp_path / "model.py").write_text(
        MINIMAL.read_text()
        + """

def loss(model, batch):
    left, right = model(batch[0]).reshape(-1, 2, 3).unbind(1)
    return (left - right).square().mean()
"""
    )
    ask = ("profile", "model.py", "--max-batch-size", 4, "--budget", "1s", "--device", "cpu", "--json")
    done = autobatch(*ask, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sizes = [point["batch_size"] for point in json.loads(done.stdout)["measurements"]]
    assert sizes
    assert all(size % 2 == 0 for size in sizes)


def test_an_objective_without_energy_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from autobatch.devices.rapl import Rapl

    if Rapl().why_not() is None:
        pytest.skip("this machine tells its energy")
    done = autobatch("profile", MINIMAL, "--objective", "energy", "--budget", "1s", "--max-batch-size", 8, cwd=tmp_path)
    assert done.returncode == 3
    assert "take the objective throughput" in done.stderr


def test_ctrl_c_says_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "bench", interrupted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(["bench", "--quick"], standalone_mode=False)
    assert ended.value.code == 130
    assert "run the same command again to continue" in capsys.readouterr().err
