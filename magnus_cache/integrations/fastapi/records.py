"""What is stored of a response, and responses made from it."""

import copy
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from starlette.datastructures import Headers
from starlette.responses import Response

from magnus_cache.integrations.fastapi.http_rules import ResponseRules, entity_tag

__all__ = ["RawHeaders", "Record", "copy_of", "is_whole", "record_of", "reply"]

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Names in lower case, and values."""

_OF_ONE_EXCHANGE: Final = frozenset(
    {
        b"age", b"connection", b"content-length", b"date", b"keep-alive", b"proxy-authenticate", b"set-cookie",
        b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
"""Headers that are never stored: those of one connection or one caller, and those that are made anew."""

_OF_304: Final = frozenset({b"cache-control", b"content-location", b"etag", b"expires", b"last-modified", b"vary"})
"""Stored headers that a 304 repeats."""

_WITHOUT_BODY: Final = frozenset({204, 304})


class Record(NamedTuple):
    """A response as it is stored, as a plain tuple.

    :ivar is_stored: False for a response that those who wait get, and that is not stored, such as an error.
    :ivar life: seconds for which the response says that it is fresh, or None.
    :ivar etag: its ETag; empty if it is not stored.
    :ivar is_value: whether the framework made it from a value: then it has the headers that dependencies set, too.
    """

    is_stored: bool
    life: int | None
    status: int
    etag: str
    headers: RawHeaders
    body: bytes
    is_value: bool


def is_whole(response: object) -> bool:
    """Return whether a response has its whole body in memory: streams and files are passed through."""
    body = getattr(response, "body", None)
    return isinstance(body, bytes | memoryview) and not hasattr(response, "body_iterator")


def record_of(response: Response, rules: ResponseRules, key: Sequence[object], *, is_value: bool) -> Record:
    """Return what is stored of a response with its body in memory.

    :param key: the parts of the key, which make the ETag one of this URL alone.
    """
    body = bytes(response.body)
    headers = tuple((name, value) for name, value in response.raw_headers if name not in _OF_ONE_EXCHANGE)
    etag = "" if rules.refusal else Headers(raw=list(headers)).get("etag") or entity_tag(key, body)
    return Record(not rules.refusal, rules.life, response.status_code, etag, headers, body, is_value)


def reply(record: Record, *, unmodified: bool = False, head: bool = False) -> Response:
    """Return the response of a record.

    :param unmodified: return a 304 without a body in its place.
    :param head: leave out the body only, as in a response to HEAD.
    """
    status = 304 if unmodified else record.status
    response = Response(status_code=status)
    stored = record.headers
    if unmodified:
        stored = tuple(header for header in stored if header[0] in _OF_304)
    elif status not in _WITHOUT_BODY:
        stored = (*stored, (b"content-length", b"%d" % len(record.body)))
        response.body = b"" if head else record.body
    response.raw_headers = list(stored)
    return response


def copy_of(error: Exception) -> Exception:
    """Return a copy of an error for one of its receivers: frameworks and generators change errors that they handle."""
    again: Any
    try:
        again = copy.copy(error)
    except Exception:  # noqa: BLE001  # a class that cannot be copied by its arguments; each raises what it likes
        again = type(error).__new__(type(error), *error.args)
        vars(again).update(vars(error))
    if type(again) is not type(error):
        return error
    again.__cause__, again.__suppress_context__ = error.__cause__, error.__suppress_context__
    copied: Exception = again.with_traceback(error.__traceback__)
    return copied
