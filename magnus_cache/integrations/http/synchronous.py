"""The transport for blocking clients of httpx and httpx2."""

from collections.abc import Iterator
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache.integrations.http.answers import Answer
from magnus_cache.integrations.http.blocking import BlockingExchange
from magnus_cache.integrations.http.keys import Head
from magnus_cache.integrations.http.options import HttpCacheOptions
from magnus_cache.integrations.http.parts import (
    answer_of,
    conditional,
    head_of,
    is_bounded,
    is_framed,
    library_of,
    marked,
    read_by,
    response_of,
)

if TYPE_CHECKING:
    # Clients of either library accept it as a transport of their own.
    Transport: Any = object
else:
    Transport = object

__all__ = ["CacheTransport"]


class CacheTransport(Transport):  # type: ignore[misc]  # see above
    """The transport for blocking clients; see `AsyncCacheTransport`.

    ::

        client = httpx.Client(transport=CacheTransport(httpx.HTTPTransport(), ttl="1m"))

    A body that is stored is read before the response is returned.

    :param transport: the transport to wrap, of httpx or httpx2.
    :param cache: the cache to use; None for that of the process.
    :param options: see `HttpCacheOptions`.
    :raises CacheArgumentError: naming the option that cannot be used.
    """

    def __init__(
        self, transport: Any, cache: CacheManager | AsyncCacheManager | None = None,
        **options: Unpack[HttpCacheOptions],
    ) -> None:  # fmt: skip
        self._transport = transport
        self._exchange = BlockingExchange(cache, options)

    def handle_request(self, request: Any) -> Any:
        """Return the response to a request, from the cache or from the server.

        :raises Exception: what the wrapped transport raises, each caller its own.
        """
        return self._exchange.handle(_Client(self._transport, request))

    def close(self) -> None:
        """Close the wrapped transport; the cache stays open."""
        self._transport.close()

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:  # fmt: skip
        self._transport.__exit__(kind, error, traceback)


class _Client:
    """A request of httpx or httpx2."""

    def __init__(self, transport: Any, request: Any) -> None:
        self._transport = transport
        self.request = request
        self.head: Head = head_of(request)

    def body(self, limit: int) -> bytes | None:
        if not is_bounded(self.request, limit):
            return None
        body: bytes = self.request.read()
        return body

    def send(self, condition: list[tuple[str, str]]) -> "_Live":
        return _Live(self.request, self._transport.handle_request(conditional(self.request, condition)))

    def response_of(self, answer: Answer, fields: list[tuple[str, str]]) -> Any:
        return response_of(self.request, answer, fields)


class _Live:
    """A response of httpx or httpx2."""

    def __init__(self, request: Any, response: Any) -> None:
        self._request = request
        self._response = response
        self.answer: Answer = answer_of(response)
        self.framed: bool = is_framed(response)

    def chunks(self) -> Iterator[bytes]:
        chunks: Iterator[bytes] = iter(self._response.stream)
        return chunks

    def response(self, read: list[bytes] | None, rest: Iterator[bytes]) -> Any:
        if read is None:
            return marked(self._response)
        return read_by(self._request, self._response, _stream_of(library_of(self._request))(read, rest, self))

    def close(self) -> None:
        self._response.close()


@cache
def _stream_of(library: Any) -> Any:
    """Return the class of the streams for one library."""

    class Stream(library.SyncByteStream):  # type: ignore[misc]  # httpx and httpx2 each have a class of their own
        def __init__(self, read: list[bytes], rest: Iterator[bytes], live: _Live) -> None:
            self._read, self._rest, self._live = read, rest, live

        def __iter__(self) -> Iterator[bytes]:
            yield from self._read
            yield from self._rest

        def close(self) -> None:
            self._live.close()

    return Stream
