"""Importing this imports everything that reading a task and its data needs, and touches no device.

A fork server imports it first; what steps need follows (`first_step.py`).
"""

from __future__ import annotations

import torch

from ..devices import cpu  # noqa: F401
from ..tasks import inputs  # noqa: F401
from . import torch_runner  # noqa: F401

# Not for the worker, which sets its own number. GNU OpenMP's threads do not survive a fork, and a worker whose server
# had such threads waits for them for ever. With one thread, no import starts them, now or later.
torch.set_num_threads(1)
