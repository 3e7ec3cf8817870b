"""The client behind a function: where it sends requests, for whom, and with which headers and query parameters.

Two clients with the same method may ask different services. What tells them apart is part of the key; what only says
how to reach a service, or which call this is, is not.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from magnus_cache.integrations.llm.keys import is_unset
from magnus_cache.integrations.llm.prices import field_of

__all__ = ["address_of", "client_of", "headers_in_key"]

_WHOSE: Final = ("organization", "project", "project_id")

_NEUTRAL: Final = frozenset({
    # Credentials: who pays for a reply does not change it.
    "api-key", "authorization", "cookie", "proxy-authorization", "x-api-key", "x-goog-api-key",
    # The client and its connection.
    "accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent",
    # Which call this is.
    "b3", "baggage", "idempotency-key", "request-id", "sentry-trace", "traceparent", "tracestate", "x-amzn-trace-id",
    "x-client-request-id", "x-cloud-trace-context", "x-correlation-id", "x-request-id", "x-trace-id",
})  # fmt: skip
"""Headers that are not part of keys. Any other one may choose the model, its version or a gateway's route."""

_NEUTRAL_STARTS: Final = ("x-b3-", "x-datadog-", "x-stainless-")


def client_of(function: Any) -> Any:
    """Return the client whose method a function is; None if it is no method of a client of a service."""
    owner = getattr(function, "__self__", None)
    for client in (owner, getattr(owner, "_client", None)):
        if client is not None and getattr(client, "base_url", None) is not None:
            return client
    return None


def address_of(client: Any) -> list[Any]:
    """Return where a client sends its requests, for whom, and the query parameters that it always adds."""
    query = getattr(client, "default_query", None)
    return [
        str(client.base_url),
        *(whose if isinstance(whose := field_of(client, name), str) else None for name in _WHOSE),
        dict(query) if isinstance(query, Mapping) else {},
    ]


def headers_in_key(client: Any, arguments: Mapping[str, Any], excluded: Collection[str]) -> dict[str, Any]:
    """Return the headers of a call that are part of its key, by names in lower case.

    Those of the call replace those that its client always sends.

    :param client: that of the function, or None.
    :param excluded: further headers that are no part of keys, in lower case, or the names of whole groups, such as
        ``extra_headers``.
    """
    found: dict[str, Any] = {}
    given = {"default_headers": getattr(client, "default_headers", None), **arguments}
    for argument in ("default_headers", "headers", "extra_headers"):
        headers = given.get(argument)
        if isinstance(headers, Mapping) and argument not in excluded:
            found |= {str(name).lower(): value for name, value in headers.items()}
    return {
        name: value
        for name, value in found.items()
        if name not in _NEUTRAL
        and name not in excluded
        and not name.startswith(_NEUTRAL_STARTS)
        and not is_unset(value)
    }
