"""Where figures come from: what every JSON file of a benchmark says of the machine, the software and the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autobatch._version import __version__
from autobatch.devices import host_memory
from autobatch.devices.environment import default_threads


def about(*packages: str) -> dict[str, Any]:
    """Command, date, machine and versions as plain JSON values.

    Args:
        packages: whose versions matter, beside those of Python, torch and autobatch.
    """
    versions = {"autobatch": __version__, "python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *(_named(word) for word in sys.argv[1:])]
    return {
        "command": shlex.join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": host_memory.processor_name() or platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": default_threads(),
        },
        "versions": versions,
    }


def _named(word: str) -> str:
    """A word of the command line without the folders of the machine it was typed on."""
    path = Path(word)
    return path.name if path.is_absolute() else word
