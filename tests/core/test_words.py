"""Outcomes and limits in words: each has some, and one that a later version writes is told as it is."""

from __future__ import annotations

from typing import get_args

import pytest

from autobatch.core.measurement import Outcome
from autobatch.core.segment import SegmentOutcome
from autobatch.core.words import limit_sentence, outcome_text
from autobatch.measuring.memory import LimitedBy


@pytest.mark.parametrize("outcome", sorted({*get_args(Outcome), *get_args(SegmentOutcome), "a later one"}))
def test_an_outcome_has_words(outcome: str) -> None:
    text = outcome_text(outcome)
    assert "_" not in text
    assert (text == outcome) == (outcome in ("ok", "crashed", "diverged", "a later one"))


@pytest.mark.parametrize("limited_by", get_args(LimitedBy))
def test_what_limits_a_batch_has_a_sentence(limited_by: LimitedBy) -> None:
    sentence = limit_sentence(limited_by, "128", 1 << 30)
    assert sentence.startswith("batch 128 ")
    assert limited_by not in ("memory", "task") or "is the largest that" in sentence
    assert ("1 GiB" in sentence) == (limited_by == "memory")
    assert not {"{", "}"} & set(sentence)


def test_what_is_not_known_is_left_out_or_told_as_it_is() -> None:
    assert limit_sentence("memory", "1,024", None) == "batch 1,024 is the largest that fits"
    assert limit_sentence("a {later} word", "8", None) == "batch 8 fits; a {later} word"
