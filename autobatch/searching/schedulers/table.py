"""The names of the searches, and where each is defined."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import SettingError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from .base import Scheduler
    from .candidates import Candidates

# Each value of --search, with a module of this folder and a callable in it that makes a `Scheduler` from `Candidates`.
# The modules are not imported here: they need Optuna and numpy, which `autobatch --help` does not load.
SEARCHES = {
    "auto": "switch:auto",
    "freeze-thaw": "freeze_thaw:FreezeThaw",
    "tpe": "halving:Halving",
}


def scheduler_for(search: str | BaseSampler, candidates: Candidates) -> Scheduler:
    """The search of that name, or successive halving with that sampler.

    Raises:
        SettingError: there is no search of that name.
    """
    if not isinstance(search, str):
        from .halving import Halving  # late: it imports Optuna

        return Halving(candidates, search)
    if search not in SEARCHES:
        raise SettingError(
            f"a search is one of {', '.join(SEARCHES)}, or an optuna.samplers.BaseSampler; found {search!r}"
        )
    module, _, name = SEARCHES[search].partition(":")
    make: Callable[[Candidates], Scheduler] = getattr(import_module(f".{module}", __package__), name)
    return make(candidates)
