"""When this program started."""

from __future__ import annotations

import os
import time

IMPORTED_S = time.monotonic()
# What it takes to start an interpreter and to import this, at most, on a slow disk. Assumed: usual are tenths.
INTERPRETER_S = 5.0


def since_start_s() -> float:
    """Seconds since this program started, so that the budget pays for its start-up.

    The process may be older than the program: `exec` keeps the process, and `bash -c "pip install ... && autobatch
    tune ..."` ends with an `exec`. Time beyond what an interpreter needs to import this module was another program's.
    """
    since_import_s = time.monotonic() - IMPORTED_S
    age_s = process_age_s()
    return age_s if age_s - since_import_s <= INTERPRETER_S else since_import_s


def process_age_s() -> float:
    """Seconds since this process began; 0 if the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii") as stat, open("/proc/uptime", encoding="ascii") as uptime:
            started_ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
            return max(0.0, float(uptime.read().split()[0]) - started_ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
