"""The adapter for requests."""

import io
from collections.abc import Iterator
from http.client import HTTPMessage
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Unpack

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache.integrations.http.answers import Answer, made
from magnus_cache.integrations.http.blocking import BlockingExchange
from magnus_cache.integrations.http.exchange import ORIGIN
from magnus_cache.integrations.http.keys import Head
from magnus_cache.integrations.http.options import HttpCacheOptions
from magnus_cache.integrations.http.patience import patience_of
from magnus_cache.integrations.models import library

if TYPE_CHECKING:
    import requests
    import urllib3
    from requests import adapters, exceptions
    from urllib3 import exceptions as broken
else:
    requests = library("requests", extra="requests", edge="http")
    urllib3 = library("urllib3", extra="requests", edge="http")
    adapters, exceptions, broken = requests.adapters, requests.exceptions, urllib3.exceptions

__all__ = ["CacheAdapter"]

_CHUNK = 65536


class CacheAdapter(adapters.BaseAdapter):
    """An adapter that answers from the cache, and asks the one it wraps for the rest.

    ::

        session = requests.Session()
        session.mount("https://", CacheAdapter(ttl="1m"))

    It does what `AsyncCacheTransport` does. A body that is stored is read before the response is returned, also with
    ``stream=True``.

    :param adapter: the adapter to wrap; None for a new `requests.adapters.HTTPAdapter`.
    :param cache: the cache to use; None for that of the process.
    :param options: see `HttpCacheOptions`.
    :raises CacheArgumentError: naming the option that cannot be used.
    """

    def __init__(
        self, adapter: adapters.BaseAdapter | None = None, cache: CacheManager | AsyncCacheManager | None = None,
        **options: Unpack[HttpCacheOptions],
    ) -> None:  # fmt: skip
        super().__init__()
        self.adapter = adapters.HTTPAdapter() if adapter is None else adapter
        self._exchange = BlockingExchange(cache, options)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Return the response to a request, from the cache or from the server.

        :raises Exception: what the wrapped adapter raises, each caller its own.
        """
        # The session reads the body, if it is not asked for a stream.
        names = ("stream", "timeout", "verify", "cert", "proxies")
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs, "stream": True}
        response: requests.Response = self._exchange.handle(_Client(self.adapter, request, kwargs))
        return response

    def close(self) -> None:
        """Close the wrapped adapter; the cache stays open."""
        self.adapter.close()


class _Client:
    """A prepared request."""

    def __init__(self, adapter: adapters.BaseAdapter, request: requests.PreparedRequest, options: Any) -> None:
        self._adapter = adapter
        self.request = request
        self._options = options
        fields = [(_text(name).lower(), _text(value)) for name, value in request.headers.items()]
        if (cert := options.get("cert")) is not None:
            # The certificate says who the user is, as a header would.
            fields.append(("client certificate", repr(cert)))
        url, patience = str(request.url).partition("#")[0], patience_of(options.get("timeout"))
        self.head = Head((request.method or "GET").upper(), url, fields, patience)

    def body(self, limit: int) -> bytes | None:
        body = self.request.body
        if body is None:
            return b""
        # A file or a generator can be read only once.
        return body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else None

    def send(self, condition: list[tuple[str, str]]) -> "_Live":
        request = self.request
        if condition:
            request = request.copy()
            request.headers.update(condition)
        response = self._adapter.send(request, **self._options)
        response.request = self.request
        return _Live(self.request, response)

    def response_of(self, answer: Answer, fields: list[tuple[str, str]]) -> requests.Response:
        raw = _raw(self.request, answer, fields, io.BytesIO(answer.body))
        return adapters.HTTPAdapter().build_response(self.request, raw)


class _Live:
    """A response of requests."""

    def __init__(self, request: requests.PreparedRequest, response: requests.Response) -> None:
        self._request = request
        self._response = response
        fields = tuple((name.lower(), value) for name, value in response.raw.headers.items())
        self.answer = made(response.status_code, reason=response.reason or "", fields=fields)
        self.framed = False

    def chunks(self) -> Iterator[bytes]:
        """Yield the body; errors are those of `requests.Response.iter_content`."""
        try:
            yield from self._response.raw.stream(_CHUNK, decode_content=False)
        except broken.ProtocolError as error:
            raise exceptions.ChunkedEncodingError(error, request=self._request) from error
        except broken.ReadTimeoutError as error:
            raise exceptions.ConnectionError(error, request=self._request) from error
        except broken.SSLError as error:
            raise exceptions.SSLError(error, request=self._request) from error

    def response(self, read: list[bytes] | None, rest: Iterator[bytes]) -> requests.Response:
        response = self._response
        if read is not None:
            body = _Rejoined(read, rest, response)
            fields = [(name, value) for name, value in self.answer.fields if name != "transfer-encoding"]
            response.raw = _raw(self._request, self.answer, fields, body)
        response.headers[ORIGIN] = "miss"
        return response

    def close(self) -> None:
        self._response.close()


class _Rejoined(io.RawIOBase):
    """A body of which a part has been read, as a file."""

    def __init__(self, read: list[bytes], rest: Iterator[bytes], response: requests.Response) -> None:
        self._read = read
        self._rest = rest
        # The response's own raw is about to be replaced.
        self._below = response.raw
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ahead:
            chunk = self._read.pop(0) if self._read else next(self._rest, None)
            if chunk is None:
                return 0
            self._ahead = chunk
        size = min(len(buffer), len(self._ahead))
        buffer[:size], self._ahead = self._ahead[:size], self._ahead[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._below.close()
            self._below.release_conn()
        super().close()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _raw(
    request: requests.PreparedRequest, answer: Answer, fields: list[tuple[str, str]], body: Any
) -> urllib3.HTTPResponse:
    """Return what urllib3 would have read from the server."""
    message = HTTPMessage()
    for name, value in fields:
        message.add_header(name, value)
    # The session looks for cookies there.
    original: Any = SimpleNamespace(msg=message, isclosed=lambda: False, close=lambda: None)
    return urllib3.HTTPResponse(
        body, urllib3.HTTPHeaderDict(fields), answer.status, reason=answer.reason or None, preload_content=False,
        decode_content=False, original_response=original, request_method=request.method, request_url=request.url,
    )  # fmt: skip
