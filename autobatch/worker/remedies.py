"""torch's errors that do not say what to do, with a remedy."""

from __future__ import annotations

from ..devices.oom import is_unsupported
from ..errors import TaskError, first_line, text_of


def known_remedy(error: BaseException) -> TaskError | None:
    """What is wrong and what to do, for an `error` that is known here; otherwise None."""
    # By its name: the class is private to torch, and comes wrapped in others that quote it, over a dozen lines.
    if "InvalidCxxCompiler" in f"{type(error).__name__}: {text_of(error)}":
        return TaskError(
            "torch.compile needs a C++ compiler and found none: install g++, name another in the variable CXX, or "
            "leave compile out"
        )
    if is_unsupported(error):
        return TaskError(
            "the model has an operation that torch does not support on this processor in this precision "
            f"({first_line(error).partition('. ')[0]}). Train in fp32, or write `torch.backends.mkldnn.enabled = "
            "False` at the top of the file: all of its operations then run without oneDNN, most of them more slowly"
        )
    return None
