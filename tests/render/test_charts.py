from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.render.charts import marks_of, svg
from autobatch.render.curves import charts_of
from autobatch.render.document import Chart, Point, Series, Table, Unit
from autobatch.render.drawing import COLORS, swatch
from autobatch.render.scales import Scale, label_sizes, size_scale, tick_text, ticks, value_scale
from tests.helpers.bench_reports import cell, failed, gpu_report

UNITS: tuple[Unit, ...] = ("samples/s", "bytes", "J", "times", "score", "loss", "lr")

sizes = st.integers(1, 2**62)
values = st.floats(1e-12, 1e18)


@st.composite
def all_series(draw: st.DrawFn) -> tuple[Series, ...]:
    made = []
    for slot in range(draw(st.integers(1, 5))):
        at = sorted(draw(st.sets(sizes, min_size=1, max_size=8)))
        points = []
        for size in at:
            value = draw(values)
            half = draw(st.none() | st.floats(0, 0.5))
            low, high = (None, None) if half is None else (value * (1 - half), value * (1 + half))
            points.append(Point(x=size, value=value, low=low, high=high))
        made.append(
            Series(
                name=draw(st.text(max_size=30)),
                slot=slot,
                points=tuple(points),
                marks=(("knee", at[0]), ("recommended", at[-1])),
                failed=tuple(sorted(draw(st.sets(sizes, max_size=2)))),
            )
        )
    return tuple(made)


def chart(series: tuple[Series, ...], unit: Unit = "samples/s", is_log: bool = False, **more: object) -> Chart:
    table = Table(columns=(), rows=())
    return Chart(title="A", finding="B", unit=unit, series=series, table=table, is_log=is_log, **more)  # type: ignore[arg-type]


