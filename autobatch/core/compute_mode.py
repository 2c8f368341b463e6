"""One way of computing the same training: a precision, a memory format, compiled or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from ..errors import SettingError
from .plan import Precision
from .words import did_you_mean

# What may follow the precision, joined with "+".
_CHANNELS_LAST, _COMPILE = "channels_last", "compile"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeMode:
    """One way of computing a training: a precision, a memory format, compiled or not.

    Attributes:
        precision: "fp32" as torch computes by default, "tf32" with float32 matrix products on tensor cores, "bf16" and
            "fp16" under autocast.
        channels_last: whether images are stored with their channels last.
        compile: whether the model goes through torch.compile.
    """

    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False

    @property
    def name(self) -> str:
        """The name as a user types it: "bf16+channels_last+compile"."""
        flags = ((_CHANNELS_LAST, self.channels_last), (_COMPILE, self.compile))
        return "+".join([self.precision, *(word for word, is_on in flags if is_on)])

    @classmethod
    def parse(cls, text: str) -> ComputeMode:
        """The compute mode that `text` names. A memory format or "compile" alone means fp32.

        Raises:
            SettingError: a word is unknown or comes twice.
        """
        words = text.strip().split("+")
        precisions = [word for word in words if word in get_args(Precision)]
        known = {*get_args(Precision), _CHANNELS_LAST, _COMPILE}
        if len(precisions) > 1 or len(set(words)) < len(words) or not known.issuperset(words):
            raise SettingError(
                f'"{text}" is no way to compute: write one of {", ".join(get_args(Precision))}, and "+channels_last" '
                f'or "+compile" behind it, as in bf16+channels_last+compile{_meant(words, known)}'
            )
        return cls(
            precision=precisions[0] if precisions else "fp32",  # type: ignore[arg-type]  # it is one of them
            channels_last=_CHANNELS_LAST in words,
            compile=_COMPILE in words,
        )


def parse_compute_modes(texts: Iterable[str]) -> tuple[ComputeMode, ...]:
    """The named compute modes, in order, each once.

    Raises:
        SettingError: as for `ComputeMode.parse`, or no mode is named.
    """
    compute_modes = tuple(dict.fromkeys(ComputeMode.parse(text) for text in texts))
    if not compute_modes:
        raise SettingError("at least one precision is needed, such as fp32")
    return compute_modes


def _meant(words: Iterable[str], known: Iterable[str]) -> str:
    """The word that the first unknown one may have been."""
    known = sorted(known)
    return did_you_mean(next((word for word in words if word not in known), ""), known)
