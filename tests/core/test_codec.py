"""Each core type that is written to a file comes back from it as it was, to the last bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core import codec
from autobatch.core.facts import DeviceInfo, MemoryLimit
from autobatch.core.json_reader import Reader
from autobatch.core.measurement import LrSweep, Measurement, Outcome
from autobatch.core.plan import LEAST_LR, MOST_LR, Config, Plan, Precision
from autobatch.errors import ReportError

finite = st.floats(allow_nan=False, allow_infinity=False)
times = st.lists(finite, max_size=3).map(tuple)
sizes = st.none() | st.integers(-(1 << 70), 1 << 70)
texts = st.none() | st.text()

plans = st.builds(
    Plan,
    batch_size=st.integers(1, 1 << 20),
    accumulation_steps=st.integers(1, 32),
    precision=st.sampled_from(get_args(Precision)),
    ranks=st.integers(1, 8),
)
configs = st.builds(Config, plan=plans, lr=st.floats(LEAST_LR, MOST_LR))
limits = st.builds(MemoryLimit, capacity_bytes=st.integers(), budget_bytes=st.integers(), source=st.text())
devices = st.builds(
    DeviceInfo,
    name=st.text(),
    kind=st.sampled_from(["cuda", "rocm", "mps", "cpu"]),
    **dict.fromkeys(("index", "memory_bytes", "free_bytes", "threads"), sizes),
    **dict.fromkeys(("driver", "runtime", "torch", "python", "uuid"), texts),
    power_limit_w=st.none() | finite,
    notes=st.lists(st.text(), max_size=2).map(tuple),
)
measurements = st.builds(
    Measurement,
    plan=plans,
    outcome=st.sampled_from(get_args(Outcome)),
    **dict.fromkeys(("step_s", "compute_s", "loader_s", "visits_s"), times),
    **dict.fromkeys(("peak_bytes", "allocated_bytes", "others_bytes", "alloc_retries"), sizes),
    phases_s=st.dictionaries(st.text(), finite, max_size=2),
    **dict.fromkeys(("joules", "watts"), st.none() | finite),
    remarks=st.lists(st.text(), max_size=2).map(tuple),
    seconds=finite,
    fresh=st.booleans(),
    message=texts,
)
sweeps = st.builds(
    LrSweep,
    plan=plans,
    lrs=times,
    losses=st.lists(finite | st.just(math.nan), max_size=3).map(tuple),
    diverged=st.booleans(),
    seconds=finite,
    without_schedule=st.booleans(),
)


def stored(value: Any) -> Any:
    """What a file gives back of plain values: without NaN, which JSON does not have."""
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize(
    ("values", "to_json", "from_json"),
    [
        (plans, codec.plan_to_json, codec.plan_from_json),
        (configs, codec.config_to_json, codec.config_from_json),
        (limits, codec.limit_to_json, codec.limit_from_json),
        (devices, codec.device_to_json, codec.device_from_json),
        (measurements, codec.measurement_to_json, codec.measurement_from_json),
        (sweeps, codec.sweep_to_json, codec.sweep_from_json),
    ],
    ids=["plan", "config", "limit", "device", "measurement", "sweep"],
)
@given(data=st.data())
def test_what_was_written_comes_back(
    values: st.SearchStrategy[Any],
    to_json: Callable[[Any], dict[str, Any]],
    from_json: Callable[[Reader], Any],
    data: st.DataObject,
) -> None:
    value = data.draw(values)
    # By its text, in which every double is itself, NaN is NaN, and -0.0 is not 0.0.
    assert repr(from_json(Reader(stored(to_json(value)), "it"))) == repr(value)


@given(measurements)
def test_what_was_not_measured_takes_no_room(measurement: Measurement) -> None:
    assert not [value for value in codec.measurement_to_json(measurement).values() if value in (None, (), {})]


def test_a_loss_that_is_not_finite_comes_back_as_one_that_is_not() -> None:
    sweep = LrSweep(plan=Plan(batch_size=1), lrs=(0.1, 0.2), losses=(1.0, math.inf), diverged=True, seconds=1.0)
    again = codec.sweep_from_json(Reader(stored(codec.sweep_to_json(sweep)), "it"))
    assert again.losses[0] == 1.0
    assert math.isnan(again.losses[1])


def test_files_of_before_say_neither_processes_nor_a_schedule() -> None:
    plan = {"batch_size": 8, "accumulation_steps": 2, "precision": "bf16"}
    assert codec.plan_from_json(Reader(plan, "it")) == Plan(batch_size=8, accumulation_steps=2, precision="bf16")
    sweep = {"plan": plan, "lrs": [], "losses": [], "diverged": False, "seconds": 0}
    assert not codec.sweep_from_json(Reader(sweep, "it")).without_schedule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, r"^'plan' of it cannot be: batch_size, .* are at least 1; got 0"),
        ({"batch_size": 2.0}, r"^'batch_size' of 'plan' of it is int; found 2\.0"),
        ({"ranks": 1 << 40}, r"^'plan' of it cannot be: .* at most 2,147,483,647 samples"),
        ({"precision": "int8"}, r"^'precision' of 'plan' of it is one of fp32, tf32, bf16, fp16; found 'int8'"),
        ({"lr": 0}, r"^'plan' of it cannot be: a learning rate lies between .* got 0"),
        ({"lr": None}, r"^'lr' of 'plan' of it is int or float; found None"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place_and_the_value(change: dict[str, Any], message: str) -> None:
    plan = codec.config_to_json(Config(plan=Plan(batch_size=8), lr=0.1)) | change
    with pytest.raises(ReportError, match=message):
        codec.config_from_json(Reader({"plan": plan}, "it").inside("plan"))
