"""A database's URL as it may be shown: without what only the database is to know."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"

# The words of a URL as SQLAlchemy reads them; a password that was not quoted may hold anything up to the last @.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*)://(?:(?P<user>[^:/@\s]*)(?::(?P<password>\S*))?@)?(?P<rest>[^\s?]*)(?P<query>\?\S*)?"
)


def shown_url(text: str) -> str:
    """`text` with every URL's password, and the values after its question mark, replaced by `***`."""
    return _URL.sub(_hide, text)


def _hide(found: re.Match[str]) -> str:
    user, password = found["user"], found["password"]
    who = "" if user is None else user + ("" if password is None else f":{HIDDEN}") + "@"
    return f"{found['scheme']}://{who}{found['rest']}" + (f"?{HIDDEN}" if found["query"] else "")


def without_secrets(message: str, url: str) -> str:
    """A driver's message without what `shown_url` hides in `url`, however it is written there."""
    message = message.replace(url, shown_url(url))
    found = _URL.search(url)
    secrets = [found["password"], *re.findall(r"=([^&]*)", found["query"] or "")] if found else []
    for secret in secrets:
        if secret:
            for written in {secret, unquote(secret)}:
                message = message.replace(written, HIDDEN)
    return message
