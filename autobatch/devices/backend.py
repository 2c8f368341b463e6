"""One table of what each kind of device has. No other module compares the names of kinds.

A new kind is a row here, a file with its `Device`, and its word in `DeviceInfo.kind`. The coordinator reads the table
too, so importing it imports no torch: what needs torch is imported where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..core.facts import DeviceKind
from ..core.plan import Precision

if TYPE_CHECKING:
    import torch

    from .base import Device


class _Home(Protocol):
    """The contents of a kind's file; `why_absent` only for cards."""

    def open_nth(self, index: int) -> Device: ...

    def why_absent(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What a kind of device has, and how torch accesses it.

    Attributes:
        kind: the word in `DeviceInfo`.
        torch_name: the type of a `torch.device`, the name of torch's module, and what the user writes. Two kinds may
            share it.
        home: the file in this folder that has its `Device`.
        is_processor: whether it is the machine's own processor, whose cores and memory all processes share.
        has_cards: whether there may be several, which are numbered, and of which each process takes one.
        collective: torch.distributed's backend for its tensors; None if ranks cannot use it.
        pins_memory: whether copies to it are faster from pinned memory.
        precisions: the precisions that a task may use.
        benched: the precisions that a benchmark measures by default.
        visible: the environment variable that limits which cards a process sees.
    """

    kind: DeviceKind
    torch_name: str
    home: str
    is_processor: bool = False
    has_cards: bool = False
    collective: str | None = None
    pins_memory: bool = False
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    benched: tuple[Precision, ...] = ("fp32", "bf16")
    visible: str | None = None

    def count(self) -> int:
        """How many of them this process sees."""
        if self.is_processor:
            return 1
        module = self._module()
        return int(module.device_count()) if module.is_available() else 0

    def names(self) -> list[str]:
        """Those that this process sees, by the user's names."""
        return [f"{self.torch_name}:{index}" if self.has_cards else self.torch_name for index in range(self.count())]

    def open(self, index: int) -> Device:
        """The device with this number. Opening it changes nothing."""
        return self._home().open_nth(index)

    def why_absent(self) -> str:
        """Why this process sees none of these cards, in one sentence."""
        return self._home().why_absent()

    def current_index(self) -> int:
        """The number of the card that torch uses by default."""
        return int(self._module().current_device())

    def make_current(self, device: torch.device) -> None:
        """Make `device` torch's default. Does nothing for a kind without numbers."""
        if self.has_cards:
            self._module().set_device(device)

    def rng_state(self) -> Any:
        """The state of the random generators of all of them; None if this process uses none of them.

        The processor's generator is torch's own, `torch.get_rng_state`, and is not included.
        """
        if self.is_processor:
            return None
        module = self._module()
        if self.has_cards:  # check for use first: counting cards may start the driver
            return module.get_rng_state_all() if module.is_initialized() else None
        return module.get_rng_state() if module.is_available() else None

    def set_rng_state(self, state: Any) -> None:
        """Restore the generators to a state from `rng_state`."""
        if self.has_cards:
            self._module().set_rng_state_all(state)
        else:
            self._module().set_rng_state(state)

    def _module(self) -> Any:
        import torch

        return getattr(torch, self.torch_name)

    def _home(self) -> _Home:
        return cast(_Home, import_module(f".{self.home}", __package__))


_CUDA = Backend(
    kind="cuda",
    torch_name="cuda",
    home="cuda",
    has_cards=True,
    collective="nccl",
    pins_memory=True,
    precisions=("fp32", "tf32", "bf16", "fp16"),
    benched=("fp32", "tf32", "bf16"),
    visible="CUDA_VISIBLE_DEVICES",
)

# "auto" takes the first of them that exists.
_TABLE = (
    _CUDA,
    # ROCm uses torch.cuda, accepts tf32 like CUDA, and has it on few cards.
    replace(_CUDA, kind="rocm", benched=("fp32", "bf16")),
    # tf32 exists there too, but the documentation of torch.set_float32_matmul_precision only mentions CUDA.
    Backend(
        kind="xpu",
        torch_name="xpu",
        home="xpu",
        has_cards=True,
        collective="xccl",
        pins_memory=True,
        visible="ZE_AFFINITY_MASK",
    ),
    Backend(kind="mps", torch_name="mps", home="mps"),
    Backend(kind="cpu", torch_name="cpu", home="cpu", is_processor=True, collective="gloo"),
)

BACKENDS = {backend.kind: backend for backend in _TABLE}
# By torch's name. Kinds that share a name have the same properties under it.
NAMED: dict[str, Backend] = {}
for _backend in _TABLE:
    NAMED.setdefault(_backend.torch_name, _backend)
# The kinds with cards, one for each process.
CARDS = {name: backend for name, backend in NAMED.items() if backend.has_cards}
(PROCESSOR,) = (backend for backend in _TABLE if backend.is_processor)


def names_in_words(number: str) -> list[str]:
    """The names that a user may write, with `number` in the place of a card's number."""
    words = ["auto", PROCESSOR.torch_name]
    for name, backend in NAMED.items():
        if backend is not PROCESSOR:
            words += [name, f"{name}:{number}"] if backend.has_cards else [name]
    return words


def is_processor(device: torch.device) -> bool:
    """Whether tensors on `device` are in the memory of the machine."""
    return device.type == PROCESSOR.torch_name
