"""Where a race stands beside its trials, as one frozen value: what a resumed run needs to decide as an undisturbed one.

It is written with every rung, in the same line of the record, so that there is never one without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ReportError
from ..shapes import NUMBER, Reader

# Rungs by which the pace of the machine is judged as it is now. Assumed: fewer are one hiccup, more are history.
LATEST_RUNGS = 3

Pace = tuple[float, float]  # modelled and measured seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Paces:
    """What finished rungs took over what the profile gave for them; for predictions only.

    Attributes:
        first: of the very first rung, in which a worker warms up; it counts only while it is the only one. None before
            it.
        total: of all later ones together, those left out in which another process warmed up.
        latest: of the last `LATEST_RUNGS` of the later ones.
    """

    first: Pace | None = None
    total: Pace = (0.0, 0.0)
    latest: tuple[Pace, ...] = ()

    def with_rung(self, modelled_s: float, measured_s: float) -> Paces:
        """These, and one rung more."""
        if self.first is None:
            return Paces(first=(modelled_s, measured_s))
        total = (self.total[0] + modelled_s, self.total[1] + measured_s)
        return Paces(first=self.first, total=total, latest=(*self.latest, (modelled_s, measured_s))[-LATEST_RUNGS:])

    @property
    def correction(self) -> float:
        """Measured over modelled seconds; 1 where there are none."""
        return _ratio(self.total if self.latest else self.first or (0.0, 0.0))

    @property
    def slowest_correction(self) -> float:
        """The same, or that of the latest rungs where they were slower.

        A machine that throttles or is shared may stay as slow as it has become: planned by the mean, no time is left
        for the fresh seeds (benchmarks/NOTES.md).
        """
        return max(self.correction, _ratio((sum(m for m, _ in self.latest), sum(s for _, s in self.latest))))


def _ratio(pace: Pace) -> float:
    modelled_s, measured_s = pace
    return measured_s / modelled_s if measured_s > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceState:
    """A race between two pieces of work.

    Attributes:
        count: of the changes written so far; the state with the highest is the latest.
        allotment_s, spent_s: modelled seconds that the race may spend, and has spent.
        max_batch, max_micro_batch: what memory is thought to hold by now.
        paces: of the finished rungs.
        is_exhausted: no proposal was found that had not been tried.
        notes: further reasons for the report.
        charged: the ledger, seconds by kind.
        is_over: nothing more is to be run.
        test_scores: of the chosen and of the baseline; once it is over.
    """

    count: int
    allotment_s: float
    spent_s: float
    max_batch: int
    max_micro_batch: int
    paces: Paces = field(default_factory=Paces)
    is_exhausted: bool = False
    notes: tuple[str, ...] = ()
    charged: Mapping[str, float] = field(default_factory=dict)
    is_over: bool = False
    test_scores: tuple[float | None, float | None] = (None, None)

    def to_json(self) -> dict[str, Any]:
        """The state as plain data; every number comes back to the last bit."""
        return {
            "count": self.count,
            "allotment_s": self.allotment_s,
            "spent_s": self.spent_s,
            "max_batch": self.max_batch,
            "max_micro_batch": self.max_micro_batch,
            "paces": {
                "first": None if self.paces.first is None else list(self.paces.first),
                "total": list(self.paces.total),
                "latest": [list(pace) for pace in self.paces.latest],
            },
            "is_exhausted": self.is_exhausted,
            "notes": list(self.notes),
            "charged": dict(self.charged),
            "is_over": self.is_over,
            "test_scores": list(self.test_scores),
        }

    @classmethod
    def from_json(cls, found: Reader) -> RaceState:
        """The state that `to_json` made.

        Raises:
            ReportError: it is not one.
        """
        paces, charged = found.inside("paces"), found.inside("charged")
        first, scores = paces.get("first", [NUMBER], or_null=True), found.get("test_scores", list)
        if len(scores) != 2 or any(score is not None and not isinstance(score, NUMBER) for score in scores):
            raise ReportError(f"the test scores of a race are two numbers or nulls; found {scores!r:.80}")
        return cls(
            count=found.get("count", int),
            allotment_s=found.number("allotment_s"),
            spent_s=found.number("spent_s"),
            max_batch=found.get("max_batch", int),
            max_micro_batch=found.get("max_micro_batch", int),
            paces=Paces(
                first=None if first is None else _pace(first),
                total=_pace(paces.get("total", [NUMBER])),
                latest=tuple(_pace(pace) for pace in paces.get("latest", [[NUMBER]])),
            ),
            is_exhausted=found.get("is_exhausted", bool),
            notes=found.list_of("notes", str),
            charged={kind: charged.number(kind) for kind in found.get("charged", dict)},
            is_over=found.get("is_over", bool),
            test_scores=(scores[0], scores[1]),
        )


def _pace(found: list[float]) -> Pace:
    if len(found) != 2:
        raise ReportError(f"a pace is modelled and measured seconds; found {found!r:.80}")
    return float(found[0]), float(found[1])
