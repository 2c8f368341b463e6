"""The names of the searches, and where each is made."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import SettingError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from .base import Scheduler
    from .candidates import Candidates

# Each word of --search, with a module of this folder and what it has that makes a `Scheduler` of `Candidates`. They are
# named and not imported: they need Optuna and numpy, which `autobatch --help` does without.
SEARCHES = {
    "auto": "switch:auto",
    "freeze-thaw": "freeze_thaw:FreezeThaw",
    "tpe": "halving:Halving",
}


def scheduler_for(search: str | BaseSampler, candidates: Candidates) -> Scheduler:
    """The search of that name, or successive halving over the sampler that was given.

    Raises:
        SettingError: there is no search of that name.
    """
    if not isinstance(search, str):
        from .halving import Halving  # as above

        return Halving(candidates, search)
    if search not in SEARCHES:
        raise SettingError(
            f"a search is one of {', '.join(SEARCHES)}, or an optuna.samplers.BaseSampler; found {search!r}"
        )
    module, _, name = SEARCHES[search].partition(":")
    make: Callable[[Candidates], Scheduler] = getattr(import_module(f".{module}", __package__), name)
    return make(candidates)
