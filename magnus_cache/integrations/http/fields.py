"""The header fields that a cache reads: directives, dates, waits.

Pure functions of text. Malformed fields are as absent, unless the RFC says otherwise.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias
from urllib.request import parse_http_list

__all__ = [
    "Directives",
    "Fields",
    "age_of",
    "date_of",
    "directives",
    "kept_fields",
    "merged_fields",
    "retry_after",
    "same_tag",
    "seconds_of",
    "value_of",
    "values_of",
]

Fields: TypeAlias = Sequence[tuple[str, str]]
"""Header fields in their order, names in lower case."""

Directives: TypeAlias = Mapping[str, str]
"""The directives of a Cache-Control field, names in lower case; a directive without an argument has an empty one."""

_LONGEST: Final = 2**31
"""Seconds that stand for all longer times, as RFC 9111 (1.2.2) has it."""

_HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authentication-info", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Fields about a connection, which are not stored (RFC 9111, 3.1)."""

_ABOUT_THE_BODY: Final = frozenset({"content-encoding", "content-length", "content-range", "content-type"})
"""Fields of a 304 that do not replace those of the stored response: they would no longer fit its body."""

_DIGITS: Final = re.compile(r"[0-9]+\Z").match


def values_of(fields: Fields, name: str) -> Iterator[str]:
    """Yield the values of all fields of a name."""
    return (value for each, value in fields if each == name)


def value_of(fields: Fields, name: str) -> str | None:
    """Return the value of a field; of several, joined by commas; None without one."""
    found = [value for each, value in fields if each == name]
    return ", ".join(found) if found else None


def directives(fields: Fields) -> Directives:
    """Return the directives of the Cache-Control fields. Of one that is given twice, the first counts."""
    found: dict[str, str] = {}
    for line in values_of(fields, "cache-control"):
        for item in parse_http_list(line):
            name, _, argument = item.partition("=")
            if name.strip():
                found.setdefault(name.strip().lower(), argument.strip().strip('"'))
    return found


def seconds_of(given: Directives, name: str) -> int | None:
    """Return the seconds of a directive; None without one, and 0 if they are malformed: such a response is stale."""
    text = given.get(name)
    if text is None:
        return None
    # A number of any length: Python refuses to read those of thousands of digits.
    return 0 if not _DIGITS(text) else _LONGEST if len(text) > 10 else min(int(text), _LONGEST)


def date_of(text: str | None) -> float | None:
    """Return a date of HTTP in seconds since 1970; None without a valid one."""
    if not text:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, IndexError):
        return None


def retry_after(fields: Fields, now: float) -> float | None:
    """Return for how many seconds a server asks to be left alone; None if it does not say so.

    :param now: seconds since 1970, for a Retry-After that is a date and a response without a Date.
    """
    text = (value_of(fields, "retry-after") or "").strip()
    if _DIGITS(text):
        return float(_LONGEST if len(text) > 10 else min(int(text), _LONGEST))
    date = date_of(text)
    if date is None:
        return None
    # By the server's own clock, if it is known.
    sent = date_of(value_of(fields, "date"))
    return min(max(0.0, date - (now if sent is None else sent)), float(_LONGEST))


def age_of(fields: Fields, now: float, delay: float) -> float:
    """Return how old a response was when it arrived, in seconds (RFC 9111, 4.2.3).

    :param now: seconds since 1970, when it arrived.
    :param delay: seconds between request and response.
    """
    given = next(values_of(fields, "age"), "0").strip()
    stated = float(min(int(given), _LONGEST)) if _DIGITS(given) and len(given) <= 10 else 0.0
    sent = date_of(value_of(fields, "date"))
    # Dates have whole seconds.
    apparent = 0.0 if sent is None else float(math.floor(now) - sent)
    return max(0.0, apparent, stated + max(0.0, delay))


def kept_fields(fields: Fields, named: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """Return the fields that may be stored.

    :param named: further names that may not, in lower case.
    """
    left_out = {*_HOP_BY_HOP, *named}
    for value in values_of(fields, "connection"):
        left_out.update(name.strip().lower() for name in value.split(","))
    return tuple((name, value) for name, value in fields if name not in left_out)


def merged_fields(stored: Fields, fresh: Fields) -> tuple[tuple[str, str], ...]:
    """Return the fields of a stored response, updated by a 304 (RFC 9111, 3.2)."""
    changes = [(name, value) for name, value in kept_fields(fresh) if name not in _ABOUT_THE_BODY]
    changed = {name for name, _ in changes}
    return (*((name, value) for name, value in stored if name not in changed and name != "age"), *changes)


def same_tag(one: str, other: str) -> bool:
    """Whether two entity tags are equal, by weak comparison (RFC 9110, 8.8.3.2)."""
    return one.strip().removeprefix("W/") == other.strip().removeprefix("W/")
