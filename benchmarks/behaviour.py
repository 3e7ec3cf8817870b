"""What caches do, beside how fast they are: ``python -m benchmarks.behaviour``.

Each is asked the same questions, on a real server. The page that compares them has the answers.
"""

import asyncio
import contextlib
import importlib.util
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer

__all__ = ["QUESTIONS", "answers", "main"]

Loader: TypeAlias = Callable[[], Awaitable[Any]]

_CALLERS: Final = 50
_PROCESSES: Final = 3
_SLOW: Final = 0.3
_NOWHERE: Final = 1
"""A port at which nothing listens."""


class Peer(Protocol):
    """A cache, reduced to what the questions need."""

    async def load(self, key: str, loader: Loader) -> Any:
        """Return the value of a key, loading it if it is missing."""
        ...

    async def get(self, key: str) -> Any:
        """Return the stored value."""
        ...

    async def delete(self, key: str) -> None:
        """Delete a value."""
        ...


class Magnus:
    """magnus_cache, as it comes."""

    def __init__(self, port: int) -> None:
        self.cache = AsyncCacheManager(redis_url=f"redis://127.0.0.1:{port}/0", prefix="behaviour")

    async def load(self, key: str, loader: Loader) -> Any:
        return await self.cache.get_or_set("t", key, loader, ttl=60)

    async def get(self, key: str) -> Any:
        return await self.cache.get("t", key)

    async def delete(self, key: str) -> None:
        await self.cache.delete("t", key)

    async def close(self) -> None:
        await self.cache.aclose()


class Aiocache:
    """aiocache, with its decorator against stampedes."""

    def __init__(self, port: int) -> None:
        from aiocache import Cache
        from aiocache.serializers import PickleSerializer

        self.options = {"cache": Cache.REDIS, "port": port, "serializer": PickleSerializer(), "ttl": 60}
        self.cache = Cache(Cache.REDIS, port=port, serializer=PickleSerializer())
        self.made: list[Any] = []

    async def load(self, key: str, loader: Loader) -> Any:
        from aiocache import cached_stampede

        decorated = cached_stampede(lease=5, key=key, **self.options)(loader)
        self.made.append(decorated.cache)
        return await decorated()

    async def get(self, key: str) -> Any:
        return await self.cache.get(key)

    async def delete(self, key: str) -> None:
        await self.cache.delete(key)

    async def close(self) -> None:
        for cache in (*self.made, self.cache):
            await cache.close()


class Cashews:
    """cashews, with a memory level and a lock."""

    def __init__(self, port: int) -> None:
        from cashews import Cache

        self.cache = Cache()
        self.cache.setup(f"redis://127.0.0.1:{port}/", client_side=True)

    async def load(self, key: str, loader: Loader) -> Any:
        async def load() -> Any:
            return await loader()

        return await self.cache(ttl=60, key=key, lock=True)(load)()

    async def get(self, key: str) -> Any:
        return await self.cache.get(key)

    async def delete(self, key: str) -> None:
        await self.cache.delete(key)

    async def close(self) -> None:
        # Awaits its task after it has cancelled it, and lets that out.
        with contextlib.suppress(asyncio.CancelledError):
            await self.cache.close()


class Dogpile:
    """dogpile.cache in threads, with a lock that all processes share."""

    def __init__(self, port: int) -> None:
        from dogpile.cache import make_region

        where = {"host": "127.0.0.1", "port": port, "distributed_lock": True, "thread_local_lock": False}
        self.region = make_region().configure("dogpile.cache.redis", expiration_time=60, arguments=where)

    async def load(self, key: str, loader: Loader) -> Any:
        loop = asyncio.get_running_loop()

        def create() -> Any:
            return asyncio.run_coroutine_threadsafe(_awaited(loader), loop).result()

        return await asyncio.to_thread(self.region.get_or_create, key, create)

    async def get(self, key: str) -> Any:
        return await asyncio.to_thread(self.region.get, key)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.region.delete, key)

    async def close(self) -> None:
        await asyncio.to_thread(self.region.backend.reader_client.close)


