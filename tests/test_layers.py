"""Imports flow one way: a module imports only from its own room and from the rooms above it in this list."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autobatch"

# Rooms, not files: a file belongs to the longest name here that it begins with. Within a room files may import one
# another in any order that is not a circle.
ROOMS = [
    "errors",
    "_version",
    "core",
    "devices",
    "tasks",
    "worker",
    "guarding",
    "measuring",
    "searching",
    "simulated",
    "reports",
    "render",
    "runs",
    "engines.processes",
    "engines.commands",
    "engines.ranks",
    "engines",
    "tuning",
    "bench",
    "integrations",
    "api",
    "",  # the package itself, which imports what it gives when it is asked for
    "cli",
    "__main__",
]

# Who may import a package that is not the standard library's, beside torch and numpy: each has one home.
HOMES = {
    "optuna": {
        "searching.schedulers.optuna_sampler",
        "searching.storage.study_writer",
        "searching.storage.journal",
        "searching.storage.central",
    },
    "sqlalchemy": {"searching.storage.central"},
    "ray": {"engines.ray"},
    "pynvml": {"devices.nvml"},
    "rich": {"render.terminal", "render.live"},
    "click": {
        f"cli.{file}"
        for file in "app apply bench defaults exits exports options output stages stored tune".split()  # noqa: SIM905
    },
    "cloudpickle": {"tasks.carry"},
    "jinja2": {"render.html"},
    "markupsafe": {"render.html"},
    "pandas": set(),  # optional: imported in `Report.to_dataframe`
    "tensorboard": set(),  # optional: imported in the functions of reports.tensorboard
}

# What runs in the worker, beside the ranks that import torch. No other room does, and so none of what it imports.
WITH_TORCH = (
    "devices",
    "tasks",
    "worker",
    "guarding",
    "integrations.lightning",  # a callback is of Lightning's class, which is imported with it
    "engines.ranks.exchange",
    "engines.ranks.stand_in",
    "engines.ranks.together",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
WITHOUT_TORCH = [
    name
    for name in MODULES
    if not f"{name}.".startswith(tuple(f"{room}." for room in WITH_TORCH))
    and name != "__main__"
    and (name != "engines.ray" or find_spec("ray") is not None)  # an extra
]


def room_of(name: str) -> str:
    """The room that a module stands in."""
    rooms = [room for room in ROOMS if room and f"{name}.".startswith(f"{room}.")]
    return max(rooms, key=len, default="")


def imported(name: str) -> tuple[set[str], set[str]]:
    """What a module imports while it is imported: of this package, and of others. Imports inside functions are left
    out: they are how the coordinator stays free of torch, and each says why where it stands."""
    path = MODULES[name]
    package = [part for part in name.split(".") if part]
    if path.name != "__init__.py":
        package = package[:-1]
    ours, others = set(), set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = [f"{target}.{alias.name}".strip(".") for alias in node.names]
            ours |= {n if n in MODULES else target for n in names}
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def test_every_module_stands_in_a_room() -> None:
    assert {room_of(name) for name in MODULES} == set(ROOMS)
    assert [name for name in MODULES if room_of(name) == ""] == [""]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_room_and_those_above(name: str) -> None:
    ours, others = imported(name)
    below = {other for other in ours if ROOMS.index(room_of(other)) > ROOMS.index(room_of(name))}
    assert not below
    for package, homes in HOMES.items():
        assert package not in others or name in homes


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: imported(name)[0] - {name} for name in MODULES}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_the_coordinator_imports_no_torch() -> None:
    imports = "; ".join(f"import autobatch.{name}".rstrip(".") for name in WITHOUT_TORCH)
    check = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=600).returncode == 0


def test_help_needs_neither_torch_nor_optuna_nor_rich() -> None:
    code = (
        "import sys; from autobatch.cli import cli; cli(['tune', '--help'], standalone_mode=False); "
        "sys.exit(bool({'torch', 'optuna', 'rich', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600, stdout=subprocess.DEVNULL).returncode == 0


def test_that_check_can_fail() -> None:
    code = "import sys, autobatch.cli, rich; sys.exit(bool({'torch', 'optuna', 'rich', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 1
