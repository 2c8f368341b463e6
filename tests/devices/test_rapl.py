"""The processor's energy counters, as files of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from autobatch.devices.rapl import Rapl


def zone(root: Path, name: str, microjoules: int, most: int = 262_143_328_850, called: str = "package-0") -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{called}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", 9_000_000)
    zone(tmp_path, "intel-rapl:0:0", 500_000)
    assert rapl.joules() == 0.0
    zone(tmp_path, "intel-rapl:0", 3_000_000)
    zone(tmp_path, "intel-rapl:1", 9_500_000)
    zone(tmp_path, "intel-rapl:0:0", 2_000_000)
    assert rapl.joules() == pytest.approx(2.5)
    assert rapl.why_not() is None


def test_the_whole_platform_is_not_added_to_its_package(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 0)
    zone(tmp_path, "intel-rapl:1", 0, called="psys")
    assert rapl.joules() == 0.0
    zone(tmp_path, "intel-rapl:0", 2_000_000)
    zone(tmp_path, "intel-rapl:1", 3_000_000, called="psys")
    assert rapl.joules() == pytest.approx(2.0)


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 9_000_000, most=10_000_000)
    rapl.joules()
    zone(tmp_path, "intel-rapl:0", 1_000_000, most=10_000_000)
    assert rapl.joules() == pytest.approx(2.0)


def test_why_there_is_no_energy_is_told(tmp_path: Path) -> None:
    assert Rapl(tmp_path / "none").joules() is None
    assert Rapl(tmp_path / "none").why_not() == "the kernel shows no RAPL counter, as in most virtual machines"
    (zone(tmp_path, "intel-rapl:0", 0) / "energy_uj").unlink()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # what the superuser too cannot read
    assert Rapl(tmp_path).joules() is None
    assert Rapl(tmp_path).why_not() == "this user may not read the kernel's RAPL counters"
