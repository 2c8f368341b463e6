"""`autobatch.log`: a line of a training script for whoever tunes it by `--command`.

It is cheap to import and to call, and does nothing where nobody listens.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from ..errors import SettingError

if TYPE_CHECKING:
    from typing import SupportsFloat, SupportsInt

VARIABLE = "AUTOBATCH_LOG"  # the file that the lines go to


def log(
    score: SupportsFloat | None = None, *, step: SupportsInt | None = None, samples: SupportsInt | None = None
) -> None:
    """Tell autobatch how far a training is, from a script that `autobatch tune --command` runs.

    It does nothing in a script that is run otherwise, and in all processes but the first of those that train together.

    Args:
        score: on the validation data; the last one counts. Anything that `float` takes, a tensor of one number too.
        step: optimizer steps taken so far.
        samples: training samples seen so far, from which the speed follows.

    Raises:
        SettingError: a value is no number.
    """
    path = os.environ.get(VARIABLE)
    if not path or os.environ.get("RANK", "0") not in ("", "0"):
        return
    said: dict[str, float] = {"at_s": time.monotonic()}
    try:
        if score is not None:
            said["score"] = float(score)
        if step is not None:
            said["step"] = int(step)
        if samples is not None:
            said["samples"] = int(samples)
    except (TypeError, ValueError) as error:
        raise SettingError(f"autobatch.log takes numbers: score, step=, samples=; {error}") from None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # autobatch has ended since, and the training goes on without it
        return
    try:
        os.write(descriptor, json.dumps(said).encode() + b"\n")  # in one piece: lines of several processes do not mix
    finally:
        os.close(descriptor)
