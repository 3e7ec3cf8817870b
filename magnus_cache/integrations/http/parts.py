"""What the transports do with the objects of httpx and httpx2, which have the same parts under the same names."""

import copy
import sys
from typing import Any, Final

from magnus_cache import AsyncCacheManager, CacheError, CacheManager, CacheTypeError
from magnus_cache.integrations.http.answers import Answer, made
from magnus_cache.integrations.http.exchange import ORIGIN
from magnus_cache.integrations.http.keys import Head
from magnus_cache.integrations.http.patience import patience_of

__all__ = [
    "answer_of", "chosen", "conditional", "head_of", "is_bounded", "is_framed", "library_of", "marked", "own_error",
    "read_by", "response_of",
]  # fmt: skip

_NEEDED: Final = ("Request", "Response", "AsyncByteStream", "SyncByteStream", "ByteStream")


def chosen(cache: object) -> CacheManager | AsyncCacheManager | None:
    """Return a cache that was given; None stands for that of the process.

    :raises CacheTypeError: for anything else.
    """
    if cache is not None and not isinstance(cache, CacheManager | AsyncCacheManager):
        raise CacheTypeError("cache", f"a CacheManager or AsyncCacheManager is needed, not {type(cache).__name__}")
    return cache


def library_of(request: object) -> Any:
    """Return the library of a request: httpx or httpx2, whichever made it.

    :raises CacheTypeError: for a request of another library.
    """
    for kind in type(request).__mro__:
        library = sys.modules.get(kind.__module__.partition(".")[0])
        if all(hasattr(library, name) for name in _NEEDED):
            return library
    raise CacheTypeError("request", f"a request of httpx or httpx2 is needed, not {type(request).__name__}")


def head_of(request: Any) -> Head:
    """Return the head of a request."""
    fields = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in request.headers.raw]
    patience = patience_of(request.extensions.get("timeout"))
    return Head(request.method.upper(), str(request.url).partition("#")[0], fields, patience)


def is_bounded(request: Any, limit: int) -> bool:
    """Whether the body of a request is in memory, or not larger than a limit, so that it can be part of a key."""
    if isinstance(request.stream, library_of(request).ByteStream):
        return True
    stated = request.headers.get("content-length", "")
    return stated.isdecimal() and int(stated) <= limit


def answer_of(response: Any) -> Answer:
    """Return the head of a response, without its body."""
    fields = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers.raw)
    reason = response.extensions.get("reason_phrase", b"")
    return made(response.status_code, reason=reason.decode("latin-1"), fields=fields)


def is_framed(response: Any) -> bool:
    """Whether the end of a response's body is marked by more than the end of its connection."""
    version = response.extensions.get("http_version", b"")
    return not version.startswith(b"HTTP/1")


def conditional(request: Any, condition: list[tuple[str, str]]) -> Any:
    """Return a request with further fields. The caller's own stays as it is."""
    if not condition:
        return request
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in condition]
    return library_of(request).Request(
        request.method, request.url, headers=[*request.headers.raw, *fields], stream=request.stream,
        extensions=request.extensions,
    )  # fmt: skip


def marked(response: Any, origin: str = "miss") -> Any:
    """Mark a response of the server with its origin, and return it."""
    response.headers[ORIGIN] = response.extensions["magnus_cache"] = origin
    return response


def response_of(request: Any, answer: Answer, fields: list[tuple[str, str]]) -> Any:
    """Return a response from the cache, for one caller."""
    library = library_of(request)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    extensions = {
        "http_version": b"HTTP/1.1", "reason_phrase": answer.reason.encode("latin-1"), "magnus_cache": fields[-1][1],
    }  # fmt: skip
    return library.Response(
        answer.status, headers=raw, stream=library.ByteStream(answer.body), extensions=extensions, request=request
    )


def own_error(error: Exception, request: Any) -> Exception:
    """Return an error of a load for one of the callers that wait for it, with that caller's own request."""
    if isinstance(error, CacheError):
        return error
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001  # whatever the constructor of that class wants
        return error
    if type(own) is not type(error):
        return error
    own.__cause__ = error
    if "request" in vars(own) or hasattr(type(own), "request"):
        own.request = request  # type: ignore[attr-defined]  # of the libraries' errors
    return own


def read_by(request: Any, response: Any, stream: Any) -> Any:
    """Return the response of the server with another stream, for the caller that reads it.

    :param stream: of the library that the request is of.
    """
    return marked(
        library_of(request).Response(
            response.status_code, headers=response.headers.raw, stream=stream, extensions=response.extensions,
            request=request,
        )
    )  # fmt: skip
