"""A database's URL as it may be shown: without what only the database is to know."""

from __future__ import annotations

import re
from urllib.parse import unquote

from ..errors import SettingError

HIDDEN = "***"

# The words of a URL as SQLAlchemy reads them (`sqlalchemy.engine.url`), but that a password ends at the last @: one
# that was not quoted is hidden whole.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*)://(?:(?P<user>[^:/\n]*)(?::(?P<password>[^\n]*))?@)?(?P<rest>[^?\n]*)(?P<query>\?[^\n]*)?"
)


def shown_url(text: str) -> str:
    """`text`, a URL or what stands around one, with its password and all after its question mark replaced by `***`."""
    return _URL.sub(_hide, text)


def _hide(found: re.Match[str]) -> str:
    user, password = found["user"], found["password"]
    who = "" if user is None else user + ("" if password is None else f":{HIDDEN}") + "@"
    return f"{found['scheme']}://{who}{found['rest']}" + (f"?{HIDDEN}" if found["query"] else "")


def check_url(url: str) -> None:
    """Refuse a URL whose password no database would get as it was meant.

    Raises:
        SettingError: there is an @ in it that is not quoted, which would make a part of it the host's name.
    """
    found = _URL.search(url)
    if found is not None and "@" in (found["password"] or ""):
        raise SettingError(f"an @ in a database's password is written %40, and / as %2F; found one in {shown_url(url)}")


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