def drawn(made: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(svg(made, "c1"))


def numbers_of(element: ElementTree.Element) -> Iterable[tuple[str, float]]:
    """Every coordinate, with "x" or "y"."""
    for name, value in element.attrib.items():
        if name in ("x", "x1", "x2", "cx"):
            yield "x", float(value)
        elif name in ("y", "y1", "y2", "cy"):
            yield "y", float(value)
        elif name == "points":
            for pair in value.split():
                x, y = pair.split(",")
                yield "x", float(x)
                yield "y", float(y)


def points_of(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [element for element in root.iter("g") if element.get("class") == "point"]


@given(all_series(), st.sampled_from(UNITS), st.booleans(), st.none() | values)
def test_whatever_the_range_every_point_is_drawn_inside_the_picture(
    series: tuple[Series, ...], unit: Unit, is_log: bool, level: float | None
) -> None:
    made = chart(series, unit, is_log, level=None if level is None else ("limit", level))
    root = drawn(made)
    width, height = (float(number) for number in (root.get("viewBox") or "").split()[2:])
    for element in root.iter():
        for axis, number in numbers_of(element):
            assert math.isfinite(number)
            assert 0 <= number <= (width if axis == "x" else height)
    assert len(points_of(root)) == sum(len(one.points) for one in series)


def test_the_points_lie_where_their_values_say() -> None:
    points = tuple(Point(x=size, value=float(value)) for size, value in ((1, 10), (4, 20), (16, 40)))
    root = drawn(chart((Series(name="fp32", slot=0, points=points),)))
    (line,) = root.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = ([float(n) for n in pair.split(",")] for pair in line.attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # 1, 4, 16: equal steps on a logarithmic axis
    bottom = max(float(element.attrib["y1"]) for element in root.iter("line") if element.get("class") == "grid")
    assert (bottom - y1) / (bottom - y0) == pytest.approx(2, abs=0.02)  # in proportion, from zero on
    assert (bottom - y2) / (bottom - y0) == pytest.approx(4, abs=0.04)


def test_a_single_point_is_a_marker_without_a_line() -> None:
    root = drawn(chart((Series(name="fp32", slot=0, points=(Point(x=8, value=1.0),)),)))
    assert len(points_of(root)) == 1
    assert not list(root.iter("polyline"))


def test_a_chart_without_a_point_says_so_in_words() -> None:
    root = drawn(chart((Series(name="fp32", slot=0, points=()),)))
    assert "nothing was measured" in "".join(root.itertext())


def test_an_interval_is_an_upright_line_between_its_ends() -> None:
    points = (Point(x=8, value=10.0, low=9.0, high=12.0), Point(x=16, value=12.0))
    root = drawn(chart((Series(name="fp32", slot=0, points=points),)))
    (whisker,) = [element for element in root.iter("path") if element.get("class") == "interval"]
    found = re.search(r" ([\d.]+)V([\d.]+)$", whisker.attrib["d"])
    assert found is not None
    low, high = map(float, found.groups())
    marker = next(root.iter("circle"))
    assert high < float(marker.attrib["cy"]) < low


def test_the_knee_and_the_recommended_batch_are_marked_and_named() -> None:
    (made, *_) = charts_of("resnet50", gpu_report().cells[:2], {"fp32": 0, "bf16": 1})
    root = drawn(made)
    titles = [title.text or "" for point in points_of(root) for title in point.iter("title")]
    assert [title.split(":")[0] for title in titles if title.endswith(", knee")] == [
        "fp32, batch 128",
        "bf16, batch 256",
    ]
    assert [title.split(":")[0] for title in titles if title.endswith(", recommended")] == [
        "fp32, batch 1024",
        "bf16, batch 2048",
    ]
    assert sum(element.get("class") == "ring" for element in root.iter()) == 4
    words = [text.text for text in root.iter("text")]
    assert {"knee 128", "knee 256", "fp32", "bf16"} <= set(words)


def test_a_size_that_did_not_fit_is_a_cross_on_the_axis_and_in_the_legend() -> None:
    (_, memory, *_) = charts_of("resnet50", gpu_report().cells[:1], {"fp32": 0})
    assert memory.series[0].failed == (1470,)  # the proof
    assert ("1470", "did not fit", "") in memory.table.rows
    (cross,) = [element for element in drawn(memory).iter("g") if element.get("class") == "failed"]
    assert "".join(cross.itertext()) == "fp32, batch 1470: did not fit"
    assert list(marks_of(memory)) == ["largest", "did not fit"]


def test_what_a_screen_reader_hears_is_the_finding() -> None:
    (made, *_) = charts_of("resnet50", gpu_report().cells[:2], {"fp32": 0, "bf16": 1})
    root = drawn(made)
    assert root.get("role") == "img"
    by_id = {element.get("id"): element.text for element in root.iter() if element.get("id")}
    title, description = (by_id[name] for name in (root.get("aria-labelledby") or "").split())
    assert title == "Throughput"
    assert description == made.finding
    assert "fp32 does 1,076 samples/s at batch 1024, its knee is 128" in made.finding


def test_without_energy_there_is_no_chart_of_it_and_failed_cells_have_none() -> None:
    slots = {"fp32": 0}
    on_cpu = [cell("lstm", "fp32", memory_bytes=8 << 30)]
    assert [made.title for made in charts_of("lstm", on_cpu, slots)] == ["Throughput", "Peak memory"]
    assert charts_of("lstm", [failed("lstm", "fp32", "no")], slots) == ()


def test_compute_modes_that_lie_far_apart_get_a_logarithmic_scale() -> None:
    near = [cell("lstm", compute_mode, memory_bytes=8 << 30) for compute_mode in ("fp32", "bf16")]
    far = [near[0], cell("lstm", "bf16", memory_bytes=8 << 30, slower=0.01)]
    slots = {"fp32": 0, "bf16": 1}
    assert [charts_of("lstm", cells, slots)[0].is_log for cells in (near, far)] == [False, True]


def test_forty_series_all_look_different() -> None:
    looks = {swatch(slot) for slot in range(40)}
    assert len(looks) == 40
    assert all(f"series-{slot % COLORS}" in swatch(slot) for slot in range(40))


@given(st.lists(values, min_size=1, max_size=6), st.sampled_from(UNITS), st.booleans())
def test_ticks_are_few_rising_and_on_the_axis(found: list[float], unit: Unit, is_log: bool) -> None:
    scale = value_scale(found, 200.0, 20.0, is_log=is_log, unit=unit)
    marks = ticks(scale, unit)
    assert len(marks) <= 8
    assert marks == sorted(set(marks))
    for value in marks:
        place = math.log2(value) if is_log else value
        assert scale.low - 1e-9 * abs(scale.low) <= place <= scale.high + 1e-9 * abs(scale.high)


@given(st.sets(sizes, min_size=1, max_size=30), st.data())
def test_named_sizes_do_not_overlap_and_the_first_is_among_them(known: set[int], data: st.DataObject) -> None:
    first = data.draw(st.sampled_from(sorted(known)))
    scale = size_scale(known, 50.0, 350.0)
    named = label_sizes(known, scale, [first], 7.0)
    assert first in named
    assert set(named) <= known
    boxes = [(scale(size) - 3.5 * len(str(size)), scale(size) + 3.5 * len(str(size))) for size in named]
    assert all(right <= left for (_, right), (left, _) in itertools.pairwise(boxes))


@given(st.lists(values, min_size=2, max_size=2, unique=True), st.booleans())
def test_a_scale_keeps_the_order(pair: list[float], is_log: bool) -> None:
    low, high = sorted(pair)
    scale = value_scale([low, high], 200.0, 20.0, is_log=is_log, unit="samples/s")
    assert scale(low) >= scale(high)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "bytes", "0"),
        (2**34, "bytes", "16 GiB"),
        (2e5, "samples/s", "200 k"),
        (0.5, "J", "500 mJ"),
        (1, "times", "1"),
    ],
)
def test_ticks_are_written_as_people_read_them(value: float, unit: Unit, text: str) -> None:
    assert tick_text(value, unit) == text


def test_beyond_an_end_a_scale_stays_there() -> None:
    assert Scale(low=0.0, high=1.0, start=0.0, end=10.0, is_log=False)(7.0) == 10.0
