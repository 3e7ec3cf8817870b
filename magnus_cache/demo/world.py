"""Everything around the application: its sources, its Redis, and the managers that stand for its processes."""

import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from magnus_cache import AsyncCacheManager, CacheManager, CacheSettings
from magnus_cache.demo.apps import App, plain_app
from magnus_cache.demo.clients import ApiClient
from magnus_cache.demo.console import Console
from magnus_cache.demo.counting import CallCounter
from magnus_cache.demo.database import Database
from magnus_cache.demo.server import nobody_there, start_server
from magnus_cache.demo.service import RATE_LIMIT, RATE_WINDOW, Service
from magnus_cache.demo.workloads import WORKLOADS
from magnus_cache.embedded import EmbeddedServer

__all__ = ["World", "open_world"]


@dataclass(frozen=True, slots=True)
class World:
    """What the steps of the demo work with.

    :ivar plain: the application without a cache.
    :ivar calls: the calls that reached a source, by workload.
    :ivar server: the Redis, or None when the demo runs on the memory fallback.
    """

    plain: App
    impatient: ApiClient
    """A client that nobody keeps from asking too often."""
    calls: CallCounter
    directory: Path
    server: EmbeddedServer | None
    redis_url: str

    def manager(self) -> AsyncCacheManager:
        """Return a new cache, such as another process of the application would have; `sync` is its blocking face.

        Everything but the place of Redis is the default: the settings in the user's environment are not the demo's.
        """
        fields = CacheSettings.model_fields.items()
        defaults = {name: field.default for name, field in fields if not name.startswith("redis_")}
        return CacheManager(redis_url=self.redis_url, redis_enabled=True, **defaults).aio


@contextmanager
def open_world(console: Console, *, speed: float, with_server: bool) -> Generator[World, None, None]:
    """Start the sources and the Redis, and take everything away again.

    :param speed: how many times faster than in the guide the sources are.
    """
    latencies = {workload.name: workload.seconds / speed for workload in WORKLOADS}
    calls = CallCounter()
    with ExitStack() as stack:
        server = start_server(console, wanted=with_server)
        redis_url = stack.enter_context(server).url if server else stack.enter_context(nobody_there())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magnus-cache-demo-")))
        service = stack.enter_context(Service(latencies, calls))
        database = Database(directory / "demo.sqlite3", latencies, calls)
        limit = f"{RATE_LIMIT} calls in {RATE_WINDOW:g} s"
        console.say(f"HTTP:  an API on this machine that allows each client {limit}; {_took('HTTP', speed)} a call.")
        console.say(f"SQL:   a SQLite file whose queries take {_took('SQL', speed)}, inside the database.")
        yield World(
            plain=plain_app(ApiClient(service.url, "demo-app"), database),
            impatient=ApiClient(service.url, "impatient-app"),
            calls=calls,
            directory=directory,
            server=server,
            redis_url=redis_url,
        )


def _took(source: str, speed: float) -> str:
    """Return how long the calls of one kind of source take, for people."""
    times = sorted(workload.seconds / speed for workload in WORKLOADS if workload.source == source)
    unit, factor = ("s", 1) if speed == 1 else ("ms", 1000)
    *most, last = (f"{seconds * factor:.3g}" for seconds in times)
    return f"{', '.join(most)} and {last} {unit}"
