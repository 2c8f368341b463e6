"""State that a step changes and that no `state_dict` holds: it travels with the trial all the same.

`Carried` looks at a trial when it is made and when it is paused, and what differs goes into the checkpoint: a counter
in a module, a second optimizer, a teacher or a memory bank, in attributes, globals or closures. The optimizer and the
schedule are kept as a whole, with each parameter by its name: two processes may have the parameters in different
orders.

`Outside` restores state that belongs to no single trial, a global or a class attribute, to its value before the first
trial. So the next trial in the same process begins as the first did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TaskError, TooLarge
from ..tasks.object_reader import Reader
from ..tasks.object_record import Record
from ..tasks.object_writer import TOO_MANY, Writer
from ..tasks.places import (
    ABSENT,
    Place,
    classes_made_by,
    names_of_model,
    places_of_functions,
    places_of_model,
    places_of_object,
)
from ..tasks.task import Task

# The most bytes of a global tensor or array of which a copy is kept, to begin each trial with. Assumed: larger ones are
# tables in which a loss looks things up, and no step changes them.
_LARGEST_COPY = 64 << 20

REMEDY_FOR_LOST = (
    "Keep tensors, numbers or plain Python objects there, or give the module get_extra_state() and set_extra_state()"
)


class _Seen:
    """The contents of the places at one moment, as checksums."""

    _writer: Writer

    def __init__(self, places: Mapping[str, Place], named: Mapping[int, str], before: _Seen | None = None) -> None:
        self.too_large: set[str] = set()
        writer = self._writer = Writer(named, tensors="sum", before=before._writer if before else None)
        for name, place in places.items():
            value = place.get()
            if value is ABSENT:
                continue
            try:
                writer.write(name, value)
            except TooLarge:
                self.too_large.add(name)
        self.values, self.objects = writer.record.values, writer.record.objects
        self.opaque = writer.record.opaque

    def changed(self, before: _Seen) -> list[str]:
        """The names of the places whose contents differ from before."""
        left_out = self.too_large | before.too_large
        if self.values == before.values and self.objects == before.objects:
            return []
        references = [set(_references(node)) for node in self.objects]
        known = len(before.objects)
        differ = {at for at, node in enumerate(self.objects) if at >= known or node != before.objects[at]}
        while more := {at for at, leads in enumerate(references) if at not in differ and leads & differ}:
            differ |= more
        return [
            name
            for name in {**before.values, **self.values}
            if name not in left_out
            and (
                name not in self.values
                or name not in before.values
                or self.values[name] != before.values[name]
                or set(_references(self.values[name])) & differ
            )
        ]


def _references(node: Any) -> Iterator[int]:
    if isinstance(node, list):
        if len(node) == 2 and node[0] == "#" and isinstance(node[1], int):
            yield node[1]
        else:
            for inner in node:
                yield from _references(inner)


class Watched:
    """What a model and the functions of its task keep beside the `state_dict`, and what of it has changed.

    Args:
        task: the task whose functions train the model.
        model: the model as it was made.
        parts: other parts of the trial, by name.
    """

    def __init__(self, task: Task, model: nn.Module, parts: Mapping[str, Any]) -> None:
        self._model, self._parts = model, parts
        self._functions = dict(
            places_of_functions(_functions_of(task), {type(m) for m in model.modules()}, _root(task))
        )
        self._before = _Seen(self._places(), self._numbers())

    def _named(self) -> dict[str, Any]:
        return {**names_of_model(self._model), **self._parts}

    def _numbers(self) -> dict[int, str]:
        return {id(value): name for name, value in reversed(self._named().items())}

    def _places(self) -> dict[str, Place]:
        return {**dict(places_of_model(self._model)), **self._functions}

    def warnings(self) -> list[str]:
        """About what has changed and cannot be written down, and about what is too large to see whether it has."""
        return [*self.too_large(), *map(_cannot_be_kept, self.lost())]

    def too_large(self) -> list[str]:
        """A warning about each place that is too large to see whether it has changed."""
        places = self._places()
        now = _Seen(places, self._numbers(), self._before)
        large = sorted(now.too_large | self._before.too_large)
        return [_too_large(places[name]) for name in large if name in places and not self._says_its_state(name)]

    def lost(self) -> list[str]:
        """What has changed and cannot be written down, by the names that a person calls it."""
        places = self._places()
        now = _Seen(places, self._numbers(), self._before)
        new = now.opaque - self._before.opaque
        found: list[str] = []
        for name in now.values if new else ():
            single = Writer(self._numbers(), tensors="sum")
            value = places[name].get()
            if value is not ABSENT:
                single.write(name, value)
                if single.finish().opaque & new and not self._says_its_state(name):
                    found.append(places[name].description)
        return found

    def _says_its_state(self, name: str) -> bool:
        """Whether a place belongs to a module that saves its own state."""
        path = name.removeprefix("module ").rpartition(".")[0]
        module = dict(self._model.named_modules()).get(path) if name.startswith("module ") else None
        return module is not None and type(module).get_extra_state is not nn.Module.get_extra_state


class Carried(Watched):
    """The state of one trial beside its `state_dict`s.

    Args:
        task, model: as in `Watched`.
        optimizer, scheduler, scaler: those of the trial, as they were made.
        forward: the model as the steps call it.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        scaler: Any = None,
        forward: nn.Module | None = None,
    ) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler
        parts = {
            "the optimizer": optimizer,
            "the schedule": scheduler,
            "the gradient scaler": scaler,
            "the compiled model": forward if forward is not model else None,
        }
        super().__init__(task, model, {name: part for name, part in parts.items() if part is not None})
        self._groups = self._names_of_groups()
        self._sums = self._sums_of_left_out()

    def _whole(self) -> dict[str, Place]:
        """The places of the optimizer and the schedule, which are kept whether they changed or not."""
        places = dict(places_of_object("optimizer", self._optimizer))
        if self._scheduler is not None:
            places |= dict(places_of_object("schedule", self._scheduler))
        return places

    def _left_out(self) -> dict[str, Tensor]:
        """Tensors of the model that are not in its `state_dict`, such as buffers that are not persistent."""
        kept = {id(value) for value in self._model.state_dict(keep_vars=True).values()}
        tensors = (*self._model.named_parameters(), *self._model.named_buffers())
        return {name: tensor for name, tensor in tensors if id(tensor) not in kept}

    def _sums_of_left_out(self) -> dict[str, Any]:
        writer = Writer({}, tensors="sum")
        for name, tensor in self._left_out().items():
            writer.write(name, tensor)
        record = writer.finish()
        return {name: record.objects[node[1]] for name, node in record.values.items()}

    def _names_of_groups(self) -> list[list[str]]:
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        return [
            sorted(names.get(id(parameter), "") for parameter in group["params"])
            for group in self._optimizer.param_groups
        ]

    def state(self, *, whole: bool = True) -> dict[str, Any]:
        """Everything that has changed since the trial was made, as plain data and tensors.

        Args:
            whole: whether to include the optimizer and the schedule.
        """
        places, numbers = self._places(), self._numbers()
        changed = _Seen(places, numbers, self._before).changed(self._before)
        writer = Writer(numbers, tensors="refer")
        gone = []
        for name, place in {**{name: places.get(name) for name in changed}, **(self._whole() if whole else {})}.items():
            if place is None or place.get() is ABSENT:
                gone.append(name)
                continue
            try:
                writer.write(name, place.get())
            except TooLarge:
                raise TaskError(
                    f"{place.description} cannot be kept in a checkpoint: it leads to {TOO_MANY}. "
                    "Keep tensors or arrays there"
                ) from None
        sums, tensors = self._sums_of_left_out(), self._left_out()
        return {
            **writer.finish().plain(),
            "gone": gone,
            "groups": self._groups,
            "left_out": {name: tensors[name].detach() for name in tensors if sums[name] != self._sums.get(name)},
            "frozen": [name for name, parameter in self._model.named_parameters() if not parameter.requires_grad],
            "resting": [name for name, module in self._model.named_modules() if not module.training],
        }

    def order_of_groups(self, state: Mapping[str, Any]) -> list[int] | None:
        """For each group of this optimizer, its position in that of `state`; None if the order is the same."""
        theirs, mine = state["groups"], self._groups
        if theirs == mine or sorted(theirs) != sorted(mine):
            return None
        return [mine.index(names) for names in theirs]

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from what `state` returned, in a newly made trial.

        Raises:
            CheckpointError: it has something that this trial lacks.
        """
        for name, tensor in state["left_out"].items():
            self._put_tensor(name, tensor, device)
        frozen, resting = set(state["frozen"]), set(state["resting"])
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        for name, module in self._model.named_modules():
            module.training = name not in resting
        record = Record.of_plain(state)
        reader = Reader(record, self._named(), device)
        modules = dict(self._model.named_modules())
        places = {**self._places(), **self._whole()}
        for name in record.values:
            place = places.get(name) or self._new_place(name, modules)
            if place is not None and record.values[name] != ["opaque"]:
                current = place.get()
                place.put(reader.read(name) if current is ABSENT else reader.read(name, current))
        for name in state["gone"]:
            if name in places:
                places[name].put(ABSENT)

    def _new_place(self, name: str, modules: Mapping[str, nn.Module]) -> Place | None:
        """The place of an attribute that training has added."""
        if name.startswith("module "):
            path, _, attribute = name.removeprefix("module ").rpartition(".")
            return Place(name, modules[path].__dict__, attribute) if path in modules else None
        part, _, attribute = name.partition(".")
        owner = {"optimizer": self._optimizer, "schedule": self._scheduler}.get(part)
        return None if owner is None else Place(name, owner, attribute)

    def _put_tensor(self, name: str, tensor: Tensor, device: torch.device) -> None:
        path, _, key = name.rpartition(".")
        owner = self._model.get_submodule(path)
        current = getattr(owner, key, None)
        if isinstance(current, Tensor) and (current.shape, current.dtype) == (tensor.shape, tensor.dtype):
            current.detach().copy_(tensor)
        else:
            owner._buffers[key] = tensor.to(device)


def _cannot_be_kept(description: str) -> str:
    return (
        f"{description} changes in training and cannot be kept in a checkpoint, so a trial that is paused "
        f"goes on without it. {REMEDY_FOR_LOST}"
    )


def _too_large(place: Place) -> str:
    value = place.get()
    # Only of built-in types: another `__len__` may do anything.
    size = f" of {len(value):,}" if type(value) in (list, tuple, dict, set, deque) else ""
    return (
        f"{place.description} (a {type(value).__name__}{size}) leads to {TOO_MANY}: that is too much "
        "to see whether training changes it, and to keep it in a checkpoint. If training does, a trial that is paused "
        "goes on without it: keep a tensor or an array there, or give the module get_extra_state() and "
        "set_extra_state()"
    )


def plain_of(value: Any) -> dict[str, Any]:
    """Objects as plain data and tensors.

    Raises:
        TaskError: they cannot be saved.
    """
    writer = Writer({}, tensors="refer")
    try:
        writer.write("value", value)
        record = writer.finish()
    except TooLarge:
        raise TaskError("get_extra_state() leads to too many objects to keep: return less") from None
    if record.opaque:
        kinds = ", ".join(sorted({kind for kind, _, _ in record.opaque}))
        raise TaskError(f"get_extra_state() holds what cannot be kept in a checkpoint ({kinds}): return plain data")
    return record.plain()


def objects_of(plain: Mapping[str, Any]) -> Any:
    """The objects that `plain_of` saved."""
    return Reader(Record.of_plain(plain), {}, torch.device("cpu")).read("value")


def _functions_of(task: Task) -> list[tuple[str, Callable[..., Any] | None]]:
    # An after_step with a state_dict is the trial's own copy, and is saved through that.
    own = task.after_step if not hasattr(task.after_step, "state_dict") else None
    return [
        ("loss", task.loss),
        ("before_step", task.before_step),
        ("training_step", task.training_step),
        ("after_step", own),
        ("collate", task.collate),
    ]


def _root(task: Task) -> Any:
    return task.path.parent if task.path else None


class Outside:
    """What a task's functions keep outside of any model. It is restored before each trial."""

    def __init__(self, task: Task) -> None:
        classes = classes_made_by(task.model, _root(task))
        self._places = dict(places_of_functions(_functions_of(task), classes, _root(task)))
        self._keep(self._places)

    def _keep(self, places: Iterable[str]) -> None:
        self._before = _Seen(self._places, {})
        writer = Writer({}, tensors="copy", largest=_LARGEST_COPY)
        self._absent = {name for name in places if self._places[name].get() is ABSENT}
        for name in self._places:
            if name not in self._absent and name not in self._before.too_large:
                writer.write(name, self._places[name].get())
        self._copy = writer.finish()

    def reset(self) -> None:
        """Restore what has changed."""
        changed = _Seen(self._places, {}, self._before).changed(self._before)
        if not changed:
            return
        reader = Reader(self._copy, {}, torch.device("cpu"))
        for name in changed:
            if name in self._absent:
                self._places[name].put(ABSENT)
            elif name in self._copy.values:
                self._places[name].put(reader.read(name, self._places[name].get()))

    @contextmanager
    def accepted(self) -> Iterator[None]:
        """Changes inside become the state that each trial begins with: a data function may prepare a loss."""
        before = _Seen(self._places, {})
        yield
        now = _Seen(self._places, {}, before)
        if now.changed(before):
            self._keep(self._places)
