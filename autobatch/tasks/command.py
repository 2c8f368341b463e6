"""A training script as it is typed, in whatever framework: a command line with places to fill in.

What the places mean is written here once, for the command line, for code, and for whoever runs the command.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..core.plan import Config, Direction, Plan
from ..core.units import parse_duration
from ..errors import SettingError

# Each place that a command may have, and what is put there.
PLACES: Mapping[str, str] = {
    "batch_size": "samples of one forward and backward pass",
    "lr": "the learning rate",
    "accumulation_steps": "micro-batches of one optimizer step",
    "seed": "the seed of this run",
    "max_steps": "optimizer steps, counted from the beginning of the training, after which this run ends",
    "total_steps": "optimizer steps of the whole training, over which a schedule is drawn",
    "max_seconds": "seconds that this run trains",
    "checkpoint": "a path: go on from what lies there if anything does, and leave there what to go on from",
}
# What people call them elsewhere.
_OTHER_NAMES = {
    **dict.fromkeys(("bs", "batch", "batchsize", "per_device_train_batch_size", "micro_batch_size"), "batch_size"),
    **dict.fromkeys(("learning_rate", "learningrate", "rate", "eta"), "lr"),
    **dict.fromkeys(("accum", "acc", "accumulation", "grad_accum", "accumulate_grad_batches"), "accumulation_steps"),
    "gradient_accumulation_steps": "accumulation_steps",
    **dict.fromkeys(("steps", "num_steps", "iters", "iterations", "max_iters", "n_steps"), "max_steps"),
    **dict.fromkeys(("seconds", "time", "max_time", "train_time", "timeout"), "max_seconds"),
    **dict.fromkeys(("ckpt", "resume", "checkpoint_path", "checkpoint_dir", "save", "output"), "checkpoint"),
}
_EPOCHS = ("epochs", "epoch", "max_epochs", "num_epochs", "n_epochs", "num_train_epochs")

# `{{name}}` stands for `{name}` itself, `${NAME}` is the shell's; other braces, as of JSON, mean nothing here.
_PLACE = re.compile(r"\{\{([A-Za-z_][\w-]*)\}\}|(?<!\$)\{([A-Za-z_][\w-]*)\}")
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")
# What a shell would act on, outside of quotes.
_QUOTED = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.")
_SHELL = re.compile(r"[|&;<>`]|\$[({\w]")
_NAMES_OF_BASELINE = ("batch_size", "lr", "accumulation_steps")

# How a run is told how long to train.
Length = Literal["steps", "seconds", "stop"]


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with its places filled in; one without a value stays as it is written."""

    def put(found: re.Match[str]) -> str:
        if found[1] is not None:
            return f"{{{found[1]}}}"
        return values.get(found[2], found[0])

    return _PLACE.sub(put, text)


def filled_in(text: str, config: Config) -> str:
    """A command as it is typed to train with `config`; what differs from run to run is still to be filled in."""
    return filled(text, values_of(config.plan, config.lr))


def values_of(plan: Plan, lr: float | None) -> dict[str, str]:
    """What a configuration puts into the places of a command."""
    values = {"batch_size": str(plan.batch_size), "accumulation_steps": str(plan.accumulation_steps)}
    return values if lr is None else values | {"lr": repr(lr)}


