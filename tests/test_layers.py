"""Imports flow one way: a module imports only what stands above it in this list."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autobatch"

# fmt: off
ORDER = [
    "errors", "units", "medians", "files", "checkpoints", "standard", "shapes", "sweep", "plan", "arm", "progress",
    "devices.environment", "devices.oom", "devices.host_memory", "devices.base", "devices.nvml", "devices.cuda",
    "devices.rapl", "devices.cpu", "devices.mps", "devices",
    "tasks", "tasks.libraries", "tasks.shown", "tasks.task_file", "tasks.task_rules", "tasks.defaults", "tasks.task",
    "tasks.object_state", "tasks.places",
    "tasks.state",
    "tasks.fixed_seeds", "tasks.data", "tasks.worst_case",
    "tasks.carry", "tasks.model_configs", "tasks.infer", "tasks.inputs", "tasks.wrong_guess", "tasks.task_sources",
    "worker", "worker.data_parallel", "worker.remedies", "worker.gradients", "worker.modes", "worker.shares",
    "worker.swallowed", "worker.made",
    "worker.rates", "worker.carried_state",
    "worker.training",
    "worker.energy", "worker.timing", "worker.flops", "worker.check_data",
    "worker.check_rates", "worker.split_check", "worker.left_out",
    "worker.check", "worker.open_task",
    "worker.torch_runner", "worker.warm",
    "guarding", "guarding.micro_batches", "guarding.guard_ranks", "guarding.guard",
    "measuring", "measuring.taken", "measuring.allowance", "measuring.bracket", "measuring.memory",
    "measuring.throughput", "measuring.profiling",
    "measuring.arms", "measuring.learning_rate",
    "searching", "searching.storage_url", "searching.crew", "searching.ledger", "searching.advice",
    "searching.trials", "searching.limits",
    "searching.retention", "searching.paces", "searching.race_state", "searching.study", "searching.study_writer",
    "searching.central", "searching.record", "searching.surrogate", "searching.observed", "searching.freeze_thaw",
    "searching.costs", "searching.account", "searching.proposals", "searching.stability", "searching.seed_noise",
    "searching.confirmation", "searching.failures", "searching.conclusion", "searching.race", "searching.search",
    "searching.long_run",
    "simulated", "simulated.sim", "simulated.recording", "simulated.replay",
    "reports", "reports.report", "reports.bench_report", "reports.compare",
    "render.document", "render.numbers", "render.evidence", "render.long_run", "render.content", "render.curves",
    "render.bench_content", "render.compare_content", "render.stored", "render.side_by_side", "render.scales",
    "render.charts", "render.terminal", "render.markdown", "render.html", "render.live", "render",
    "runs", "runs.settings", "runs.conditions", "runs.found", "runs.run_folder", "runs.runs",
    "engines", "engines.streams", "engines.endings", "engines.warned",
    "engines._worker", "engines.processes", "engines.local",
    "engines.patience", "engines.leaks", "engines.worker_log", "engines.ranks", "engines.answers", "engines.exchange",
    "engines.alone", "engines.together", "engines.served", "engines.remote", "engines.pool", "engines.ray",
    "engines.group",
    "commands", "commands.streams", "commands.exits", "commands.options", "commands.defaults", "commands.output",
    "commands.torchrun",
    "opening", "tuning", "stages", "bench_file", "bench", "api", "cli", "__main__",
]
# fmt: on

# Who may import a package that is not the standard library's, beside torch and numpy: each has one home.
HOMES = {
    "optuna": {"searching.study", "searching.study_writer", "searching.record", "searching.central"},
    "sqlalchemy": {"searching.central"},
    "ray": {"engines.ray"},
    "pynvml": {"devices.nvml"},
    "rich": {"render.terminal", "render.live"},
    "click": {"cli", "commands.exits", "commands.options", "commands.defaults", "commands.output"},
    "cloudpickle": {"tasks.carry"},
    "jinja2": {"render.html"},
    "markupsafe": {"render.html"},
}

# What stands in the worker; all other modules are the coordinator's, and importing those brings no torch.
WITH_TORCH = (
    "devices",
    "tasks.defaults",
    "tasks.task",
    "tasks.object_state",
    "tasks.places",
    "tasks.fixed_seeds",
    "tasks.data",
    "tasks.worst_case",
    "tasks.carry",
    "tasks.model_configs",
    "tasks.infer",
    "tasks.inputs",
    "tasks.wrong_guess",
    "tasks.state",
    "worker",
    "guarding",
    "engines.exchange",
    "engines.alone",
    "engines.together",
)
WITHOUT_TORCH = [
    name for name in ORDER if name == "devices.environment" or (not name.startswith(WITH_TORCH) and name != "__main__")
]
if find_spec("ray") is None:  # an extra
    WITHOUT_TORCH.remove("engines.ray")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if module_name(path)}


def imported(path: Path, name: str) -> tuple[set[str], set[str]]:
    """What a module imports while it is imported: of this package, and of others. Imports inside functions are left
    out: they are how the coordinator stays free of torch, and each says why where it stands."""
    package = [*name.split("."), ""][:-1] if path.name == "__init__.py" else name.split(".")[:-1]
    ours, others = set(), set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = [f"{target}.{alias.name}".strip(".") for alias in node.names]
            known = modules()
            ours |= {n if n in known else target for n in names} - {""}
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def test_every_module_has_a_place_in_the_order() -> None:
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_above(name: str) -> None:
    ours, others = imported(modules()[name], name)
    below = {other for other in ours if ORDER.index(other) >= ORDER.index(name) and not other.startswith(f"{name}.")}
    assert not below
    for package, homes in HOMES.items():
        assert package not in others or name in homes


def test_the_coordinator_imports_no_torch() -> None:
    imports = "; ".join(f"import autobatch.{name}" for name in WITHOUT_TORCH)
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
