"""Web applications with a cache and a page of metrics, for servers that run them in processes of their own.

``GET /read/<key>`` makes one look-up. ``GET /metrics`` is a scrape. The header `Worker` of each answer has the process
that gave it.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from magnus_cache import CacheManager
from magnus_cache.observability.prometheus import CacheCollector, make_asgi_app

__all__ = ["asgi", "wsgi"]

cache = CacheManager()
registry = CollectorRegistry()
registry.register(CacheCollector(cache))
_scraped = make_wsgi_app(registry)
_scraped_awaited = make_asgi_app(registry)


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    worker = ("Worker", str(os.getpid()))
    if environ["PATH_INFO"] == "/metrics":
        return _scraped(environ, lambda status, headers: start_response(status, [*headers, worker]))
    cache.get_or_set("web", environ["PATH_INFO"].rpartition("/")[2], os.getpid)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0"), worker])
    return [b""]


async def asgi(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    async def signed(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"worker", b"%d" % os.getpid())]
        await send(message)

    if scope["path"] == "/metrics":
        await _scraped_awaited(scope, receive, signed)
        return
    await cache.aio.get_or_set("web", scope["path"].rpartition("/")[2], os.getpid)
    await signed({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await signed({"type": "http.response.body", "body": b""})