@dataclass(frozen=True)
class Command:
    """A training script as it is typed, with places such as `{batch_size}` and `{lr}`, to be tuned as it stands.

    The script may be in any language and framework. It is run once for each piece of a trial, and tells its score by a
    line of output, a JSON file or `autobatch.log(score)`.

    Attributes:
        command: the command line. Its places are `PLACES`; it is split as a shell splits it, and run without one.
        score: a pattern (regular expression) whose group is the score in a line of output; the last line counts.
        score_file: "FILE:KEY", a JSON file that the script writes, and where in it the score is: "result.json:val.acc".
        direction: "maximize" or "minimize" the score.
        baseline: what the script trains with today: {"batch_size": 32, "lr": 1e-3}, or "batch_size=32 lr=1e-3".
        shell: run the command by /bin/sh, for pipes, redirections and variables.
        grace: how long the script may take to end after SIGTERM, before it is killed.
        name: for titles and folders. Default: that of the script.

    Raises:
        SettingError: what is wrong, and the remedy.
    """

    command: str
    _: KW_ONLY
    score: str | None = None
    score_file: str | None = None
    direction: Direction | None = None
    baseline: Mapping[str, float] | str | None = None
    shell: bool = False
    grace: str | float = 10.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.command, str) or not self.command.strip():
            raise SettingError(f"a command is text as it is typed; found {self.command!r}")
        for name in self.places:
            if name not in PLACES:
                raise SettingError(_unknown_place(name))
        if "batch_size" not in self.places:
            raise SettingError(
                f"a command has the place {{batch_size}}, where the batch size is put: python train.py --batch-size "
                f"{{batch_size}} --lr {{lr}}; found {self.command}"
            )
        if "max_steps" in self.places and "max_seconds" in self.places:
            raise SettingError("{max_steps} and {max_seconds} both end a run: leave one of them out of the command")
        if "total_steps" in self.places and "max_steps" not in self.places:
            raise SettingError("{total_steps} is the whole of which {max_steps} is a part: the command has none")
        if self.score is not None and self.score_file is not None:
            raise SettingError("a score comes from a line of output or from a file: leave out --score or --score-file")
        if self.direction not in (None, "maximize", "minimize"):
            raise SettingError(f'direction is "maximize" or "minimize"; found {self.direction!r}')
        _ = self.pattern, self.file_and_key, self.words, self.known, self.grace_s  # said now, and not in mid-run

    # -- what it consists of -----------------------------------------------------------------------------------------

    @property
    def places(self) -> tuple[str, ...]:
        """The names in braces, in their order."""
        return tuple(dict.fromkeys(found[2] for found in _PLACE.finditer(self.command) if found[2] is not None))

    @property
    def length(self) -> Length:
        """How a run is told how long to train: in steps, in seconds, or not at all, so that it is stopped."""
        return "steps" if "max_steps" in self.places else "seconds" if "max_seconds" in self.places else "stop"

    @property
    def resumes(self) -> bool:
        """Whether a run can go on from where another one ended."""
        return "checkpoint" in self.places

    @cached_property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The variables before the command, as NAME=value, and its words."""
        if self.shell:
            return (), ("/bin/sh", "-c", self.command)
        unquoted = _QUOTED.sub("", self.command)
        found = _SHELL.search(_PLACE.sub("", unquoted))
        if found is not None:
            raise SettingError(
                f"a command is run without a shell, which {found[0]!r} is for: give --shell (shell=True in code), or "
                f"put it into quotes; found {self.command}"
            )
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise SettingError(f"a command is split as a shell splits it: {error}; found {self.command}") from None
        count = next((place for place, word in enumerate(words) if not _VARIABLE.match(word)), len(words))
        if count == len(words):
            raise SettingError(f"a command begins with a program; found {self.command}")
        return tuple(words[:count]), tuple(words[count:])

    @property
    def script(self) -> Path | None:
        """The Python file that it runs, where it is plain which one that is."""
        words = self.command.split() if self.shell else self.words[1]
        return next((Path(word) for word in words if word.endswith(".py") and not _PLACE.search(word)), None)

    @property
    def title(self) -> str:
        """The name, for titles and folders."""
        if self.name is not None:
            return self.name
        if self.script is not None:
            return self.script.stem
        return "command" if self.shell else Path(self.words[1][0]).stem or "command"

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """That of the score."""
        if self.score is None:
            return None
        try:
            pattern = re.compile(self.score)
        except re.error as error:
            raise SettingError(f"a score's pattern is a regular expression; {self.score!r}: {error}") from None
        if pattern.groups != 1 and "score" not in pattern.groupindex:
            raise SettingError(
                f'a score\'s pattern has one group, around the number: "val_acc=([0-9.]+)"; {self.score!r} has '
                f"{pattern.groups}. Mark others (?:...), or call the number's (?P<score>...)"
            )
        return pattern

    @cached_property
    def file_and_key(self) -> tuple[Path, tuple[str, ...]] | None:
        """The file of the score, and the keys that lead to it."""
        if self.score_file is None:
            return None
        file, colon, keys = self.score_file.rpartition(":")
        if not colon or not file or not keys:
            raise SettingError(
                f'a score\'s file is given with its key, as "result.json:val_acc"; found {self.score_file!r}'
            )
        return Path(file), tuple(keys.split("."))

    @cached_property
    def grace_s(self) -> float:
        """Seconds between SIGTERM and SIGKILL."""
        return parse_duration(self.grace)

    @cached_property
    def known(self) -> Mapping[str, float]:
        """What was said of the baseline."""
        given = self.baseline
        if given is None:
            return {}
        pairs = dict(_pairs(given)) if isinstance(given, str) else dict(given)
        known: dict[str, float] = {}
        for name, value in pairs.items():
            if name not in _NAMES_OF_BASELINE:
                close = difflib.get_close_matches(name, _NAMES_OF_BASELINE, 1)
                meant = _OTHER_NAMES.get(name, close[0] if close else None)
                raise SettingError(
                    f"a baseline has {', '.join(_NAMES_OF_BASELINE)}; found {name}"
                    + (f": did you mean {meant}?" if meant else "")
                )
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not number > 0 or not math.isfinite(number) or (name != "lr" and number != int(number)):
                whole = "" if name == "lr" else "whole "
                raise SettingError(f"{name} of a baseline is a {whole}number above 0; found {value}")
            known[name] = number
        return known

    # -- what it lacks -----------------------------------------------------------------------------------------------

    @property
    def lacks(self) -> str | None:
        """What has to be said before it can be tuned, with how; None where nothing is missing."""
        if "lr" not in self.places:
            return "{lr} is missing in the command, where the learning rate is put: python train.py --lr {lr}"
        if self.direction is None:
            return "it must be said which score is better, a higher or a lower one: --maximize or --minimize"
        missing = [name for name in ("batch_size", "lr") if name not in self.known]
        if missing:
            return (
                f"it must be said what the script trains with today, which is compared with: --baseline "
                f'"batch_size=32 lr=1e-3"; {" and ".join(missing)} {"are" if len(missing) > 1 else "is"} missing'
            )
        return None

    def baseline_config(self) -> tuple[Config, bool]:
        """What it trains with today, and whether all of it was said; what was not is what a task file's default is."""
        known = self.known
        plan = Plan(
            batch_size=int(known.get("batch_size", 32)), accumulation_steps=int(known.get("accumulation_steps", 1))
        )
        return Config(plan=plan, lr=known.get("lr", 1e-3)), {"batch_size", "lr"} <= known.keys()

    # -- running it --------------------------------------------------------------------------------------------------

    def filled(self, values: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """The words to run and the variables to set, with the places filled in."""
        if self.shell:
            quoted = {name: shlex.quote(value) for name, value in values.items()}
            return ["/bin/sh", "-c", filled(self.command, quoted)], {}
        variables, words = self.words
        environment = dict(filled(word, values).split("=", 1) for word in variables)
        return [filled(word, values) for word in words], environment

    def check_program(self) -> None:
        """Refuse a command whose program or script is not there.

        Raises:
            SettingError: it is not there; the message has what is most like it.
        """
        if self.shell:
            return
        variables, (program, *_) = self.words
        path = next((word.split("=", 1)[1] for word in variables if word.startswith("PATH=")), None)
        if _PLACE.search(program):
            return
        if shutil.which(program, path=path) is None:
            beside = f"{program}3" if shutil.which(f"{program}3", path=path) else None
            hint = f"; did you mean {beside}?" if beside else ""
            why = "may not be run" if Path(program).exists() else "is not there, nor on the PATH"
            raise SettingError(f"the program {program} of the command {why}{hint}")
        script = self.script
        if script is not None and script in map(Path, self.words[1]) and not script.exists() and program != str(script):
            near = [file.name for file in script.parent.glob("*.py")] if script.parent.is_dir() else []
            close = difflib.get_close_matches(script.name, near, 1)
            hint = f"; did you mean {script.parent / close[0]}?" if close else ""
            raise SettingError(f"there is no file {script}, which the command runs{hint}")

    def conditions(self) -> dict[str, str | None]:
        """What the scores of two runs of it are only comparable under, by names that people understand."""
        return {"command": self.command, "score": self.score, "score file": self.score_file}


def _unknown_place(name: str) -> str:
    plain = name.replace("-", "_").lower()
    if plain in _EPOCHS:
        return (
            f"a command has no place {{{name}}}: an epoch of a larger batch has fewer steps. Say how long a run is by "
            "{max_steps} or {max_seconds}, or leave the epochs as they are: a run is stopped when its time is over"
        )
    close = difflib.get_close_matches(plain, PLACES, 1)
    meant = plain if plain in PLACES else _OTHER_NAMES.get(plain, close[0] if close else None)
    hint = f": did you mean {{{meant}}}?" if meant else "."
    known = ", ".join(f"{{{place}}}" for place in PLACES)
    return f"a command has no place {{{name}}}{hint} There are {known}; {{{{{name}}}}} stands for {{{name}}} itself"


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for word in text.replace(",", " ").split():
        name, equals, value = word.partition("=")
        if not equals:
            raise SettingError(f'a baseline is written "batch_size=32 lr=1e-3"; found {text!r}')
        yield name.lstrip("-").replace("-", "_"), value


def as_direction(maximize: bool | None) -> Direction | None:
    """The direction that the flags --maximize and --minimize say."""
    return None if maximize is None else "maximize" if maximize else "minimize"
