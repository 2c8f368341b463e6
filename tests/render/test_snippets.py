"""What `apply` prints is read by what it is for: a shell, YAML, Python, Lightning, transformers."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.cli import apply as cli_apply
from autobatch.core.plan import LEAST_LR, MOST_LR, Config, Plan, Precision
from autobatch.errors import SettingError
from autobatch.render.snippets import FORMATS, exact_lr_text, parse_names, snippet

CONFIG = Config(plan=Plan(batch_size=128, accumulation_steps=2, precision="bf16"), lr=1e-5)
CONFIGS = st.builds(
    Config,
    plan=st.builds(
        Plan,
        batch_size=st.integers(1, 1 << 16),
        accumulation_steps=st.integers(1, 64),
        precision=st.sampled_from(get_args(Precision)),
        ranks=st.integers(1, 8),
    ),
    lr=st.floats(LEAST_LR, MOST_LR),
)


def lines(config: Config, form: str, names: str = "") -> list[str]:
    return list(snippet(config, form, parse_names(names)).lines)


def expected(config: Config) -> dict[str, Any]:
    plan = config.plan
    return {
        "batch_size": plan.batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "lr": config.lr,
        "precision": plan.precision,
    }


def test_the_help_names_the_formats_that_there_are() -> None:
    assert tuple(FORMATS) == cli_apply.FORMATS


@given(CONFIGS)
def test_flags_are_read_by_argparse_as_they_were(config: Config) -> None:
    (line,) = lines(config, "flags")
    parser = argparse.ArgumentParser()
    for flag, kind in (("--batch-size", int), ("--accumulation-steps", int), ("--lr", float), ("--precision", str)):
        parser.add_argument(flag, type=kind)
    assert vars(parser.parse_args(shlex.split(line))) == expected(config)


@given(CONFIGS)
def test_yaml_is_read_as_numbers_and_words(config: Config) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    read = yaml.safe_load("\n".join(lines(config, "yaml")))
    assert read == expected(config)
    assert isinstance(read["lr"], float)


@given(CONFIGS)
def test_python_runs_as_it_stands(config: Config) -> None:
    values: dict[str, Any] = {}
    exec("\n".join(lines(config, "python")), {}, values)
    assert values == expected(config)


def test_a_shell_exports_the_variables() -> None:
    script = "\n".join([*lines(CONFIG, "env"), "env"])
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"BATCH_SIZE=128", "ACCUMULATION_STEPS=2", "LR=1e-5", "PRECISION=bf16"} <= set(shown)


@given(st.floats(LEAST_LR, MOST_LR))
def test_a_rate_is_written_to_the_last_bit(lr: float) -> None:
    assert float(exact_lr_text(lr)) == lr


# -- names


@pytest.mark.parametrize(
    ("form", "names", "shown"),
    [
        (
            "flags",
            "batch_size=bs,lr=learning_rate",
            "--bs 128 --accumulation-steps 2 --learning_rate 1e-5 --precision bf16",
        ),
        ("flags", "batch-size=b, lr=--lr, accumulation_steps=, precision=", "-b 128 --lr 1e-5"),
        ("flags", "lr=trainer.optim.lr,precision=,accumulation_steps=", "--batch-size 128 --trainer.optim.lr 1e-5"),
        ("flags", "effective_batch_size=total,batch_size=,precision=", "--accumulation-steps 2 --lr 1e-5 --total 256"),
        ("env", "batch_size=BS,accumulation_steps=,precision=,lr=", "export BS=128"),
        ("python", "batch_size=args.bs,accumulation_steps=,precision=,lr=", "args.bs = 128"),
        (
            "yaml",
            "batch_size=data.bs,lr=optim.lr,precision=,accumulation_steps=",
            "data:|  bs: 128|optim:|  lr: 1.0e-5",
        ),
        ("yaml", "batch_size=on,lr=,precision=,accumulation_steps=,ranks=n", '"on": 128|"n": 1'),
    ],
)
def test_names_are_the_scripts_own(form: str, names: str, shown: str) -> None:
    assert lines(CONFIG, form, names) == shown.split("|")


def test_lightnings_own_classes_have_names_of_the_user() -> None:
    shown = lines(CONFIG, "lightning", "lr=learning_rate,batch_size=dm.train_batch")
    assert "model.learning_rate = 1e-5" in shown
    assert any(line.startswith("dm.train_batch = 128") for line in shown)


@pytest.mark.parametrize(
    ("form", "names", "message"),
    [
        ("ymal", "", "a format is one of flags, .*; got 'ymal'; did you mean yaml?"),
        ("toml", "", "a format is one of flags, yaml, env, python, lightning, hf; got 'toml'$"),
        ("flags", "batchsize=bs", "got 'batchsize'; did you mean batch_size?"),
        ("flags", "batch_size", "names are written batch_size=bs,lr=learning_rate; found 'batch_size'"),
        ("flags", "lr=a,lr=b", "lr is given two names: 'a' and 'b'"),
        ("flags", "lr=batch-size", "each field needs a name of its own; got batch-size"),
        ("flags", "lr=a b", "'a b' cannot be the name of lr in flags: a flag is a word"),
        ("flags", "lr=$(reboot)", "cannot be the name of lr in flags"),
        ("env", "lr=my-lr", "'my-lr' cannot be the name of lr in env: a variable has letters, digits and"),
        ("python", "lr=lambda", "'lambda' cannot be the name of lr in python: names of Python"),
        ("python", "lr=a.", "cannot be the name of lr in python"),
        ("yaml", "lr=a..b", "cannot be the name of lr in yaml: words, with dots"),
        ("yaml", "lr=batch_size.lr", "'batch_size.lr' cannot be a name beside one that it begins with"),
        ("yaml", "batch_size=a.b,lr=a", "'a' cannot be a name beside one that it begins with, or"),
        ("hf", "lr=rate", "hf has its own name for lr: leave it out"),
        ("lightning", "precision=amp", "lightning has its own name for precision"),
        ("flags", "lr=,batch_size=,precision=,accumulation_steps=", "every field was left out"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(form: str, names: str, message: str) -> None:
    with pytest.raises(SettingError, match=message.replace("$(", r"\$\(").replace("?", r"\?")):
        lines(CONFIG, form, names)


# -- the libraries themselves


class Spy:
    """Stands for the user's own object, and for a class of a library that is called with names."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


