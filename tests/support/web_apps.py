"""Two small web services with a cache, for servers that run them in processes of their own.

`asgi` is for uvicorn, `wsgi` for gunicorn. Both answer ``GET /read/<key>`` and ``GET /write/<key>`` with the numbers of
two processes: the worker, and the one whose value it has. The settings of the cache come from the environment.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from magnus_cache import AsyncCacheManager, CacheManager

__all__ = ["asgi", "wsgi"]

awaited = AsyncCacheManager()
blocking = CacheManager()


def _answer(value: Any) -> bytes:
    return f"{os.getpid()} {value}".encode()


async def asgi(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    _, what, key = scope["path"].split("/")
    if what == "write":
        await awaited.set("web", key, os.getpid())
        found = _answer(os.getpid())
    else:
        found = _answer(await awaited.get_or_set("web", key, os.getpid))
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(found))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": found})


async def _lifespan(receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    while True:
        kind = (await receive())["type"]
        if kind == "lifespan.shutdown":
            await awaited.aclose()
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    _, what, key = environ["PATH_INFO"].split("/")
    if what == "write":
        blocking.set("web", key, os.getpid())
        found = _answer(os.getpid())
    else:
        found = _answer(blocking.get_or_set("web", key, os.getpid))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(found)))])
    return [found]
