"""A document for a pull request: CommonMark and the tables of GitHub, no HTML."""

from __future__ import annotations

import re
from typing import assert_never

from .document import Bullets, Chart, Code, Document, Facts, Intervals, Paragraph, Part, Shares, Table, visible

# Characters with a meaning in Markdown or its tables. An underscore inside a word has none.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# What would begin a list, or underline a heading, at the beginning of a line.
_LINE_MARK = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=]))")


def to_markdown(document: Document) -> str:
    """The document as Markdown, ending in a newline: the same content as on the terminal, without the bars."""
    blocks = [f"# {escaped(document.title)}", _line(document.subtitle)]
    for section in document.sections:
        blocks.append(f"## {escaped(section.title)}")
        blocks += [_drawn(part) for part in section.parts]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _drawn(part: Part) -> str:
    match part:
        case Paragraph():
            return _line(part.text)
        case Code():
            return "\n".join(("```python", *part.lines, "```"))
        case Bullets():
            return "\n".join(f"- {_line(item)}" for item in part.items)
        case Facts():
            return "\n".join(f"- {_line(name)}: {escaped(fact)}" for name, fact in part.rows)
        case Table():
            return _table(part)
        case Chart() | Intervals() | Shares():
            return "\n\n".join(filter(None, (_table(part.table), _line(part.finding))))
        case _:
            assert_never(part)


def _table(table: Table) -> str:
    rules = ["---:" if column.is_number else "---" for column in table.columns]
    rows = [[column.title for column in table.columns], *table.rows]
    head, *body = (" | ".join(escaped(cell) for cell in row) for row in rows)
    lines = "\n".join(f"| {line} |" for line in (head, " | ".join(rules), *body))
    return f"{_line(table.caption)}\n\n{lines}" if table.caption else lines


def escaped(text: str) -> str:
    """The text on one line, with nothing in it taken for markup."""
    return _SPECIAL.sub(r"\\\g<0>", visible(text).strip())


def _line(text: str) -> str:
    """Like `escaped`, for the beginning of a line."""
    return _LINE_MARK.sub(r"\g<1>\\", escaped(text))
