"""`autobatch bench`, as a user types it: the report in its file, resumed where it stood; and `profile --precisions`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autobatch import api
from autobatch.arm import Arm
from autobatch.bench import BenchSettings, chosen_models, default_arms, default_memory_limit, file_for
from autobatch.cli import cli
from autobatch.errors import ReportError, SettingError
from autobatch.plan import DeviceInfo
from autobatch.reports.bench_report import BenchReport
from autobatch.standard import standard_models

from .test_cli import MINIMAL, TASKS, autobatch

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
    path = Path(re.search(r"The report is in (\S+):", found.stderr).group(1))  # type: ignore[union-attr]
    assert path.parts[:2] == ("benchmarks", "results")
    report = BenchReport.load(tmp_path / path)
    assert json.loads(found.stdout) == report.to_json()
    assert [(cell.model, cell.arm) for cell in report.cells] == [
        ("minimal", "fp32"),
        ("minimal", "bf16"),
        ("lstm", "fp32"),
        ("lstm", "bf16"),
    ]
    assert all(cell.outcome == "ok" for cell in report.cells), [cell.message for cell in report.cells]
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


def test_a_bench_that_was_ended_goes_on_where_it_stood(tmp_path: Path) -> None:
    whole = bench(tmp_path, "--precisions", "fp32", "bf16")
    ended = replace(whole, cells=whole.cells[:1])
    ended.save(tmp_path / "r.json")
    again = bench(tmp_path, "--precisions", "fp32", "bf16")
    assert again.cells[0] == whole.cells[0]
    assert again.cells[1].arm == "bf16"
    assert again.cells[1] != whole.cells[1]  # measured anew
    assert again.cells[1].loss_difference is not None  # against losses in fp32 that the file does not hold
    assert again.created == whole.created
    assert bench(tmp_path, "--precisions", "fp32", "bf16").cells == again.cells
    more = bench(tmp_path, "--precisions", "fp16")
    assert [cell.arm for cell in more.cells] == ["fp32", "bf16", "fp16"]
    assert more.planned == 3


def test_what_failed_is_told_and_run_again(tmp_path: Path) -> None:
    found = bench(tmp_path, "--precisions", "tf32")
    assert found.cells[0].outcome == "failed"
    assert found.cells[0].message == "tf32 is a mode of NVIDIA's tensor cores; cpu has none: use bf16"
    mended = replace(found.cells[0], message="another reason")
    replace(found, cells=(mended,)).save(tmp_path / "r.json")
    assert bench(tmp_path, "--precisions", "tf32").cells[0].message == found.cells[0].message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "0.0.1"}, "autobatch changed since"),
        ({"quick": False}, "--quick changed since"),
        ({"objective": "energy"}, "--objective changed since"),
        ({"size": "full"}, "the size of the models changed since"),
        ({"warnings": ()}, "the memory limit or the threads changed since"),
    ],
)
def test_a_report_of_something_else_is_not_gone_on_with(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    from autobatch.bench import _resumed

    device = DeviceInfo(name="a card", kind="cuda", uuid="GPU-1")
    report = BenchReport(
        created="2026-01-01T00:00:00+00:00",
        command="autobatch bench",
        version="0.1.0",
        device=device,
        size="small",
        quick=True,
        objective="throughput",
        cells=(),
        planned=1,
        warnings=("steps were timed on 1 threads",),
    )
    replace(report, **change).save(tmp_path / "r.json")
    with pytest.raises(ReportError, match=f"{told}: name another --output, or delete it"):
        _resumed(report, tmp_path / "r.json", [("mlp", Arm())])
    replace(report, device=replace(device, uuid="GPU-2")).save(tmp_path / "r.json")
    with pytest.raises(ReportError, match="the device changed since"):
        _resumed(report, tmp_path / "r.json", [("mlp", Arm())])


def test_models_are_standard_ones_or_files_and_a_name_is_one_models() -> None:
    standard = standard_models()
    assert list(chosen_models([], standard)) == list(standard)
    assert len(standard) == 6
    assert chosen_models(["mlp", str(MINIMAL)], standard) == {"mlp": standard["mlp"], "minimal": MINIMAL}
    with pytest.raises(SettingError, match=r"'resnet' is no model: it is one of gpt2_small, lstm, .*or the path"):
        chosen_models(["resnet"], standard)
    with pytest.raises(SettingError, match="two models are called mlp"):
        chosen_models(["mlp", "mlp"], standard)


def test_a_report_goes_where_its_device_and_day_are(tmp_path: Path) -> None:
    card = DeviceInfo(name="NVIDIA H200", kind="cuda")
    assert file_for(card, 8, tmp_path).parent == tmp_path / "nvidia-h200"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\.json", file_for(card, 8, tmp_path).name)
    processor = DeviceInfo(name="../AMD EPYC\n", kind="cpu")
    assert file_for(processor, 2, tmp_path).parent == tmp_path / "amd-epyc-2-cores"
    assert file_for(processor, 1, tmp_path).parent == tmp_path / "amd-epyc-1-core"


def test_defaults_fit_the_device() -> None:
    assert default_arms("cuda", False) == ("fp32", "tf32", "bf16")
    assert default_arms("cpu", True) == ("fp32",)
    assert default_memory_limit("cuda", True) is None
    assert default_memory_limit("cpu", False) == 1 << 30
    assert BenchSettings.__slots__


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bench", "--models", "nothing"), "'nothing' is no model"),
        (("bench", "--models", MINIMAL, "--precisions", "int8"), "is no way to compute"),
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
    assert [arm["arm"] for arm in found["arms"]] == ["fp32", "bf16"]
    assert found["arms"][1]["loss_difference"]["steps"] == 10
    drawn = autobatch(*ask, cwd=tmp_path)
    assert "Side by side" in drawn.stdout
    assert "Throughput in bf16" in drawn.stdout
    assert all(len(line) <= 80 for line in drawn.stdout.splitlines())


def test_a_profile_in_which_no_precision_runs_finds_nothing(tmp_path: Path) -> None:
    done = autobatch("profile", MINIMAL, "--precisions", "tf32", "--device", "cpu", "--budget", "1s", cwd=tmp_path)
    assert done.returncode == 3
    assert "tf32 failed: tf32 is a mode" in " ".join(done.stdout.split())


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

    monkeypatch.setattr(api, "bench", interrupted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(["bench", "--quick"], standalone_mode=False)
    assert ended.value.code == 130
    assert "the same command goes on from there" in capsys.readouterr().err
