"""Options that several commands share. Each can also be set by an environment variable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..core.words import did_you_mean
from ..devices.backend import names_in_words
from ..errors import SettingError

F = TypeVar("F", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """A click option that an environment variable can set too: AUTOBATCH_MEMORY_LIMIT sets `--memory-limit`."""
    variable = "AUTOBATCH_" + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, **({"show_envvar": True, "show_default": True} | settings))


def _note_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Leave the flag where `run` finds it, which reports errors and sees no options."""
    context.ensure_object(dict)["debug"] = value


class Word(click.Choice[str]):
    """One of a few words; a message about another one says which it may have been."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            told = f"{error.message.removesuffix('.')}{did_you_mean(str(value), self.choices)}"
            raise click.BadParameter(told, ctx=ctx, param=param) from None


def examples(*commands: str) -> str:
    """The foot of a `--help`: commands as they are typed, one on a line."""
    return "\n".join(("\b", "Examples:", *(f"  {command}" for command in commands)))


def options_of(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class Several(click.Option):
    """An option that takes every word after it that `belongs` accepts: `--precisions fp32 bf16`."""

    def __init__(self, *args: Any, belongs: Callable[[str], bool], **settings: Any) -> None:
        super().__init__(*args, **(settings | {"multiple": True}))
        self.belongs = belongs


class SpreadingCommand(click.Command):
    """A command that can have `Several` options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {name: option for option in self.params if isinstance(option, Several) for name in option.opts}
        spread: list[str] = []
        current: str | None = None
        for word in args:
            if current is not None and spread[-1] != current and not word.startswith("-"):
                if several[current].belongs(word):
                    spread.append(current)
                else:
                    current = None
            elif word.startswith("-"):
                current = word if word in several else None
            spread.append(word)
        return super().parse_args(ctx, spread)


def _names_an_compute_mode(word: str) -> bool:
    from ..core.compute_mode import ComputeMode

    try:
        ComputeMode.parse(word)
    except SettingError:
        return False
    return True


LATEST = "latest"  # the value of --resume without an argument
FEWEST_STEPS = 20  # as learning_rate.FEWEST_STEPS; `--help` does not import that module
TASK = click.argument("task", type=click.Path(path_type=Path), metavar="MODEL.py")
*_WORDS, _LAST_WORD = (f'"{name}"' for name in names_in_words("1"))
DEVICE = option("--device", default="auto", help=f"{', '.join(_WORDS)} or {_LAST_WORD}.")
MEMORY = options_of(
    option(
        "--memory-limit",
        metavar="SIZE",
        help="Treat the device as if it had only this much memory: 8GiB, 500MB. Default: what is free.",
    ),
    option("--headroom", type=float, default=0.05, help="The share of the memory limit that stays free."),
)
CEILING = option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="The largest micro-batch per process to try. Default: the size of the training data, or 131072.",
)
NPROC = option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Train each model in N processes (DDP), one GPU each. Batch sizes of the task and the answer are per process.",
)
OBJECTIVE = option(
    "--objective",
    type=Word(["throughput", "energy", "balanced"]),
    default="throughput",
    help="What the recommended batch size optimizes: samples per second, joules per sample, or both.",
)
PRECISIONS = option(
    "--precisions",
    cls=Several,
    belongs=_names_an_compute_mode,
    metavar="NAME ...",
    help="Compute modes to compare: fp32 tf32 bf16 fp16, each also with +channels_last or +compile.",
)
OUTPUT = options_of(
    option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Also write the JSON to this file."),
    option("--quiet", "-q", is_flag=True, help="Print no progress on stderr."),
    option(
        "--debug",
        is_flag=True,
        is_eager=True,  # so that it is set before another option is refused
        expose_value=False,
        callback=_note_debug,
        help="Show full tracebacks, with autobatch's own frames.",
    ),
)
