"""Names of ways to compute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.compute_mode import Arm, parse_arms
from autobatch.errors import SettingError

arms = st.builds(
    Arm,
    precision=st.sampled_from(["fp32", "tf32", "bf16", "fp16"]),
    channels_last=st.booleans(),
    compile=st.booleans(),
)


@given(arm=arms)
def test_a_name_is_read_back(arm: Arm) -> None:
    assert Arm.parse(arm.name) == arm


@given(arm=arms, words=st.randoms())
def test_the_order_of_the_words_does_not_matter(arm: Arm, words: object) -> None:
    parts = arm.name.split("+")
    words.shuffle(parts)  # type: ignore[attr-defined]
    assert Arm.parse("+".join(parts)) == arm


def test_a_flag_alone_is_one_in_fp32() -> None:
    assert Arm.parse("channels_last") == Arm(channels_last=True)


@pytest.mark.parametrize("text", ["", "int8", "bf16+bf16", "bf16+fp16", "bf16 compile", "compile+compile", "+"])
def test_what_is_no_way_to_compute_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(SettingError, match=r"is no way to compute: write one of fp32, tf32, bf16, fp16.*\+compile"):
        Arm.parse(text)


def test_each_is_taken_once_and_one_is_needed() -> None:
    assert [arm.name for arm in parse_arms(["bf16", "fp32", "bf16"])] == ["bf16", "fp32"]
    with pytest.raises(SettingError, match="at least one precision"):
        parse_arms([])
