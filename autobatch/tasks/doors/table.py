"""The table of the front doors, and `as_task`, which uses it."""

from __future__ import annotations

from typing import Any

from ...errors import SettingError, TaskError
from . import by_command, by_path, hf_trainer, lightning_module, live_module, task_object
from .door import OF_SOME, Door, GivenTask

# The first door that accepts something opens it, so a class comes before its base classes.
DOORS: tuple[Door, ...] = (
    task_object.DOOR,
    by_path.DOOR,
    hf_trainer.DOOR,
    lightning_module.DOOR,
    by_command.DOOR,
    live_module.DOOR,
)


def as_task(given: object, *, whole: bool = False, **arguments: Any) -> GivenTask:
    """The task or model of a function call, as the stages open it.

    Args:
        given: anything that one of the `DOORS` takes.
        whole: it is to be trained, and so must say what is trained on which data.
        arguments: of `ARGUMENTS` and `OF_SOME`; None for one that was not given.

    Raises:
        SettingError: no door takes it, an argument is void for it, or it lacks what training needs.
        TaskError: what is wrong with it, as far as it shows without running it.
    """
    door = next((door for door in DOORS if door.takes(given) and (door.is_whole or not whole)), None)
    if door is None:
        needed = " or ".join(door.what for door in DOORS if door.is_whole)
        raise SettingError(
            f"{needed} is needed, which say what is trained on which data; got {type(given).__name__}. "
            "`find_max_batch` and `profile` take a model as it is"
        )
    asked = {name: value for name, value in arguments.items() if value is not None}
    for name, place in door.said_by.items():
        if name in asked:  # refused, so that nobody thinks it had an effect
            raise SettingError(f"{name}= is for a live module; with a task it is {place} that counts: change it there")
    for name in asked.keys() & OF_SOME.keys() - set(door.also):
        raise SettingError(f"{name}= is for {OF_SOME[name]}; got {type(given).__name__}: leave it out")
    made = door.opened(given, **asked)
    if whole and made.only_measured is not None:
        raise TaskError(made.only_measured)
    return made
