"""Names of ways to compute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.compute_mode import ComputeMode, parse_compute_modes
from autobatch.errors import SettingError

compute_modes = st.builds(
    ComputeMode,
    precision=st.sampled_from(["fp32", "tf32", "bf16", "fp16"]),
    channels_last=st.booleans(),
    compile=st.booleans(),
)


@given(compute_mode=compute_modes)
def test_a_name_is_read_back(compute_mode: ComputeMode) -> None:
    assert ComputeMode.parse(compute_mode.name) == compute_mode


@given(compute_mode=compute_modes, words=st.randoms())
def test_the_order_of_the_words_does_not_matter(compute_mode: ComputeMode, words: object) -> None:
    parts = compute_mode.name.split("+")
    words.shuffle(parts)  # type: ignore[attr-defined]
    assert ComputeMode.parse("+".join(parts)) == compute_mode


def test_a_flag_alone_is_one_in_fp32() -> None:
    assert ComputeMode.parse("channels_last") == ComputeMode(channels_last=True)


@pytest.mark.parametrize("text", ["", "int8", "bf16+bf16", "bf16+fp16", "bf16 compile", "compile+compile", "+"])
def test_what_is_no_way_to_compute_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(SettingError, match=r"is no way to compute: write one of fp32, tf32, bf16, fp16.*\+compile"):
        ComputeMode.parse(text)


def test_each_is_taken_once_and_one_is_needed() -> None:
    assert [compute_mode.name for compute_mode in parse_compute_modes(["bf16", "fp32", "bf16"])] == ["bf16", "fp32"]
    with pytest.raises(SettingError, match="at least one precision"):
        parse_compute_modes([])
