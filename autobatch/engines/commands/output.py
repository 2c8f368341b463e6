"""What the output of a script says: its score, its speed, and that memory ran out.

A score is read with care: what looks like one and is none costs a search its answer. A pattern such as
`val_acc=([0-9.]+)` passes over "val_acc=nan", and the line before would count; of "val_loss=1.2e-05" it takes 1.2.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ...devices.oom import prints_out_of_memory
from ...tasks.command import Command, filled

# Lines that are kept of what was printed last. Assumed: XLA follows an out-of-memory by some hundreds of lines.
_LINES_KEPT = 2000
_LONGEST_LINE = 10_000  # characters; what is longer is data, and no line for people. Assumed.
_QUOTED_LINES = 12  # of an error message; assumed: a traceback's end fits

# Where a number goes on that a pattern cut short, as `[0-9.]+` does at an exponent.
_REST = re.compile(r"[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"(?<![\w.])[+-]?(?:nan|inf(?:inity)?)(?![\w.])", re.IGNORECASE)

_COUNTED = r"(?:samples|examples|images|imgs|sequences|rows|items)"
_PER_SECOND = r"\s*(?:/\s*s(?:ec(?:ond)?)?|[ _]?per[ _]?s(?:ec(?:ond)?)?)\b"
_RATE = r"(?P<{}>[0-9][0-9,]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)"
# "1,234 samples/s", "examples/sec: 1234.5", "'train_samples_per_second': 98.7"; but not those of an evaluation.
_SPEED = re.compile(
    rf"(?:{_RATE.format('before')}\s*{_COUNTED}{_PER_SECOND}"
    rf"|(?<![a-z])(?:train_)?{_COUNTED}{_PER_SECOND}['\"]?\s*[:=]?\s*{_RATE.format('behind')})",
    re.IGNORECASE,
)
_OF_EVALUATION = re.compile(r"\b(?:eval|evaluation|val|valid|validation|test)(?:_|\b)", re.IGNORECASE)


class Logged(NamedTuple):
    """A line that a script wrote by `autobatch.log`; what was not said is None."""

    at_s: float
    score: float | None
    step: int | None
    samples: int | None


class Output:
    """What a run has said so far. Lines come in one thread, and are asked about in another one.

    Args:
        command: how its score is to be found.
        values: of its places in this run.
        log: the file that `autobatch.log` writes to.
    """

    def __init__(self, command: Command, values: Mapping[str, str], log: Path) -> None:
        self._pattern = command.pattern
        self._log, self._log_read, self._log_rest = log, 0, b""
        self._rest = ""
        self._last: deque[str] = deque(maxlen=_LINES_KEPT)
        self._scores: list[tuple[float, float]] = []  # the time and the score, the last ones
        self.logged: list[Logged] = []
        self._speeds: list[float] = []
        self.lines = 0
        self._file: Path | None = None
        self._keys: tuple[str, ...] = ()
        if command.file_and_key is not None:
            path, self._keys = command.file_and_key
            self._file = Path(filled(str(path), values))
        self._file_before = self._stamp()
        self.file_problem: str | None = None

    # -- what comes in ------------------------------------------------------------------------------------------------

    def take(self, text: str, at_s: float) -> None:
        """A piece of what was printed."""
        *lines, self._rest = re.split(r"[\r\n]+", self._rest + text)
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            self._line(line[:_LONGEST_LINE], at_s)

    def end(self, at_s: float) -> None:
        """Nothing more is printed: what was a beginning is a line."""
        rest, self._rest = self._rest, ""
        self._line(rest, at_s)

    def _line(self, line: str, at_s: float) -> None:
        if not line.strip():
            return
        self.lines += 1
        self._last.append(line)
        if self._pattern is not None and (score := score_in(line, self._pattern)) is not None:
            self._scores.append((at_s, score))
        if (found := _SPEED.search(line)) is not None and not _OF_EVALUATION.search(line):
            self._speeds.append(float((found["before"] or found["behind"]).replace(",", "")))

    def look(self, at_s: float) -> None:
        """Read what the script has logged, or written into its file, since the last look."""
        if self._file is not None and (stamp := self._stamp()) != self._file_before and stamp is not None:
            score = self._score_in_file()
            if score is not None:  # else it is being written
                self._file_before = stamp
                self._scores.append((at_s, score))
        try:
            with open(self._log, "rb") as log:
                log.seek(self._log_read)
                new = log.read()
        except FileNotFoundError:
            return
        self._log_read += len(new)
        *lines, self._log_rest = (self._log_rest + new).split(b"\n")
        for line in lines:
            if (found := logged_in(line)) is not None:
                self.logged.append(found)
                if found.score is not None and self._pattern is None and self._file is None:
                    self._scores.append((at_s, found.score))

    # -- what it says -------------------------------------------------------------------------------------------------

    @property
    def has_score(self) -> bool:
        """Whether there is one, be it no finite number."""
        return bool(self._scores)

    @property
    def has_reported(self) -> bool:
        """Whether the training is known to be under way."""
        return bool(self._scores or self.logged or self._speeds)

    @property
    def first_score_s(self) -> float:
        """When the first one was told, by `time.monotonic`. Only where there is one."""
        return self._scores[0][0]

    def score(self, until_s: float = math.inf) -> float | None:
        """The last score up to that time; None where there was none."""
        return next((score for at_s, score in reversed(self._scores) if at_s <= until_s), None)

    def samples_per_s(self, samples_a_step: int) -> float | None:
        """The speed of the training, by what the script logs or prints; None where it says nothing of it."""
        counted = [
            (one.at_s, float(one.samples) if one.samples is not None else float(one.step or 0) * samples_a_step)
            for one in self.logged
            if one.samples is not None or one.step is not None
        ]
        if len(counted) > 1 and counted[-1][0] > counted[0][0] and counted[-1][1] > counted[0][1]:
            return (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
        told = [speed for speed in self._speeds if speed > 0]
        return median(told) if told else None

    @property
    def says_out_of_memory(self) -> bool:
        """Whether it is printed that memory ran out."""
        return prints_out_of_memory("\n".join(self._last))

    @property
    def last_words(self) -> str:
        """The last lines."""
        return "\n".join(list(self._last)[-_QUOTED_LINES:])

    @property
    def last_line(self) -> str | None:
        """The last one; None where nothing was printed."""
        return self._last[-1].strip() if self._last else None

    # -- the score's file ---------------------------------------------------------------------------------------------

    def _stamp(self) -> tuple[int, int, int] | None:
        """By which a file is told from what it was."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _score_in_file(self) -> float | None:
        """The score in the file; None, and what is wrong in `file_problem`, where there is none."""
        assert self._file is not None
        try:
            found: Any = _json_in(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.file_problem = f"{self._file} is no JSON: {error}"
            return None
        for key in self._keys:
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                there = f"; there is {', '.join(map(str, found))[:200]}" if isinstance(found, dict) and found else ""
                self.file_problem = f"{self._file} has no {'.'.join(self._keys)}{there}"
                return None
        try:
            return math.nan if found is None else float(found)
        except (TypeError, ValueError):
            self.file_problem = f"{'.'.join(self._keys)} in {self._file} is no number: {found!r:.80}"
            return None


def _json_in(text: str) -> Any:
    """A file's JSON, or that of its last line."""
    try:
        return json.loads(text)
    except ValueError:
        lines = text.strip().splitlines()
        if len(lines) < 2:
            raise
        return json.loads(lines[-1])


def score_in(line: str, pattern: re.Pattern[str]) -> float | None:
    """The score in a line; NaN where there stands something that is no number, None where no score is told."""
    group = "score" if "score" in pattern.groupindex else 1
    *_, found = [None, *pattern.finditer(line)]
    if found is not None and found[group] is not None:
        return _number(found, group)
    # Would it be one with a number in the place of what is none?
    if _NO_NUMBER.search(line) and pattern.search(_NO_NUMBER.sub("0", line)):
        return math.nan
    return None


def _number(found: re.Match[str], group: str | int) -> float:
    text, line, end = found[group].strip(), found.string, found.end(group)
    rest = _REST.match(line, end)
    whole = text + (rest[0] if rest is not None and text[-1:].isdigit() else "")
    for candidate in (whole, text, text.rstrip("."), text.replace(",", "")):
        try:
            return float(candidate)
        except ValueError:
            continue
    return math.nan


def logged_in(line: bytes) -> Logged | None:
    """A line as `autobatch.log` writes it; None for anything else, as anybody may write to that file."""
    try:
        said = json.loads(line)
        score = said.get("score")
        counts = [None if said.get(name) is None else int(said[name]) for name in ("step", "samples")]
        return Logged(float(said["at_s"]), None if score is None else float(score), *counts)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
        return None