def run(config: Config, form: str, **given: Any) -> dict[str, Any]:
    """What the pasted lines come to."""
    scope: dict[str, Any] = dict(given)
    exec("\n".join(lines(config, form)), scope)
    return scope


@given(CONFIGS)
def test_what_is_pasted_into_a_lightning_project(config: Config) -> None:
    import torch

    was = torch.get_float32_matmul_precision()
    try:
        scope = run(config, "lightning", Trainer=Spy, datamodule=Spy(), model=Spy(), torch=torch)
        is_high = torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(was)
    assert is_high == (config.plan.precision == "tf32")
    arguments: Mapping[str, Any] = scope["trainer"].arguments
    assert arguments["accumulate_grad_batches"] == config.plan.accumulation_steps
    assert (scope["datamodule"].batch_size, scope["model"].lr) == (config.plan.batch_size, config.lr)
    assert arguments.get("devices", 1) == config.plan.ranks


@pytest.mark.parametrize("precision", get_args(Precision))
def test_lightning_has_these_arguments_and_words(precision: Precision) -> None:
    trainer = pytest.importorskip("lightning.pytorch.trainer.trainer", reason="Lightning is not installed")
    connector = pytest.importorskip("lightning.fabric.connector", reason="Lightning is not installed")

    config = dataclasses.replace(CONFIG, plan=Plan(batch_size=8, precision=precision, ranks=2))
    scope = run(config, "lightning", Trainer=Spy, datamodule=Spy(), model=Spy(), torch=Torch)
    arguments = scope["trainer"].arguments
    assert set(arguments) <= set(inspect.signature(trainer.Trainer.__init__).parameters)
    assert connector._convert_precision_to_unified_args(arguments["precision"]) == arguments["precision"]


class Torch:
    @staticmethod
    def set_float32_matmul_precision(word: str) -> None:
        assert word == "high"


@pytest.mark.parametrize("precision", get_args(Precision))
def test_transformers_has_these_fields(precision: Precision) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    fields = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    config = dataclasses.replace(CONFIG, plan=Plan(batch_size=8, accumulation_steps=3, precision=precision))
    arguments = run(config, "hf", TrainingArguments=Spy)["args"].arguments
    assert set(arguments) <= fields
    wanted = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "learning_rate": 1e-5}
    switches = {"bf16": precision == "bf16", "fp16": precision == "fp16"} | (
        {"tf32": True} if precision == "tf32" else {}
    )
    assert arguments == wanted | switches
