"""A database's URL as it may be shown: its scheme, host and database only.

A URL with a mistake in it may have its password anywhere: after a second colon, in the place of the port, or where the
scheme should be. So only the parts that are certainly no password are shown, rather than everything but a password that
was recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote, unquote_plus

from ...errors import SettingError

HIDDEN = "***"

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z]\w*(?:\+\w+)?)://")
# A URL whose parts are beyond doubt: at most one @, before anything that could separate a password.
_CLEAR = re.compile(
    _SCHEME.pattern + r"(?:(?P<who>[^@/?#]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.,-]*)(?::(?P<port>\d*))?"
    r"(?:/(?P<database>[\w./~+-]*))?(?:\?(?P<query>[^@]*))?"
)
# The parts as SQLAlchemy reads them (`sqlalchemy.engine.url`), which accepts more.
_TAKEN = re.compile(
    _SCHEME.pattern + r"(?:(?P<user>[^:/]*)(?::(?P<password>[^@]*))?@)?(?P<host>\[[^/?]+\]|[^/:?]+)?"
    r"(?::(?P<port>[^/?]*))?(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?"
)
_SHAPE = "scheme://user:password@host:port/database"
# What separates the parts of a URL, in any arrangement.
_BETWEEN = re.compile(r"[:/@?&=;#,\s]+")
# A shorter secret is hidden only as a word of its own. Otherwise it would hide half of a driver's message. Assumed.
_LONG = 4


def shown_url(url: str) -> str:
    """`url` with `***` for all but its scheme, host and database, or for all of it if those cannot be told apart."""
    parts = _CLEAR.fullmatch(url)
    if parts is None:
        scheme = _SCHEME.match(url)
        return f"{scheme[0]}{HIDDEN}" if scheme else HIDDEN
    who = "" if parts["who"] is None else f"{HIDDEN}@"
    port = f":{HIDDEN}" if parts["port"] else ""
    database = "" if parts["database"] is None else f"/{parts['database']}"
    return f"{parts['scheme']}://{who}{parts['host']}{port}{database}" + (f"?{HIDDEN}" if parts["query"] else "")


def shown_words(words: Sequence[str]) -> list[str]:
    """The words of a command line without secrets: the value of --storage, and other URLs, are shown by `shown_url`."""
    shown = []
    follows = False
    for word in words:
        name, equals, value = word.partition("=")
        if follows:
            shown.append(shown_url(word))
        elif name == "--storage" and equals:
            shown.append(f"{name}={shown_url(value)}")
        else:
            shown.append(without_users(word))
        follows = word == "--storage"
    return shown


def without_users(text: str) -> str:
    """A text whose URLs have `***` for the user's part, and for everything after the question mark."""
    text = re.sub(r"://[^\s]*@", f"://{HIDDEN}@", text)
    return re.sub(r"(://[^\s?]*)\?\S+", rf"\1?{HIDDEN}", text)


def check_url(url: str) -> None:
    """Refuse a URL that a database would not get as it was meant.

    Raises:
        SettingError: it is no URL, or a part of it would be taken for another one.
    """
    what = f"a database's URL is {_SHAPE}"
    if not url.isprintable():
        raise SettingError(f"{what}, on one line and without control characters; this one has some")
    parts = _TAKEN.fullmatch(url)
    if parts is None:
        raise SettingError(
            f"{what}, such as postgresql+psycopg://user@host/database; this one has no scheme: letters, "
            "digits and + before ://"
            if _SCHEME.match(url) is None
            else f"{what}; found {shown_url(url)}, whose parts cannot be told apart"
        )
    if url.count("@") > 1 or "@" in (parts["database"] or ""):
        raise SettingError(f"an @ in a database's password is written %40, and / as %2F; found one in {shown_url(url)}")
    if not re.fullmatch("[0-9]*", parts["port"] or ""):
        raise SettingError(
            f"{what}; in {shown_url(url)} what stands in the place of the port is no number. A colon in a password is "
            "written %3A, and an @ follows the password"
        )


def without_secrets(message: str, url: str) -> str:
    """A driver's or a library's message about `url`, without what `shown_url` hides, in any spelling."""
    shown = shown_url(url)
    message = message.replace(url, shown)
    written = {text for secret in _secrets(url) for text in (secret, unquote(secret), unquote_plus(secret))}
    # As Python writes them in quotes; and in words, for a message that has only a piece of one or doubles some
    # characters.
    pieces = {*(repr(text)[1:-1] for text in written), *(word for text in written for word in re.findall(r"\w+", text))}
    pieces -= set(re.findall(r"\w+", shown))  # which may be shown
    for secret in sorted(written | pieces, key=len, reverse=True):
        if len(secret) >= _LONG:
            message = re.sub(re.escape(secret), HIDDEN, message, flags=re.IGNORECASE)
        elif re.search(r"\w", secret):
            message = re.sub(rf"(?<!\w)(?<!\w\.){re.escape(secret)}(?!\.?\w)", HIDDEN, message, flags=re.IGNORECASE)
    return message


def _secrets(url: str) -> Iterator[str]:
    """The hidden parts of a URL: whole and, if it is not clear what they are, in pieces."""
    clear = _CLEAR.fullmatch(url)
    if clear is not None:
        who = clear["who"] or ""
        yield from (who, *who.split(":", 1), who.rpartition(":")[2], clear["port"] or "")
        yield from (clear["query"] or "", *re.split("[&=]", clear["query"] or ""))
        return
    scheme = _SCHEME.match(url)
    rest = url[scheme.end() :] if scheme else url
    yield from (rest, *rest.rpartition("@")[::2], *_BETWEEN.split(rest))
    if (taken := _TAKEN.fullmatch(url)) is not None:
        yield from (taken[name] or "" for name in ("user", "password", "port", "database", "query"))
