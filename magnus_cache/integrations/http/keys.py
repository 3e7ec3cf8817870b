"""What tells requests apart: the key of a response, and whose it is.

A response belongs to the user whose credentials the request had. Which headers are credentials cannot be known: each
service has its own. So every header is part of the key, unless it is known to say nothing about the user. A header too
many costs hits; a header too few would give one user the response of another. Credentials are hashed and never stored.
"""

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from magnus_cache.integrations.http.fields import Fields, value_of
from magnus_cache.integrations.http.options import Policy
from magnus_cache.integrations.http.patience import ENDLESS, Patience

__all__ = [
    "Head",
    "address_of",
    "digest",
    "has_credentials",
    "key_of",
    "resource_of",
    "source_of",
    "tag_of",
    "variant_of",
]

_SHOWN: Final = 100
"""Characters of a path that a key shows."""

_TELLING_PART: Final = re.compile(r"(?=[^/]*[0-9])[^/]{16,}|[^/._-]{24,}|[^/]*(?::|%3A)[^/]*", re.IGNORECASE)
"""A part of a path that may be a credential, as in those of Telegram's bots, webhooks and providers of nodes."""

_BUCKETS: Final = 4096

_ANONYMOUS: Final = frozenset({
    "accept-encoding", "cache-control", "connection", "content-length", "date", "expect", "idempotency-key",
    "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "keep-alive", "pragma",
    "priority", "range", "te", "trailer", "transfer-encoding", "upgrade", "upgrade-insecure-requests", "user-agent",
    # Of tracing: new with each request.
    "b3", "baggage", "sentry-trace", "traceparent", "tracestate", "x-amzn-trace-id", "x-client-request-id",
    "x-cloud-trace-context", "x-correlation-id", "x-request-id",
})  # fmt: skip
"""Headers that say nothing about the user, nor which form of a response is wanted. Those that select a form anyway are
named by the response's Vary."""

_ANONYMOUS_PREFIXES: Final = ("x-b3-", "x-datadog-", "x-stainless-")

_FORM: Final = frozenset({"accept", "accept-charset", "accept-language", "content-type"})
"""Headers that select the form of a response. Servers often forget to name them in Vary."""

_CREDENTIAL: Final = re.compile(
    r"auth|cookie|key|token|secret|session|passw|credential|signature|user|account|tenant|csrf|xsrf|identity"
    r"|certificate|jwt|email|login|customer|organi[sz]ation"
).search


class Head(NamedTuple):
    """A request without its body.

    :ivar method: in capitals.
    :ivar url: without a fragment.
    :ivar patience: the timeouts of its caller.
    """

    method: str
    url: str
    fields: Fields
    patience: Patience = ENDLESS


def address_of(url: str) -> str:
    """Return a URL without query, fragment, user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _shown(url: str) -> str:
    site, slash, path = address_of(url).partition("://")[2].partition("/")
    parts = ("..." if _TELLING_PART.fullmatch(part) else part for part in path.split("/"))
    return f"{urlsplit(url).scheme}://{site}{slash}{'/'.join(parts)}"


def digest(secret: bytes, parts: Iterable[bytes]) -> str:
    """Return a hash of parts, 32 characters. Other parts have another one, also if they are the same text in all."""
    found = blake2b(digest_size=16, key=secret, person=b"magnus_cache.htt")
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.hexdigest()


def resource_of(url: str) -> str:
    """Return a URL without fragment, user and password, in one spelling for the clients of all libraries."""
    parts = urlsplit(url)
    port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    host = parts.netloc.rpartition("@")[2].lower().removesuffix(port)
    return parts._replace(netloc=host, path=parts.path or "/", fragment="").geturl()


def _telling(policy: Policy, head: Head, *, shared: bool = False) -> list[tuple[str, str]]:
    """Return the headers of a request that tell its user, or the form of the response; if shared, only the latter."""
    host = urlsplit(head.url).netloc.rpartition("@")[2]
    return sorted(
        (name, value)
        for name, value in head.fields
        if name not in _ANONYMOUS and name not in policy.ignored and not name.startswith(_ANONYMOUS_PREFIXES)
        and (not shared or name in _FORM) and (name, value) != ("host", host)
    )  # fmt: skip


def has_credentials(head: Head) -> bool:
    """Whether a request seems to say who its user is."""
    named = any(_CREDENTIAL(name) for name, _ in head.fields if name not in _ANONYMOUS)
    return named or "@" in urlsplit(head.url).netloc


def key_of(policy: Policy, head: Head, body: bytes) -> str:
    """Return the key of a request's response.

    It shows method, host and path, without the parts of the path that look like credentials. All else is hashed.
    """
    # What an anonymous user got is not for those with credentials, if the server does not say so.
    whose = "private" if not policy.shared else "named" if has_credentials(head) else "shared"
    parts = [head.method, head.url, policy.identity, whose]
    for name, value in _telling(policy, head, shared=policy.shared):
        parts += [name, value]
    hashed = digest(policy.secret, [*(part.encode("utf-8", "surrogateescape") for part in parts), b"", body])
    return f"{head.method}:{_shown(head.url)[:_SHOWN]}#{hashed}"


def source_of(policy: Policy, head: Head) -> str:
    """Return the key of what a server said to be left alone, by the user whom it said that to.

    That user alone, also if the store is shared: others have limits of their own.
    """
    address = urlsplit(address_of(head.url))
    parts = [policy.identity]
    for name, value in _telling(policy, head):
        if name not in _FORM:
            parts += [name, value]
    hashed = digest(policy.secret, [part.encode("utf-8", "surrogateescape") for part in parts])
    return f"pause:{address.scheme}://{address.netloc}#{hashed}"


def tag_of(policy: Policy, url: str) -> str:
    """Return the tag by which all responses of a URL are invalidated, of all users and in all forms.

    It is one of 4096: Redis keeps an epoch for each tag that is in use.
    """
    resource = resource_of(url).encode("utf-8", "surrogateescape")
    bucket = int(digest(policy.secret, [resource]), 16) % _BUCKETS
    return f"http:{policy.namespace}:{bucket}"


def variant_of(policy: Policy, head: Head, names: Iterable[str]) -> tuple[tuple[str, bytes], ...]:
    """Return what selects a response by its Vary: the names of the request's fields, each with a hash of its value."""
    found = list[tuple[str, bytes]]()
    for name in names:
        value = value_of(head.fields, name)
        normal = "\0" if value is None else ",".join(part.strip() for part in value.split(","))
        found.append((name, bytes.fromhex(digest(policy.secret, [normal.encode("utf-8", "surrogateescape")]))))
    return tuple(found)
