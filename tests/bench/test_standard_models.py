"""The standard models are what their papers say, can be trained at both sizes, and are found wherever they lie."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autobatch.bench import standard_models as standard
from autobatch.core.plan import Plan
from autobatch.devices import open_device
from autobatch.errors import TaskError
from autobatch.tasks.task import Task, load_task
from autobatch.worker.torch_runner import TorchRunner

from ..helpers.processors import trains_lstm_in

ROOT = Path(__file__).parents[2]
MODELS = standard.standard_models()

# A U-Net's convolutions as figure 1 of its paper has them, with three colours in: (kernel, channels in, channels out).
U_NET = [(3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128), (3, 128, 256), (3, 256, 256), (3, 256, 512)]
U_NET += [(3, 512, 512), (3, 512, 1024), (3, 1024, 1024)]
U_NET += [(2, 1024, 512), (3, 1024, 512), (3, 512, 512), (2, 512, 256), (3, 512, 256), (3, 256, 256)]
U_NET += [(2, 256, 128), (3, 256, 128), (3, 128, 128), (2, 128, 64), (3, 128, 64), (3, 64, 64), (1, 64, 2)]

PARAMETERS = {
    "resnet50": 25_557_032,  # torchvision's resnet50, of the same layers (its page: "num_params 25557032")
    "vit_b16": 86_567_656,  # torchvision's vit_b_16, the same; the paper's table 1 says 86 M
    "gpt2_small": 124_439_808,  # the published weights, without the output layer, which is the embedding
    "unet": sum(kernel**2 * inputs * outputs + outputs for kernel, inputs, outputs in U_NET),
    "lstm": pytest.approx(66e6, rel=0.002),  # Merity et al. 2016, arXiv:1609.07843, table 2: "LSTM (large)", 66 M
    "mlp": 1025 * 4096 + 3 * 4097 * 4096 + 4097 * 10,
}

# Multiply-adds of a forward pass of one sample.
MULTIPLY_ADDS = {
    "resnet50": 4.09e9,  # torchvision's page: "GFLOPS 4.09", which are multiply-adds
    "vit_b16": 17.56e9,  # the same: 17.56
    # Chowdhery et al. 2022, arXiv:2204.02311, appendix B: 2 N + 4 x layers x width x length operations a token forward,
    # N the parameters that are multiplied with: 12 x width^2 a layer (Kaplan et al. 2020, table 1), and the output's.
    "gpt2_small": 1024 * (12 * 12 * 768**2 + 50_257 * 768 + 2 * 12 * 768 * 1024),
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small(name: str, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setenv("AUTOBATCH_BENCH_SIZE", "small")
    return load_task(MODELS[name])


@pytest.fixture
def full(name: str, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.delenv("AUTOBATCH_BENCH_SIZE", raising=False)
    return load_task(MODELS[name])


def test_there_are_the_six() -> None:
    assert list(MODELS) == ["gpt2_small", "lstm", "mlp", "resnet50", "unet", "vit_b16"]


def test_the_check_has_no_objection_and_every_kind_of_step_runs(small: Task) -> None:
    runner = TorchRunner(small, open_device("cpu"))
    try:
        facts = runner.facts()
        assert facts.warnings == ()
        assert facts.baseline_is_users
        assert facts.train_size is not None  # else two seconds go into counting batches that never end
        assert facts.train_size > 1_000_000
        assert runner.probe(Plan(batch_size=1)).outcome == "ok"
        assert runner.probe(Plan(batch_size=3, accumulation_steps=2), final=True).outcome == "ok"
        if small.name != "lstm" or trains_lstm_in(torch.bfloat16):
            assert runner.probe(Plan(batch_size=2, precision="bf16")).outcome == "ok"
        else:
            with pytest.raises(TaskError, match=r"does not support on this processor .*mkldnn\.enabled = False"):
                runner.probe(Plan(batch_size=2, precision="bf16"))
    finally:
        runner.close()


def test_one_batch_can_be_fitted(small: Task) -> None:
    torch.manual_seed(0)
    model = small.model()
    optimizer = small.optimizer(model, small.baseline_config()[0].lr)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)
        loss = small.loss(model, torch.arange(8))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_every_evaluation_is_of_the_same_samples_and_draws_nothing(small: Task) -> None:
    torch.manual_seed(0)
    model = small.model().eval()
    before = torch.get_rng_state()
    scores = small.metric(model, torch.arange(4))
    assert scores.shape == (4,)
    assert torch.equal(scores, small.metric(model, torch.arange(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_stands_alone_without_dropout(name: str) -> None:
    source = MODELS[name].read_text()
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported == {"os", "torch"}
    assert "dropout" not in source.lower()


def _inputs(task: Task, batch_size: int) -> Tensor:
    """What the model takes, of its full size, without storage."""
    sizes = task.model.__globals__
    if "IMAGE" in sizes:
        return torch.empty(batch_size, 3, sizes["IMAGE"], sizes["IMAGE"], device="meta")
    if "LENGTH" in sizes:
        return torch.empty(batch_size, sizes["LENGTH"], dtype=torch.long, device="meta")
    return torch.empty(batch_size, sizes["FEATURES"], device="meta")


def test_parameters_and_operations_are_as_published(name: str, full: Task) -> None:
    with torch.device("meta"):
        model = full.model()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[name]
    told = re.search(r"([\d.]+) M parameters", MODELS[name].read_text())
    assert told is not None
    assert float(told[1]) == round(count / 1e6, 1)
    operations = []
    for batch_size in (2, 6):
        with FlopCounterMode(display=False) as counter:
            model(_inputs(full, batch_size))
        operations.append(counter.get_total_flops() / batch_size)
    assert operations[0] == operations[1]
    if name in MULTIPLY_ADDS:
        assert operations[0] / 2 == pytest.approx(MULTIPLY_ADDS[name], rel=0.01)


def _found_by(package: Path) -> subprocess.CompletedProcess[str]:
    """What another Python prints that has the package, copied to a folder of its own, and nothing else of ours."""
    code = "from autobatch.bench.standard_models import standard_models as found; print(*found().values(), sep='\\n')"
    return subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shutil.copytree(ROOT / "autobatch", tmp_path / "autobatch", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "autobatch"


def test_an_installed_package_has_them_where_the_wheel_puts_them(package: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    ((source, target),) = settings["wheel"]["force-include"].items()
    assert source in settings["sdist"]["include"]  # a wheel can be built from an sdist too
    shutil.copytree(ROOT / source, package.parent / target, ignore=shutil.ignore_patterns("__pycache__"))
    done = _found_by(package)
    assert done.stdout.split() == [str(package.parent / target / f"{name}.py") for name in MODELS], done.stderr


def test_where_they_are_missing_that_is_said(package: Path) -> None:
    done = _found_by(package)
    assert done.returncode
    error = done.stderr.splitlines()[-1]
    assert error.startswith("autobatch.errors.ModelsNotFound: the task files of the standard models are in neither ")
    assert str(package / "standard_models") in error


def test_the_cuda_benchmark_runs_them_in_its_precisions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = import_module("max_batch_cuda")
    for model in benchmark.MODELS:
        for precision in benchmark.PRECISIONS:
            task = load_task(benchmark.write_task(model, precision, tmp_path))
            assert (task.name, task.precision) == (model, precision)
