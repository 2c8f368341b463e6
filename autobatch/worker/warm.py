"""Importing this imports all that reading a task and its data needs, and touches no device.

It is what a fork server has first; what steps need comes after it (`first_step.py`).
"""

from __future__ import annotations

import torch

from ..devices import cpu  # noqa: F401
from ..tasks import inputs  # noqa: F401
from . import torch_runner  # noqa: F401

# Not for the worker, which sets its own: GNU OpenMP's threads do not live through a fork, and a worker of a server that
# has had them waits for them for ever. With one thread nothing that is imported here, now or later, starts them.
torch.set_num_threads(1)