async def _awaited(loader: Loader) -> Any:
    return await loader()


PEERS: Final[dict[str, tuple[str, Callable[[int], Any]]]] = {
    "magnus_cache": ("magnus_cache", Magnus),
    "aiocache": ("aiocache", Aiocache),
    "cashews": ("cashews", Cashews),
    "dogpile.cache": ("dogpile", Dogpile),
}
"""By name: the package that has to be installed, and the cache."""


async def _loads_of_a_crowd(peer: Peer) -> str:
    calls: list[None] = []

    async def load() -> int:
        calls.append(None)
        await asyncio.sleep(_SLOW)
        return 1

    await asyncio.gather(*(peer.load("crowd", load) for _ in range(_CALLERS)))
    return str(len(calls))


async def _is_an_overtaken_load_stored(peer: Peer) -> str:
    begun, release = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        begun.set()
        await release.wait()
        return "old"

    loading = asyncio.ensure_future(peer.load("overtaken", load))
    await begun.wait()
    await peer.delete("overtaken")
    release.set()
    await loading
    return "yes" if await peer.get("overtaken") == "old" else "no"


async def _is_none_cached(peer: Peer) -> str:
    calls: list[None] = []

    async def load() -> None:
        calls.append(None)

    await peer.load("none", load)
    await peer.load("none", load)
    return "yes" if len(calls) == 1 else "no"


QUESTIONS: Final[dict[str, Callable[[Any], Awaitable[str]]]] = {
    f"calls of the source by {_CALLERS} callers": _loads_of_a_crowd,
    "a load that a delete has overtaken is stored": _is_an_overtaken_load_stored,
    "None is cached": _is_none_cached,
}


@contextlib.asynccontextmanager
async def _opened(name: str, port: int) -> AsyncIterator[Any]:
    peer = PEERS[name][1](port)
    try:
        yield peer
    finally:
        with contextlib.suppress(Exception):
            await peer.close()


async def _without_redis(name: str) -> str:
    async def load() -> int:
        return 1

    async with _opened(name, _NOWHERE) as peer:
        try:
            return "value" if await peer.load("away", load) == 1 else "?"
        except Exception as error:  # whatever it raises is the answer
            return type(error).__name__


async def _in_a_process(name: str, port: int) -> None:
    async def load() -> int:
        print("called", flush=True)
        await asyncio.sleep(5 * _SLOW)
        return 1

    async with _opened(name, port) as peer:
        await peer.load("fleet", load)


def _loads_of_processes(name: str, port: int) -> str:
    command = [sys.executable, "-m", "benchmarks.behaviour", name, str(port)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(_PROCESSES)]
    return str(sum(process.communicate()[0].count(b"called") for process in started))


def answers(name: str) -> dict[str, str]:
    """Return what a cache does, by question."""

    async def ask(port: int) -> dict[str, str]:
        async with _opened(name, port) as peer:
            found = {question: await put(peer) for question, put in QUESTIONS.items()}
        return found | {"nothing listens: a call gives": await _without_redis(name)}

    with EmbeddedServer() as server:
        found = asyncio.run(ask(server.port))
        return found | {f"calls of the source by {_PROCESSES} processes": _loads_of_processes(name, server.port)}


def main(arguments: list[str]) -> None:
    """Print a table, or be one of several processes."""
    logging.disable(logging.CRITICAL)
    if arguments:
        asyncio.run(_in_a_process(arguments[0], int(arguments[1])))
        return
    installed = [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package)]
    table = {name: answers(name) for name in installed}
    print(f"| | {' | '.join(installed)} |\n|---|{'---|' * len(installed)}")
    for question in table[installed[0]]:
        print(f"| {question} | {' | '.join(table[name][question] for name in installed)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
