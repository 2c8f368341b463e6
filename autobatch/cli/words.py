"""The words of a command line as they may be shown: without what only a database may know."""

from __future__ import annotations

import re
import shlex
import sys

from ..searching.storage.url import shown_words, without_users

# The shell splits an unquoted URL at its first space.
ONE_WORD = "What follows --storage is one word: put a URL in quotes, '...'"


def typed_command() -> str:
    """The command as it was typed, without what only the database may know."""
    return shlex.join(["autobatch", *shown_words(sys.argv[1:])])


def without_urls(message: str) -> str:
    """A message of click's, without words that may be part of a database's URL."""
    if any(word.partition("=")[0] == "--storage" for word in sys.argv[1:]):
        took = f"Got more words than this command takes. {ONE_WORD}"
        message = re.sub(
            "^(Error: )Got unexpected extra argument.*", rf"\1{took}", message, flags=re.MULTILINE | re.DOTALL
        )
    return without_users(message)
