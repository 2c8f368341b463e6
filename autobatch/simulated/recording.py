"""Probes of a real device, kept in a file and replayed without the device.

The probing on a user's GPU can be inspected, attached to a bug report, and run again as a test on a machine without a
GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from ..core.codec import limit_from_json, limit_to_json, measurement_from_json, measurement_to_json
from ..core.facts import MemoryLimit, TaskFacts
from ..core.files import write_json
from ..core.json_reader import Reader
from ..core.measurement import Measurement
from ..core.plan import Plan
from ..core.runner import Prober
from ..errors import ReportError

# Increased by one whenever a key changes its meaning or goes away; new keys alone do not increase it.
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The result of one probe, and whether it was a final one."""

    final: bool
    measurement: Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """All probes of one largest batch.

    Attributes:
        task: its name.
        train_size: samples of its training data; None if it has no length.
        limit: the memory that a step could use.
        probes: in order.
        about: their origin: device, versions, command, date, as plain JSON values.
    """

    task: str
    train_size: int | None
    limit: MemoryLimit
    probes: tuple[Probe, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The recording as plain JSON values: sizes in bytes, times in seconds, without what was not measured."""
        return {
            "schema": SCHEMA,
            "task": self.task,
            "train_size": self.train_size,
            "limit": limit_to_json(self.limit),
            "probes": [{"verdict": probe.final, **measurement_to_json(probe.measurement)} for probe in self.probes],
            "about": dict(self.about),
        }

    def save(self, path: Path) -> None:
        """Write it as JSON, completely or not at all.

        Raises:
            ReportError: the file cannot be written.
        """
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """The recording in a file that `save` wrote.

        Raises:
            ReportError: it cannot be read, or is no whole recording of this schema. The message says what is wrong.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ReportError(f"a recording is a readable JSON file; {path}: {error}") from error
        found = Reader(data, str(path))
        if found.get("schema", int) != SCHEMA:
            raise ReportError(f"{path} is a recording of schema {SCHEMA}; found {data['schema']}")
        limit = limit_from_json(found.inside("limit"))
        return cls(
            task=found.get("task", str),
            train_size=found.get("train_size", int, or_null=True),
            limit=limit,
            probes=tuple(_probe(Reader(entry, f"a probe of {path}")) for entry in found.list_of("probes", dict)),
            about=found.get("about", dict),
        )


def _probe(found: Reader) -> Probe:
    measurement = measurement_from_json(found)
    return Probe(final=found.get("verdict", bool), measurement=measurement)


def _size(measured: Measurement) -> int:
    return measured.plan.batch_size


@final
class Recorder(Prober):
    """A prober that records the answers of another one."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self._facts: TaskFacts | None = None
        self._limit: MemoryLimit | None = None
        self._probes: list[Probe] = []

    def facts(self) -> TaskFacts:
        self._facts = self._prober.facts()
        return self._facts

    def memory(self) -> MemoryLimit:
        self._limit = self._prober.memory()
        return self._limit

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        measurement = self._prober.probe(plan, final=final)
        self._probes.append(Probe(final=final, measurement=measurement))
        return measurement

    def recording(self, about: Mapping[str, Any]) -> Recording | None:
        """The recording so far; None before the prober has reported its memory."""
        facts, limit = self._facts, self._limit
        if facts is None or limit is None:
            return None
        probes = tuple(self._probes)
        return Recording(task=facts.name, train_size=facts.train_size, limit=limit, probes=probes, about=about)


@final
class ReplayProber(Prober):
    """Answers from a recording, in no time and on any machine.

    A size that was probed gets its own answer, the first of that size and kind. Between two sizes that ran, the peak is
    on the line through theirs. From the smallest size that did not run, no size runs.

    Args:
        recording: the source of the answers.
        facts: those of the task; the name and size are replaced by the recording's.
    """

    def __init__(self, recording: Recording, facts: TaskFacts) -> None:
        self._recording = recording
        self._facts = replace(facts, name=recording.task, train_size=recording.train_size)

    def facts(self) -> TaskFacts:
        return self._facts

    def memory(self) -> MemoryLimit:
        return self._recording.limit

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        """The recorded answer, or one between two recorded ones.

        Raises:
            ReportError: no recorded probe shows what this size does.
        """
        like = [
            probe.measurement
            for probe in self._recording.probes
            if (probe.measurement.plan.accumulation_steps, probe.measurement.plan.precision)
            == (plan.accumulation_steps, plan.precision)
        ]
        asked = [p.measurement for p in self._recording.probes if p.final == final and p.measurement in like]
        for measured in (*asked, *like):
            if measured.plan == plan:
                return replace(measured, fresh=measured.fresh or final)
        size = plan.batch_size
        ran = sorted((m for m in like if m.peak_bytes is not None and m.outcome != "oom"), key=_size)
        below = [measured for measured in ran if _size(measured) < size]
        above = [measured for measured in ran if _size(measured) > size]
        if below and above:
            return self._between(below[-1], above[0], plan, final)
        refused = [m for m in like if m.outcome in ("oom", "crashed") and m.plan.batch_size < size]
        if refused:
            return replace(refused[0], plan=plan, fresh=final)
        sizes = sorted({measured.plan.batch_size for measured in like})
        raise ReportError(
            f"the recording has no answer for a batch of {size}; it has {sizes or 'no probe of such a plan'}"
        )

    def _between(self, low: Measurement, high: Measurement, plan: Plan, final: bool) -> Measurement:
        share = (plan.batch_size - low.plan.batch_size) / (high.plan.batch_size - low.plan.batch_size)
        assert low.peak_bytes is not None
        assert high.peak_bytes is not None
        peak = round(low.peak_bytes + share * (high.peak_bytes - low.peak_bytes))
        return Measurement(
            plan=plan,
            outcome="ok" if peak <= self.memory().budget_bytes else "over_limit",
            peak_bytes=peak,
            seconds=low.seconds + share * (high.seconds - low.seconds),
            fresh=final,
            message="between two recorded sizes",
        )
