"""Means with their intervals, below one another on one axis, as inline SVG."""

from __future__ import annotations

from xml.etree.ElementTree import SubElement, tostring

from .document import Intervals
from .drawing import COLORS, LINE, WIDTH, line_between, marker, picture, say, write
from .numbers import known
from .scales import tick_text, ticks, value_scale

_LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 14.0, WIDTH - 18.0, 10.0, 46.0, 44.0


def intervals_svg(figure: Intervals, name: str) -> str:
    """The figure as an `<svg>` element; `name` begins each of its ids."""
    count = len(figure.estimates)
    bottom = _TOP + _ROW * max(count, 1)
    root = picture(name, bottom + _BOTTOM, figure.title, figure.finding)
    values = [v for e in figure.estimates for v in (e.mean, e.low, e.high, *e.singles) if v is not None]
    if not values:
        write(root, WIDTH / 2, _TOP + LINE, "nothing was measured", anchor="middle")
        return tostring(root, encoding="unicode")
    across = value_scale(values, _LEFT, _RIGHT, is_log=False, unit="score")
    axes = SubElement(root, "g", {"class": "axes"})
    SubElement(axes, "line", line_between(_LEFT, bottom, _RIGHT, bottom))
    for value in ticks(across, "score"):
        SubElement(axes, "line", line_between(across(value), _TOP, across(value), bottom) | {"class": "grid"})
        write(axes, across(value), bottom + 17, tick_text(value, "score"), anchor="middle")
    write(axes, (_LEFT + _RIGHT) / 2, bottom + _BOTTOM - 7, "validation score", anchor="middle")
    for number, estimate in enumerate(figure.estimates):
        y = _TOP + _ROW * number + LINE + 14
        group = SubElement(root, "g", {"class": f"series-{estimate.slot % COLORS}"})
        write(group, _LEFT, y - 13, estimate.name, anchor="start")
        for single in estimate.singles:
            mark = SubElement(group, "g", {"class": "single"})
            say(mark, "title", f"{estimate.name}, one seed: {single:.5g}")
            SubElement(mark, "line", line_between(across(single), y + 3, across(single), y + 10))
        dot = SubElement(group, "g", {"class": "point"})
        ends = f"{known(estimate.low, '{:.5g}'.format)} to {known(estimate.high, '{:.5g}'.format)}"
        say(dot, "title", f"{estimate.name}: mean {estimate.mean:.5g}, 95 % interval {ends}")
        if estimate.low is not None and estimate.high is not None:
            low, high = across(estimate.low), across(estimate.high)
            d = f"M{low:.1f} {y - 4:.1f}v8M{high:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}"
            SubElement(dot, "path", {"d": d, "class": "interval"})
        marker(dot, estimate.slot, across(estimate.mean), y)
    return tostring(root, encoding="unicode")
