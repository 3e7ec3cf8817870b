"""Clients of httpx, httpx2 and requests with the cache in between, asked in one way."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol, Unpack

import httpx
import httpx2
import requests

from magnus_cache import AsyncCacheManager
from magnus_cache.integrations.http import AsyncCacheTransport, CacheAdapter, CacheTransport, HttpCacheOptions
from tests.support.effort import ALL

__all__ = ["ALL_KINDS", "KINDS", "Asked", "Got", "asking"]

ALL_KINDS: Final = ("httpx", "httpx2", "httpx-blocking", "httpx2-blocking", "requests")

KINDS: Final = ALL_KINDS if ALL else ("httpx", "httpx2-blocking", "requests")
"""Each way of asking once; the other library in each way, in `nox -s cluster`."""


class Got(NamedTuple):
    """A response, read to its end.

    :ivar origin: of the header ``x-magnus-cache``.
    """

    status: int
    text: str
    origin: str
    headers: Mapping[str, str]


class Asked(Protocol):
    async def __call__(self, url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got: ...


def _got(response: Any) -> Got:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Got(response.status_code, response.text, headers["x-magnus-cache"], headers)


@asynccontextmanager
async def asking(kind: str, cache: AsyncCacheManager, **options: Unpack[HttpCacheOptions]) -> AsyncIterator[Asked]:
    """Give a function that sends a request with a client of a kind. Headers have ``_`` for ``-``."""
    library = {"httpx": httpx, "httpx2": httpx2}.get(kind.partition("-")[0])
    if kind == "requests":
        session = requests.Session()
        session.mount("http://", CacheAdapter(requests.adapters.HTTPAdapter(pool_maxsize=100), cache, **options))

        def send(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Got:
            return _got(session.request(method, url, data=body, headers=headers, allow_redirects=False))

        close = session.close
    elif kind.endswith("-blocking"):
        assert library is not None
        client = library.Client(transport=CacheTransport(library.HTTPTransport(), cache, **options))

        def send(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Got:
            return _got(client.request(method, url, content=body, headers=headers))

        close = client.close
    else:
        assert library is not None
        transport = AsyncCacheTransport(library.AsyncHTTPTransport(), cache, **options)
        async with library.AsyncClient(transport=transport) as asynchronous:

            async def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
                fields = {name.replace("_", "-"): value for name, value in headers.items()}
                return _got(await asynchronous.request(method, url, content=body, headers=fields))

            yield ask
        return

    with ThreadPoolExecutor(40) as threads:

        async def ask_in_a_thread(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(threads, send, method, url, body, fields)

        try:
            yield ask_in_a_thread
        finally:
            close()
