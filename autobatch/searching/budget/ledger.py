"""One budget, to which all time is charged: what the time went to, and what still fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ...errors import SettingError

# Time is counted in whole ticks of 2**-20 s (about a microsecond). Every sum of ticks below 2**33 s (272 years) is
# exact in a double, so the entries add up to the elapsed time to the last bit, however often they are read.
_TICKS_PER_S = 1 << 20

# Kept for the report: 1 % of the budget, at most a second. Assumed: drawing and writing one takes about 0.1 s.
REPORT_SHARE = 0.01
REPORT_MOST_S = 1.0
# The most that is kept where a report took longer on this machine. Assumed: more is too much, even to end on time.
REPORT_AT_MOST = 0.05


def report_reserve_s(budget_s: float) -> float:
    """Seconds of a budget that no work may be planned into."""
    return min(REPORT_MOST_S, REPORT_SHARE * budget_s)


class Ledger:
    """The time budget of one run.

    Time is charged to the kind of work that is open (see `charge`). While none is open, it is charged to "other". The
    clock is an argument, so that a simulated hour passes at once.

    Args:
        budget_s: seconds that the whole run may take.
        clock: returns seconds that never run backwards.
        started_s: the clock's reading when the run began, if that was earlier than now. The time since then is charged
            to "start-up".
        carried: the entries of an earlier ledger that this one continues. The time between the two is not charged.

    Raises:
        SettingError: the budget is not positive and finite.
    """

    def __init__(
        self,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
        started_s: float | None = None,
        carried: Mapping[str, float] | None = None,
    ) -> None:
        if not (math.isfinite(budget_s) and budget_s > 0):
            raise SettingError(f"a budget is a finite number of seconds above zero; found {budget_s}")
        now_s = clock()
        if started_s is not None and started_s > now_s:
            raise ValueError(f"a run cannot have started after now: {started_s} > {now_s}")
        self.budget_s = budget_s
        self._kept_back_s = report_reserve_s(budget_s)
        self._clock = clock
        self._charged = {kind: self._ticks(seconds) for kind, seconds in (carried or {}).items()}
        self._open: list[str] = []
        self._since = self._ticks(now_s)
        begun = self._since if started_s is None else self._ticks(started_s)
        self._start = begun - sum(self._charged.values())
        if started_s is not None:
            self._charged["start-up"] = self._charged.get("start-up", 0) + self._since - begun

    @contextmanager
    def charge(self, kind: str) -> Iterator[None]:
        """Charge the time inside the `with` block to `kind`; a charge inside it takes its own time out of this one."""
        self._settle()
        self._open.append(kind)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def transfer(self, source: str, target: str, seconds: float) -> None:
        """Move up to `seconds` already charged to `source` over to `target`.

        For work that is one call here and reports its parts afterwards: a segment is training, evaluation and
        checkpoint.
        """
        moved = min(self._ticks(max(0.0, seconds)), self._charged.get(source, 0))
        if moved > 0:
            self._charged[source] -= moved
            self._charged[target] = self._charged.get(target, 0) + moved

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return (self._ticks(self._clock()) - self._start) / _TICKS_PER_S

    @property
    def remaining_s(self) -> float:
        """Seconds until the budget ends; 0 after its end."""
        return max(0.0, self.budget_s - self.elapsed_s)

    @property
    def available_s(self) -> float:
        """Seconds that work may still be planned into: what remains, less what is kept for the report."""
        return max(0.0, self.remaining_s - self._kept_back_s)

    def keep_back(self, seconds: float) -> None:
        """Keep this many seconds for the report, if that is more than is kept anyway; at most `REPORT_AT_MOST`."""
        self._kept_back_s = max(self._kept_back_s, min(seconds, REPORT_AT_MOST * self.budget_s))

    def fits(self, predicted_s: float) -> bool:
        """Whether work of `predicted_s` seconds would end before the time that is kept for the report."""
        return predicted_s <= self.available_s

    def entries(self) -> dict[str, float]:
        """Seconds by kind, open charges included, with "other" last; their sum is the elapsed time, exactly."""
        self._settle()
        charged = {kind: ticks / _TICKS_PER_S for kind, ticks in self._charged.items() if kind != "other"}
        other = self._since - self._start - sum(ticks for kind, ticks in self._charged.items() if kind != "other")
        return charged | {"other": other / _TICKS_PER_S}

    def to_json(self) -> dict[str, object]:
        """The ledger as plain data: `budget_s`, `elapsed_s` and `entries`, read at one moment."""
        entries = self.entries()
        return {"budget_s": self.budget_s, "elapsed_s": sum(entries.values()), "entries": entries}

    def _settle(self) -> None:
        """Charge the time since the last reading to the innermost open kind."""
        now = self._ticks(self._clock())
        if self._open:
            self._charged[self._open[-1]] = self._charged.get(self._open[-1], 0) + now - self._since
        self._since = now

    @staticmethod
    def _ticks(seconds: float) -> int:
        return math.floor(seconds * _TICKS_PER_S)
