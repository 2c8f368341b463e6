"""Parts of a whole as one bar, as inline SVG."""

from __future__ import annotations

from xml.etree.ElementTree import SubElement, tostring

from .document import Shares
from .drawing import COLORS, WIDTH, picture, say
from .numbers import share_text

_TOP, _HEIGHT = 4.0, 26.0
_GAP = 1.0  # between two parts, so that neighbours are told apart in one colour too


def shares_svg(figure: Shares, name: str) -> str:
    """The figure as an `<svg>` element; `name` begins each of its ids."""
    root = picture(name, _HEIGHT + 2 * _TOP, figure.title, figure.finding)
    frame = {"x": "0.5", "y": f"{_TOP:.1f}", "width": f"{WIDTH - 1:.1f}", "height": f"{_HEIGHT:.1f}", "class": "whole"}
    SubElement(root, "rect", frame)
    whole = max(figure.whole, sum(value for _, value in figure.parts))
    left = 0.5
    for slot, (part, value) in enumerate(figure.parts):
        width = (WIDTH - 1) * value / whole if whole > 0 else 0.0
        group = SubElement(root, "g", {"class": f"part series-{slot % COLORS}"})
        say(group, "title", f"{part}: {share_text(value / whole if whole > 0 else 0.0)}")
        box = {
            "x": f"{left:.2f}",
            "y": f"{_TOP:.1f}",
            "width": f"{max(0.0, width - _GAP):.2f}",
            "height": f"{_HEIGHT:.1f}",
        }
        SubElement(group, "rect", box)
        left += width
    return tostring(root, encoding="unicode")
