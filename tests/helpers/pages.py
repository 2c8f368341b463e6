"""What is checked of a page without a browser: it is well formed, and its parts refer to one another."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

# Elements without an end tag (HTML Living Standard, 13.1.2).
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Page(HTMLParser):
    """A parsed page.

    Attributes:
        problems: what is wrong with its form.
        tags: every element's name and attributes, in order.
        ids: in order; each may come once.
        references: ids that something refers to.
        headings: their levels, in order.
        addresses: values of attributes that a browser would ask for.
        words: all text outside of the stylesheet.
    """

    text: str
    problems: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    style: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._cells: list[int] = []
        self.feed(self.text)
        self.close()
        self.problems += [f"{tag} is never closed" for tag in self._open]
        self.problems += [f"the id {name} comes twice" for name in set(self.ids) if self.ids.count(name) > 1]
        self.problems += [f"nothing has the id {name}" for name in self.references if name not in self.ids]
        steps = zip([0, *self.headings], self.headings, strict=False)
        self.problems += [f"a heading of level {new} follows one of {old}" for old, new in steps if new > old + 1]
        if self.headings.count(1) != 1:
            self.problems.append("a page has one heading of level 1")

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._note(tag, attributes)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if "svg" not in self._open and tag != "svg" and tag not in VOID:
            self.problems.append(f"{tag} closes itself, which HTML does not know")
        self._note(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.problems.append(f"{tag} is closed where {self._open[-1:]} is open, line {self.getpos()[0]}")
            return
        self._open.pop()
        if tag == "tr":
            self._cells.append(self._row)
        if tag == "table" and len(set(self._cells)) > 1:
            self.problems.append(f"a table has rows of {sorted(set(self._cells))} cells")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.style += data
        else:
            self.words.append(data)

    def _note(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        if len(known) < len(attributes):
            self.problems.append(f"{tag} has an attribute twice")
        self.tags.append((tag, known))
        self.ids += [known["id"] or ""] if "id" in known else []
        self.references += (known.get("aria-labelledby") or "").split()
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name in ("href", "src", "srcset", "poster", "action", "data", "xlink:href", "background"):
            value = known.get(name)
            if value is not None and value.startswith("#"):
                self.references.append(value[1:])
            elif value is not None:
                self.addresses.append(value)
        if tag == "table":
            self._cells = []
        if tag == "tr":
            self._row = 0
        if tag in ("td", "th"):
            self._row += 1
