"""What the headers of a request and of a response say about caching, after RFC 9110 and RFC 9111. No I/O."""

import hashlib
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from starlette.datastructures import Headers

__all__ = [
    "CREDENTIALS",
    "LIKELY_CREDENTIALS",
    "NEGOTIATION",
    "RequestRules",
    "ResponseRules",
    "canonical_path",
    "canonical_query",
    "entity_tag",
    "is_not_modified",
    "request_rules",
    "response_rules",
    "selects_form",
]

CREDENTIALS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Request headers that say who asks."""

NEGOTIATION: Final = frozenset(
    {
        "accept", "accept-charset", "accept-datetime", "accept-encoding", "accept-language", "content-type", "dnt",
        "host", "origin", "prefer", "referer", "save-data", "user-agent", "viewport-width", "width",
    }
)  # fmt: skip
"""Request headers that say in which form the answer is wanted, and not who asks."""

LIKELY_CREDENTIALS: Final = frozenset(
    {
        "api-key", "private-token", "x-access-token", "x-api-key", "x-auth-token", "x-csrf-token", "x-session-id",
        "x-session-token", "x-xsrf-token",
        # Whom a gateway has let pass.
        "cf-access-jwt-assertion", "remote-user", "ssl-client-cert", "x-amzn-oidc-accesstoken", "x-amzn-oidc-data",
        "x-amzn-oidc-identity", "x-auth-request-access-token", "x-auth-request-email", "x-auth-request-user",
        "x-client-cert", "x-forwarded-client-cert", "x-forwarded-email", "x-forwarded-user",
        "x-goog-authenticated-user-email", "x-goog-authenticated-user-id", "x-goog-iap-jwt-assertion",
        "x-ms-client-principal", "x-ms-client-principal-id", "x-remote-user", "x-ssl-client-cert", "x-user",
        "x-user-email", "x-user-id", "x-webauth-user",
    }
)  # fmt: skip
"""Request headers that say who asks where a service or its gateway uses them. No declaration tells whether it does."""

_OF_FORM: Final = ("accept-", "cloudfront-", "hx-", "if-", "sec-", "turbo-", "x-inertia", "x-up-")
_WORDS_OF_FORM: Final = frozenset(
    {
        "build", "color", "colour", "country", "currency", "device", "dpr", "downlink", "ect", "encoding", "format",
        "forwarded", "ipcountry", "lang", "language", "locale", "memory", "path", "pjax", "platform", "prefix", "port",
        "proto", "protocol", "region", "release", "requested", "rtt", "scheme", "theme", "time", "timezone", "tz",
        "variant", "version", "viewport",
    }
)  # fmt: skip

_STORED: Final = frozenset({200, 203, 204, 300, 301, 308})
"""Status codes of responses that are stored: complete answers that stay as they are until they are invalidated."""

_LONGEST: Final = 2**31
"""Seconds. RFC 9111 lets a cache take a larger number for this one."""


class RequestRules(NamedTuple):
    """What a request asks of caches.

    :ivar no_store: neither answer from the cache nor store the answer.
    :ivar max_age: the oldest stored response that will do, in seconds; 0 for none but a new one, None for any.
    :ivar min_fresh: seconds for which the response must stay fresh.
    :ivar only_if_cached: answer from the cache, or with 504.
    """

    no_store: bool
    max_age: int | None
    min_fresh: int
    only_if_cached: bool


class ResponseRules(NamedTuple):
    """What a response says of itself.

    :ivar refusal: why it is not stored, or None.
    :ivar is_private: whether it is for the caller alone: it is not given to those who wait for the same URL either.
    :ivar life: seconds for which it says that it is fresh, or None.
    """

    refusal: str | None
    is_private: bool
    life: int | None


def selects_form(name: str) -> bool:
    """Return whether a request header seems to say in which form the answer is wanted, and not who asks.

    :param name: in lower case.
    """
    if name in NEGOTIATION or name.startswith(_OF_FORM):
        return True
    return name not in LIKELY_CREDENTIALS and not _WORDS_OF_FORM.isdisjoint(name.split("-"))


def request_rules(headers: Headers) -> RequestRules:
    """Read the headers of a request."""
    said = _directives(headers.getlist("cache-control"))
    max_age = _seconds(said, "max-age")
    if "no-cache" in said or (not said and "no-cache" in headers.get("pragma", "").lower()):
        max_age = 0
    return RequestRules("no-store" in said, max_age, _seconds(said, "min-fresh") or 0, "only-if-cached" in said)


def response_rules(status: int, headers: Headers, known: bool, varies: frozenset[str]) -> ResponseRules:
    """Read the status and headers of a response.

    :param known: whether the key says for whom the response is.
    :param varies: the request headers that are part of the key, in lower case.
    """
    said = _directives(headers.getlist("cache-control"))
    life = _seconds(said, "s-maxage")
    life = _seconds(said, "max-age") if life is None else life
    if "no-store" in said or "no-cache" in said:
        return ResponseRules("Cache-Control", True, None)
    if not known and "set-cookie" in headers:
        return ResponseRules("Set-Cookie", True, None)
    if not known and "private" in said:
        return ResponseRules("Cache-Control", True, None)
    others = set(_names(headers.getlist("vary"))) - varies
    if others:
        return ResponseRules(f"Vary: {', '.join(sorted(others))}", True, None)
    if status not in _STORED:
        return ResponseRules(f"status {status}", False, None)
    if life == 0 or (life is None and "expires" in headers):
        return ResponseRules("it has no time to live", False, None)
    return ResponseRules(None, False, life)


def _directives(values: Iterable[str]) -> dict[str, str]:
    """Return the directives of Cache-Control headers, in lower case; the first of several counts."""
    found: dict[str, str] = {}
    for part in ",".join(values).split(","):
        name, _, value = part.partition("=")
        if name := name.strip().lower():
            found.setdefault(name, value.strip().strip('"'))
    return found


def _seconds(said: dict[str, str], name: str) -> int | None:
    if name not in said:
        return None
    # RFC 9111, 4.2.1: a lifetime that cannot be read counts as none at all.
    return min(int(said[name]), _LONGEST) if said[name].isdecimal() and said[name].isascii() else 0


def _names(values: Iterable[str]) -> Iterable[str]:
    return filter(None, (name.strip().lower() for name in ",".join(values).split(",")))


def is_not_modified(request: Headers, etag: str, modified: str | None) -> bool:
    """Return whether the client has this response already.

    :param etag: of the stored response.
    :param modified: its Last-Modified, or None.
    """
    if given := ",".join(request.getlist("if-none-match")):
        tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
        return "*" in tags or etag.removeprefix("W/") in tags
    since = request.get("if-modified-since")
    if since is None or modified is None:
        return False
    try:
        return parsedate_to_datetime(modified) <= parsedate_to_datetime(since)
    except (ValueError, TypeError):
        # A date that is none, or one of two without a time zone.
        return False


def entity_tag(parts: Sequence[object], body: bytes) -> str:
    """Return an ETag that no other URL and no other user has.

    :param parts: the parts of the key.
    """
    text = repr(tuple(parts)).encode("utf-8", "surrogatepass")
    return f'"{hashlib.sha256(b"%d:%b%b" % (len(text), text, body)).hexdigest()[:32]}"'


def canonical_path(path: bytes) -> str:
    """Return a path with one spelling of each segment: an encoded slash stays different from a plain one."""
    return "/".join(quote(unquote_to_bytes(segment), safe="") for segment in path.split(b"/"))


def canonical_query(query: bytes) -> str:
    """Return a query with one order of names and one spelling of each; the values of one name keep their order."""
    pairs = [pair.replace(b"+", b" ").partition(b"=") for pair in query.split(b"&")] if query else []
    decoded = [(unquote_to_bytes(name), equals, unquote_to_bytes(value)) for name, equals, value in pairs]
    decoded.sort(key=lambda pair: pair[0])
    return "&".join(quote(name, safe="") + equals.decode() + quote(value, safe="") for name, equals, value in decoded)
