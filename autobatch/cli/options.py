"""Options that several commands share. Each can also be set by an environment variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.words import did_you_mean
from ..devices.backend import names_in_words
from ..errors import SettingError

if TYPE_CHECKING:
    from ..tasks.command import Command

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
# What a command beside which a script may be named takes of it.
_COMMAND = option(
    "--command",
    metavar="TEXT",
    help="In place of MODEL.py: any training script as it is typed, with {batch_size}, {lr} and others to fill in.",
)
_BASELINE = option("--baseline", metavar="VALUES", help='What the script trains with today: "batch_size=32 lr=1e-3".')
_SHELL = options_of(
    option("--shell", is_flag=True, help="Run the command by /bin/sh, for pipes and variables."),
    option(
        "--grace",
        default="10s",
        metavar="TIME",
        help="How long the script may take to end when it is told to (SIGTERM), before it is killed.",
    ),
)
COMMAND_TO_PROBE = options_of(_COMMAND, _BASELINE, _SHELL)
COMMAND_TO_TUNE = options_of(
    _COMMAND,
    option(
        "--score",
        metavar="PATTERN",
        help='Of a command: where the score is in a line of its output, "val_acc=([0-9.]+)". The last one counts.',
    ),
    option("--score-file", metavar="FILE:KEY", help='The same in a JSON file that it writes: "result.json:val_acc".'),
    click.option(
        "--maximize/--minimize",
        default=None,
        envvar="AUTOBATCH_MAXIMIZE",
        show_envvar=True,
        help="Which score of a command is better, a higher or a lower one.",
    ),
    _BASELINE,
    _SHELL,
)
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


def given_task(task: Path | None, options: Mapping[str, Any]) -> Path | Command:
    """What is to be trained: the task file that was named, or the command of --command.

    Raises:
        click.UsageError: both were named, neither was, or a flag is for the one and the other was named.
    """
    from ..tasks.command import Command, as_direction

    if task is not None:
        if said := _words_of_command(options):
            raise click.UsageError(
                f"{said[0]} is for a script that --command runs, and {task} is a task file, which says that itself: "
                "leave one of them out"
            )
        return task
    if options["command"] is None:
        context = click.get_current_context()
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    return Command(
        options["command"],
        score=options.get("score"),
        score_file=options.get("score_file"),
        direction=as_direction(options.get("maximize")),
        baseline=options["baseline"],
        shell=options["shell"],
        grace=options["grace"],
    )


def typed_task(task: Path | Command, options: Mapping[str, Any]) -> list[str]:
    """The words by which the same is named again."""
    return [str(task)] if isinstance(task, Path) else _words_of_command(options)


def _words_of_command(options: Mapping[str, Any]) -> list[str]:
    """The words of the command line that are of --command, as they were typed."""
    context, words = click.get_current_context(), list[str]()
    for name in ("command", "score", "score_file", "maximize", "baseline", "shell", "grace"):
        if name in options and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            flag = "--minimize" if name == "maximize" and not options[name] else "--" + name.replace("_", "-")
            words += [flag] if isinstance(options[name], bool) else [flag, str(options[name])]
    return words


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
