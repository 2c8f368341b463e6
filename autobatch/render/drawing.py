"""What every picture is drawn with: words, lines, markers, and how a series and a mark look.

What an element says is set through ElementTree, which escapes it.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, tostring

from .document import visible

# Pixels of the viewBox: as wide as a chart is on a telephone, for its letters of 12 to be readable there.
WIDTH = 360.0
LETTER = 6.9  # width of a letter at 12 pixels: that of the digits of a wide system font (DejaVu Sans, Verdana)
LINE = 14.0  # height of a line of such letters

COLORS = 8  # that a page defines, as --series-0 to --series-7
_DASHES = ("", "7 3", "2 3", "10 3 2 3", "5 2 1 2")
_SHAPES = ("circle", "square", "triangle", "wedge", "cross")
# Eight colours and five shapes have no common divisor: 40 slots look different.


def picture(name: str, height: float, title: str, description: str) -> Element:
    """An `<svg>` whose title and description are in words; `name` begins each of its ids."""
    root = Element("svg", viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img")
    root.set("class", "chart")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    say(root, "title", title, id=f"{name}-title")
    say(root, "desc", description or "Nothing was measured.", id=f"{name}-desc")
    return root


def swatch(slot: int) -> str:
    """What a series looks like, for the legend."""
    root = Element("svg", viewBox="0 0 34 14", width="34", height="14")
    root.set("aria-hidden", "true")
    root.set("class", f"series-{slot % COLORS}")
    SubElement(root, "line", line_between(1, 7, 33, 7) | dashes(slot))
    marker(root, slot, 17, 7)
    return tostring(root, encoding="unicode")


def box_swatch(slot: int) -> str:
    """What a part of a bar looks like, for the legend."""
    root = Element("svg", viewBox="0 0 14 14", width="14", height="14")
    root.set("aria-hidden", "true")
    root.set("class", f"part series-{slot % COLORS}")
    SubElement(root, "rect", {"x": "1", "y": "1", "width": "12", "height": "12"})
    return tostring(root, encoding="unicode")


def dot_swatch(slot: int) -> str:
    """What a point without a line looks like, for the legend."""
    root = Element("svg", viewBox="0 0 14 14", width="14", height="14")
    root.set("aria-hidden", "true")
    root.set("class", f"series-{slot % COLORS}")
    marker(root, slot, 7, 7)
    return tostring(root, encoding="unicode")


def mark_swatch(word: str) -> str:
    """What a mark looks like, for the legend."""
    root = Element("svg", viewBox="0 0 20 20", width="20", height="20")
    root.set("aria-hidden", "true")
    root.set("class", "mark")
    ring(root, word, 10, 10)
    return tostring(root, encoding="unicode")


def marker(parent: Element, slot: int, x: float, y: float) -> None:
    """The shape of a series."""
    match _SHAPES[slot % len(_SHAPES)]:
        case "circle":
            SubElement(parent, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3.2", "class": "marker"})
        case "square":
            shape = {"x": f"{x - 3:.1f}", "y": f"{y - 3:.1f}", "width": "6", "height": "6", "class": "marker"}
            SubElement(parent, "rect", shape)
        case "triangle":
            SubElement(parent, "path", {"d": f"M{x - 3.8:.1f} {y + 3:.1f}h7.6l-3.8 -6.8z", "class": "marker"})
        case "wedge":
            SubElement(parent, "path", {"d": f"M{x - 3.8:.1f} {y - 3:.1f}h7.6l-3.8 6.8z", "class": "marker"})
        case _:
            cross(parent, x, y, 3.0)


def cross(parent: Element, x: float, y: float, half: float) -> None:
    """Two strokes."""
    d = f"M{x - half:.1f} {y - half:.1f}l{2 * half} {2 * half}m0 {-2 * half}l{-2 * half} {2 * half}"
    SubElement(parent, "path", {"d": d, "class": "cross"})


def ring(parent: Element, word: str, x: float, y: float) -> None:
    """What marks a point: a circle around what is recommended, a diamond around the knee, a square around the largest,
    a triangle around the user's own.
    """
    if word == "knee":
        SubElement(parent, "path", {"d": f"M{x:.1f} {y - 9:.1f}l9 9l-9 9l-9 -9z", "class": "ring"})
    elif word in ("recommended", "chosen"):
        SubElement(parent, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "7", "class": "ring"})
    elif word in ("yours", "default"):
        SubElement(parent, "path", {"d": f"M{x - 9:.1f} {y + 6:.1f}h18l-9 -15.5z", "class": "ring"})
    elif word == "largest":
        shape = {"x": f"{x - 6.5:.1f}", "y": f"{y - 6.5:.1f}", "width": "13", "height": "13", "class": "ring"}
        SubElement(parent, "rect", shape)
    else:
        cross(parent, x, y, 4.5)


def line_between(x0: float, y0: float, x1: float, y1: float) -> dict[str, str]:
    """The attributes of a line."""
    return {"x1": f"{x0:.1f}", "y1": f"{y0:.1f}", "x2": f"{x1:.1f}", "y2": f"{y1:.1f}"}


def dashes(slot: int) -> dict[str, str]:
    """How the line of a series is broken, as attributes."""
    pattern = _DASHES[slot % len(_DASHES)]
    return {"stroke-dasharray": pattern} if pattern else {}


def write(parent: Element, x: float, y: float, text: str, *, anchor: str) -> None:
    """Words at a baseline; `anchor` says which end of them is at x."""
    say(parent, "text", text, x=f"{x:.1f}", y=f"{y:.1f}", **{"text-anchor": anchor})


def say(parent: Element, tag: str, text: str, **attributes: str) -> None:
    """An element with a text, of which nothing is markup."""
    SubElement(parent, tag, attributes).text = visible(text)


def overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Whether two boxes of (left, top, right, bottom) do."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
