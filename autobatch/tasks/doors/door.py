"""What a front door is, and what it makes of the function's argument: the one thing that the stages open."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..libraries import NO_LIBRARIES, Libraries

if TYPE_CHECKING:
    from ..command import Command
    from ..later import TaskLater
    from ..task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTask:
    """The argument of a function such as `tune`, as something that this process or another one can open.

    Attributes:
        name: for titles and folders.
        path: of a task file, which each process runs for itself; or
        task: one made in code, which is pickled for another process; or
        later: what one is made of in that process; or
        command: a script that is run as it is typed. One of the four is there.
        is_live: the task's model is the user's own object: it is borrowed, or copied, and not made anew.
        assumed: a sentence for each thing that was assumed about it.
        guess: of them the one about the model's input, where nothing said what that is.
        only_measured: why it can be measured and not trained, in a sentence, as where nothing says how it is scored;
            None where it can.
        alone: why each model of it trains in one process, in a sentence; None where several may train it together.
        libraries: what each process that opens it imports, which takes long: it is imported once for all of them. Only
            where there is no accelerator, whose driver an import may start, which does not live through a fork.
    """

    name: str
    path: Path | None = None
    task: Task | None = None
    later: TaskLater | None = None
    command: Command | None = None
    is_live: bool = False
    assumed: tuple[str, ...] = ()
    guess: str | None = None
    only_measured: str | None = None
    alone: str | None = None
    libraries: Libraries = NO_LIBRARIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One front door.

    Attributes:
        what: may come in by it, in words.
        takes: whether something may; without importing what defines it (`is_a`).
        opened: what is made of it, given the arguments that it takes of `ARGUMENTS`.
        also: arguments of `OF_SOME` that it takes beside.
        said_by: for each of the others, what says it already, in words: such an argument is refused.
        is_whole: it says what is trained on which data, so that it can be trained and not only measured.
    """

    what: str
    takes: Callable[[object], bool]
    opened: Callable[..., GivenTask]
    also: tuple[str, ...] = ()
    said_by: Mapping[str, str] = field(default_factory=dict)
    is_whole: bool = True


# The arguments of a function beside the task or model itself.
ARGUMENTS = ("sample", "data", "loss", "optimizer", "precision")

# What only some of what a verb is given takes beside, and what that is.
OF_SOME = {
    **dict.fromkeys(("datamodule", "trainer"), "a LightningModule"),
    **dict.fromkeys(("monitor", "direction"), "a LightningModule or a transformers Trainer"),
}

# What a task says itself.
SAID_BY_TASK = {
    "sample": "the task's train_data()",
    "data": "the task's train_data()",
    "loss": "the task's loss(model, batch)",
    "optimizer": "the task's optimizer(model, lr)",
    "precision": "the task's `precision`",
}


def is_a(given: object, module: str, name: str) -> bool:
    """Whether something is an instance of a class that must not be imported for the check.

    An instance can only exist if its class has been imported. So the coordinator stays free of torch, and of all other
    libraries for training.
    """
    kind: Any = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(given, kind)
