"""The state of a race beside its trials, as one frozen value: with it, a resumed run decides as an undisturbed one.

It is written with every segment, in the same line of the record, so that there is never one without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.json_reader import NUMBER, Reader
from ...errors import ReportError
from ..budget.timing_correction import Paces


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceState:
    """A race between two pieces of work.

    Attributes:
        count: the number of changes written so far. The state with the highest number is the latest.
        allotment_s, spent_s: modelled seconds that the race may spend, and has spent.
        max_batch, max_micro_batch: what memory should hold, by what is known now.
        paces: of the finished segments.
        is_exhausted: the search has nothing new left to propose.
        notes: further reasons for the report.
        charged: the ledger's entries, seconds by kind.
        is_over: nothing more will run.
        test_scores: of the chosen configuration and of the baseline, once the race is over.
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
        """The state as plain data; every number survives to the last bit."""
        return {
            "count": self.count,
            "allotment_s": self.allotment_s,
            "spent_s": self.spent_s,
            "max_batch": self.max_batch,
            "max_micro_batch": self.max_micro_batch,
            "paces": self.paces.to_json(),
            "is_exhausted": self.is_exhausted,
            "notes": list(self.notes),
            "charged": dict(self.charged),
            "is_over": self.is_over,
            "test_scores": list(self.test_scores),
        }

    @classmethod
    def from_json(cls, reader: Reader) -> RaceState:
        """The state that `to_json` made.

        Raises:
            ReportError: the data is something else.
        """
        charged, scores = reader.inside("charged"), reader.get("test_scores", list)
        if len(scores) != 2 or any(score is not None and not isinstance(score, NUMBER) for score in scores):
            raise ReportError(f"the test scores of a race are two numbers or nulls; found {scores!r:.80}")
        return cls(
            count=reader.get("count", int),
            allotment_s=reader.number("allotment_s"),
            spent_s=reader.number("spent_s"),
            max_batch=reader.get("max_batch", int),
            max_micro_batch=reader.get("max_micro_batch", int),
            paces=Paces.from_json(reader.inside("paces")),
            is_exhausted=reader.get("is_exhausted", bool),
            notes=reader.list_of("notes", str),
            charged={kind: charged.number(kind) for kind in reader.get("charged", dict)},
            is_over=reader.get("is_over", bool),
            test_scores=(scores[0], scores[1]),
        )
